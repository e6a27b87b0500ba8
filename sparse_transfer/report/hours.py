"""What the study itself cost: time upstream, time per task, and when a pruned model pays back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sparse_transfer.statistics.break_even import BreakEven, break_even

CELL = ["arm", "model", "method", "sparsity"]
Cell = tuple[str, str, str, float]
UPSTREAM = "prune"
STAGES = {
    "linear": "Linear probes",
    "online": "Linear, backbone recomputed",
    "full": "Full fine-tuning",
}
# Shared by all methods, no training, or (few-shot) many small heads per task.
NOT_PER_TASK = (UPSTREAM, "evaluate", "tune", "few_shot", "bench")


def by_cell(costs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Time upstream and per task of every cell, beside the dense model of the same name.

    Args:
        costs: one dict per finished run: stage, arm, model, method, sparsity, upstream_seed, task
            ("" where there is none), seconds (wall-clock of the whole run).

    Returns:
        One row per cell and stage of transfer (stage "" where nothing was transferred): upstream
        (seconds, mean over seeds), seeds, extra (upstream minus that of dense), per_task (mean
        over tasks), n_tasks, saving (dense − own per task, over shared tasks) with
        saving_low/high, break_even (tasks, see `statistics.break_even`) and pays_back (in words).
    """
    upstream = _means([row for row in costs if row["stage"] == UPSTREAM], "upstream_seed")
    per_task = [row for row in costs if row["stage"] not in NOT_PER_TASK]
    stages = {
        stage: _means([row for row in per_task if row["stage"] == stage], "task")
        for stage in dict.fromkeys(row["stage"] for row in per_task)
    }
    seeds: dict[Cell, set[Any]] = {}
    for row in costs:
        seeds.setdefault(_cell(row), set()).add(row["upstream_seed"])
    rows = []
    for cell in seeds:
        dense = (cell[0], cell[1], "dense", 0.0)
        before = {at: _mean(upstream.get(at, {})) for at in (cell, dense)}
        shared: dict[str, Any] = dict(zip(CELL, cell, strict=True)) | {"seeds": len(seeds[cell])}
        shared |= {"upstream": before[cell]}
        shared |= {"extra": before[cell] - before[dense]} if cell != dense else {}
        where = [stage for stage, found in stages.items() if cell in found]
        for stage in where or [""]:
            row = {**shared, "stage": stage}
            if stage:
                own, theirs = stages[stage][cell], stages[stage].get(dense, {})
                row |= {"per_task": _mean(own), "n_tasks": len(own)}
                if cell != dense and theirs:
                    row |= _against(own, theirs, shared["extra"])
            rows.append(row)
    return pd.DataFrame(rows)


def total(costs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of all runs by stage, in the order of the runs."""
    sums: dict[str, float] = {}
    for row in costs:
        sums[row["stage"]] = sums.get(row["stage"], 0.0) + float(row["seconds"])
    return sums


def _cell(row: Mapping[str, Any]) -> Cell:
    return str(row["arm"]), str(row["model"]), str(row["method"]), float(row["sparsity"] or 0)


def _means(rows: Sequence[Mapping[str, Any]], by: str) -> dict[Cell, dict[Any, float]]:
    """Mean seconds by cell and by one key of the rows."""
    found: dict[Cell, dict[Any, list[float]]] = {}
    for row in rows:
        found.setdefault(_cell(row), {}).setdefault(row[by], []).append(float(row["seconds"]))
    return {
        cell: {key: sum(times) / len(times) for key, times in by_key.items()}
        for cell, by_key in found.items()
    }


def _mean(values: Mapping[Any, float]) -> float:
    return sum(values.values()) / len(values) if values else float("nan")


def _against(own: Mapping[Any, float], dense: Mapping[Any, float], extra: float) -> dict[str, Any]:
    """What a cell saves on the tasks that it shares with dense."""
    shared = [task for task in own if task in dense]
    found = break_even(extra, [dense[task] for task in shared], [own[task] for task in shared])
    saving = found.saving
    return {
        "saving": saving.estimate,
        "saving_low": saving.low,
        "saving_high": saving.high,
        "break_even": found.tasks,
        "pays_back": _words(found),
    }


def _words(found: BreakEven) -> str:
    if math.isnan(found.tasks):
        return "cannot be said" if math.isnan(found.saving.low) else ""
    if math.isinf(found.tasks):
        return "never: no time is saved per task"
    if found.tasks == 0:
        return "at once: it cost no more upstream"
    return f"after {found.tasks:,.0f} tasks" if found.tasks > 1 else "after one task"

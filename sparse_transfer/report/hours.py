"""What the study itself cost: time upstream, time per task, and when a pruned model pays back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pandas as pd

from sparse_transfer.statistics.break_even import BreakEven, break_even

CELL = ["arm", "model", "method", "sparsity"]
UPSTREAM = "prune"
STAGES = {"linear": "Linear probes", "full": "Full fine-tuning"}
NOT_PER_TASK = (UPSTREAM, "tune", "bench")  # shared by all methods, or no training


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
    frame = pd.DataFrame([dict(row) for row in costs])
    frame["sparsity"] = frame["sparsity"].fillna(0.0).astype(float)
    ahead = frame[frame["stage"] == UPSTREAM].groupby(CELL, sort=False)["seconds"]
    upstream = ahead.mean().to_dict()
    seeds = frame.groupby(CELL)["upstream_seed"].nunique().to_dict()
    below = frame[~frame["stage"].isin(NOT_PER_TASK)]
    by_task = below.groupby(["stage", *CELL, "task"])["seconds"].mean()
    stages: dict[tuple[Any, ...], list[str]] = {}
    for stage, *cell in by_task.index.droplevel("task").unique():
        stages.setdefault(tuple(cell), []).append(str(stage))
    rows = []
    for cell in dict.fromkeys([*upstream, *stages]):
        arm, model, method, _ = cell
        dense = (arm, model, "dense", 0.0)
        nothing = float("nan")
        extra = upstream.get(cell, nothing) - upstream.get(dense, nothing)
        shared = dict(zip(CELL, cell, strict=True)) | {"seeds": seeds[cell]}
        shared |= {"upstream": upstream.get(cell, nothing)}
        if method != "dense":
            shared |= {"extra": extra}
        for stage in stages.get(cell, [""]):
            row: dict[str, Any] = {**shared, "stage": stage}
            if stage:
                own = cast(pd.Series, by_task[(stage, *cell)])
                row |= {"per_task": float(own.mean()), "n_tasks": len(own)}
                if method != "dense" and dense in stages and stage in stages[dense]:
                    row |= _against(own, cast(pd.Series, by_task[(stage, *dense)]), extra)
            rows.append(row)
    return pd.DataFrame(rows)


def total(costs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of all runs by stage, in the order of the runs."""
    sums: dict[str, float] = {}
    for row in costs:
        sums[row["stage"]] = sums.get(row["stage"], 0.0) + float(row["seconds"])
    return sums


def _against(own: pd.Series, dense: pd.Series, extra: float) -> dict[str, Any]:
    shared = own.index.intersection(dense.index)
    found = break_even(extra, dense[shared].to_numpy(), own[shared].to_numpy())
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

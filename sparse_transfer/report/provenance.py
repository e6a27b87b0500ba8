"""Where the numbers come from: versions, machine, runs, splits, failures, skipped images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sparse_transfer.report.cells import Column, Table, records, with_values

RUN_COLUMNS = (
    Column("run", "run"),
    Column("stage", "stage", choice=True),
    Column("arm", "arm", choice=True),
    Column("model", "model", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity"),
    Column("upstream_seed", "upstream seed", "count"),
    Column("task", "task", choice=True),
    Column("recipe", "recipe"),
    Column("profiles", "profile"),
    Column("transfer_seeds", "transfer seeds"),
    Column(
        "engine", "engine", note="what computed the training: PyTorch (dense) or the sparse kernels"
    ),
    Column("image_size", "px", "count"),
    Column("split", "split", note="first digits of the hash of the split's example ids"),
)
FAILURE_COLUMNS = (
    Column("stage", "stage"),
    Column("run", "run"),
    Column("arm", "arm"),
    Column("model", "model"),
    Column("method", "method"),
    Column("sparsity", "sparsity, %", "sparsity"),
    Column("upstream_seed", "upstream seed", "count"),
    Column("task", "task"),
    Column("error", "what happened"),
)


def runs_table(frame: pd.DataFrame) -> Table:
    """One row per run with what it was."""
    runs: dict[tuple[str, str], dict[str, Any]] = {}
    for row in records(frame):
        known = runs.setdefault((row["stage"], row["run"]), {**row, "of": {}, "by": set()})
        known["of"][str(row["profile"])] = not pd.isna(row["profile"])
        known["by"] |= set() if pd.isna(row["transfer_seed"]) else {int(row["transfer_seed"])}
    names = ("stage", "run", "arm", "model", "method", "sparsity", "task")
    names += ("upstream_seed", "recipe", "image_size")
    rows = [
        {name: run[name] for name in names}
        | {"profiles": ", ".join(name for name, is_known in run["of"].items() if is_known)}
        | {"transfer_seeds": ", ".join(map(str, sorted(run["by"])))}
        | {"engine": run.get("engine")}
        | {"split": str(run["split_hash"])[:8]}
        for run in runs.values()
    ]
    made = pd.DataFrame(rows)
    title = f"{len(made)} finished runs"
    return Table("runs", title, made, with_values(made, RUN_COLUMNS))


def failures_table(failures: Sequence[Mapping[str, Any]]) -> Table:
    """Runs without a result, with their error."""
    made = pd.DataFrame([dict(failure) for failure in failures])
    count = len(made)
    title = f"{count} run{'s' if count != 1 else ''} failed"
    return Table("failures", title, made, with_values(made, FAILURE_COLUMNS))


def skipped_table(skipped: Mapping[str, Mapping[str, int]]) -> Table | None:
    """Images left out, by task and reason; None where every image was used."""
    rows = [
        {"task": task, "reason": reason, "images": int(count)}
        for task, reasons in skipped.items()
        for reason, count in reasons.items()
        if count
    ]
    if not rows:
        return None
    columns = (Column("task", "task"), Column("reason", "reason"))
    columns += (Column("images", "images", "count"),)
    return Table("skipped", "Skipped images", pd.DataFrame(rows), columns)


def origin_table(facts: Mapping[str, Any]) -> Table | None:
    """Versions and machine, one per row; None where nothing is known of them."""
    rows = [
        {"what": what, "name": name, "value": str(value)}
        for what in ("versions", "machine")
        for name, value in facts[what].items()
    ]
    if not rows:
        return None
    columns = (Column("what", "kind"), Column("name", "name"), Column("value", "value"))
    return Table("origin", "Software and machine", pd.DataFrame(rows), columns)

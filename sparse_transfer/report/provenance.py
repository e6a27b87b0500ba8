"""Where the numbers come from: versions, machine, runs, splits, failures, skipped images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sparse_transfer.report.cells import Column, Table, with_values

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
    rows = []
    for (stage, run), part in frame.groupby(["stage", "run"], sort=False):
        first = part.iloc[0]
        seeds = sorted({int(seed) for seed in part["transfer_seed"].dropna()})
        profiles = [str(profile) for profile in dict.fromkeys(part["profile"].dropna())]
        row = {"stage": stage, "run": run, "profiles": ", ".join(profiles)}
        row |= {name: first[name] for name in ("arm", "model", "method", "sparsity", "task")}
        row |= {name: first[name] for name in ("upstream_seed", "recipe", "image_size")}
        row |= {"transfer_seeds": ", ".join(map(str, seeds)), "split": str(first["split_hash"])[:8]}
        rows.append(row)
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
    columns = (Column("what", ""), Column("name", "name"), Column("value", "value"))
    return Table("origin", "Software and machine", pd.DataFrame(rows), columns)

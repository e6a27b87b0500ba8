"""Every interval of a mean of ratios, for those who ask: what each leaves open is another thing.

A summary table shows one interval, the one that its verdict is about. Here all stand side by side:
over upstream seeds (another training), over test examples (another test set), over tasks (other
tasks of this kind; Student's t and the bootstrap BCa), and over tasks and seeds together.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sparse_transfer.report.cells import Column, Table, records, with_values
from sparse_transfer.report.tables import CELL, Group
from sparse_transfer.statistics import (
    GROUP,
    Comparison,
    bca_interval,
    cells,
    hierarchical_bootstrap,
    pooled_sd,
    seed_noise,
    seed_noise_of_mean,
)

RESAMPLES = 1000
MOST_ROWS = 100  # of one table; the bootstraps take some hundredths of a second each
COLUMNS = (
    Column("mode_title", "mode", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("method", "method", choice=True),
    Column("mor", "mean of ratios, %", "change"),
    Column("seeds", "over upstream seeds", "change", "Student's t"),
    Column("examples", "over test examples", "change", "paired bootstrap"),
    Column("tasks", "over tasks", "change", "Student's t"),
    Column("bca", "over tasks, BCa", "change", "bootstrap, bias-corrected and accelerated"),
    Column("both", "over tasks and seeds", "change", "hierarchical bootstrap"),
    Column("noise", "seed noise, points", "percent", "standard error from transfer seeds alone"),
    Column("n_tasks", "tasks", "count"),
    Column("n_seeds", "upstream seeds", "count"),
)


def table(
    groups: list[Group],
    comparison: Comparison,
    frame: pd.DataFrame,
    *,
    name: str,
    held_fixed: str,
) -> Table | None:
    """All intervals of the pruned cells of some groups; None where none has an increase.

    Args:
        groups: of one place.
        comparison: of the same results.
        frame: the results frame, for the errors by task and seed.
    """
    parts = [(group, group.of(comparison.methods)) for group in groups if group.mode != "upstream"]
    rows = pd.concat([part.assign(mode_title=group.title) for group, part in parts] or [frame[:0]])
    rows = rows[~rows["is_dense"].astype(bool) & rows["mor"].notna()] if len(rows) else rows
    if rows.empty:
        return None
    made = []
    paired = _paired_groups(frame, groups) if len(rows) <= MOST_ROWS else {}
    noise, spreads = _seed_noise(frame, groups)
    for row in records(rows):
        shown = {**row, **_own_limits(row), **_noise_of(row, noise)}
        if len(rows) <= MOST_ROWS:
            shown |= _bootstrapped(row, paired[tuple(row[name] for name in GROUP)])
        made.append(shown)
    whole = pd.DataFrame(made).sort_values(["sparsity", "method"], kind="stable")
    notes = [
        "Over tasks and seeds: tasks are drawn, then upstream seeds; with one upstream seed, the "
        "transfer seeds of each task."
    ]
    if len(rows) > MOST_ROWS:
        notes = [f"Bootstraps over tasks are left out of tables of more than {MOST_ROWS} rows."]
    if spreads:
        notes.append(
            "Transfer seeds alone move the accuracy of one checkpoint on one task (pooled standard "
            f"deviation): {'; '.join(spreads)}."
        )
    columns = with_values(whole, COLUMNS)
    title = "Every interval of these means"
    return Table(f"intervals-{name}", title, whole, columns, "", tuple(notes), held_fixed, True)


def _own_limits(row: dict[str, Any]) -> dict[str, float]:
    """The mean once per interval, so that each column shows its own limits; empty without them."""
    return {
        name: row["mor"] if row[f"{name}_low"] == row[f"{name}_low"] else float("nan")
        for name in ("seeds", "examples", "tasks")
    }


def _seed_noise(frame: pd.DataFrame, groups: list[Group]) -> tuple[pd.DataFrame, list[str]]:
    """What transfer seeds add to each mean, and their spread by group in words.

    Only where a cell has one upstream seed: elsewhere it is part of the spread over those.
    """
    tables, spreads = [], []
    table = cells.checked(frame)
    for group in groups:
        own = group.of(table)
        if group.mode == "upstream" or own["upstream_seed"].nunique() != 1:
            continue
        by_task = seed_noise(own)
        spread = pooled_sd(by_task["sd"], by_task["n"])
        if spread == spread:
            spreads.append(f"{group.title}: {100 * spread:.2f} points")
            tables.append(seed_noise_of_mean(own))
    return pd.concat(tables) if tables else pd.DataFrame(), spreads


def _noise_of(row: dict[str, Any], noise: pd.DataFrame) -> dict[str, float]:
    """The noise of a row's mean, dense runs included; empty where it has other tasks."""
    if noise.empty:
        return {}
    key = [*GROUP, *CELL, "n_tasks"]
    own = noise[(noise[key] == [row[name] for name in key]).all(axis=1)]
    return {"noise": float(own["error_with_dense"].iloc[0])} if len(own) else {}


def _paired_groups(frame: pd.DataFrame, groups: list[Group]) -> dict[tuple[Any, ...], cells.Group]:
    """The results by group, as the comparison pairs them."""
    table = cells.checked(frame)
    own = pd.concat([group.of(table) for group in groups if group.mode != "upstream"])
    return {tuple(group.key.values()): group for group in cells.groups(own)}


def _bootstrapped(row: dict[str, Any], group: cells.Group) -> dict[str, float]:
    """Intervals over the tasks and seeds that the mean of ratios of this row is about."""
    cell = (row["method"], row["sparsity"])
    (paired,) = group.paired([cell])
    kept = [i for i, mean in enumerate(paired.dense.mean(axis=1)) if mean > 0]
    if len(kept) < 2:
        return {}
    bca = bca_interval(paired.by_task()[kept], resamples=RESAMPLES)
    crossed = len(paired.seeds) > 1
    dense, sparse = list(paired.dense[kept]), list(paired.sparse[kept])
    if not crossed and group.dense is not None:
        dense, sparse = (
            [group.by_transfer_seed(one, paired.tasks[i], paired.seeds[0]) for i in kept]
            for one in (group.dense, cell)
        )
    both = hierarchical_bootstrap(dense, sparse, crossed=crossed, resamples=RESAMPLES)
    return {
        "bca": bca.estimate,
        "bca_low": bca.low,
        "bca_high": bca.high,
        "both": both.estimate,
        "both_low": both.low,
        "both_high": both.high,
    }

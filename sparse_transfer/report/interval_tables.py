"""Every interval of a mean of ratios, for those who ask: what each leaves open is another thing.

A summary table shows one interval, the one that its verdict is about. Here all stand side by side:
over upstream seeds (another training), over test examples (another test set), over tasks (other
tasks of this kind; Student's t and the bootstrap BCa), and over tasks and seeds together.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_transfer.report.cells import Column, Table, records, with_values
from sparse_transfer.report.tables import CELL, Group
from sparse_transfer.statistics import GROUP, Comparison, bca_interval, hierarchical_bootstrap

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
    Column("n_tasks", "tasks", "count"),
    Column("n_seeds", "upstream seeds", "count"),
)
ERRORS = [*GROUP, *CELL]


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
    errors = _errors(frame, groups) if len(rows) <= MOST_ROWS else {}
    for row in records(rows):
        shown = {**row, **_own_limits(row)}
        if len(rows) <= MOST_ROWS:
            shown |= _bootstrapped(row, errors)
        made.append(shown)
    whole = pd.DataFrame(made).sort_values(["sparsity", "method"], kind="stable")
    notes = [
        "Over tasks and seeds: tasks are drawn, then upstream seeds; with one upstream seed, the "
        "transfer seeds of each task."
    ]
    if len(rows) > MOST_ROWS:
        notes = [f"Bootstraps over tasks are left out of tables of more than {MOST_ROWS} rows."]
    columns = with_values(whole, COLUMNS)
    title = "Every interval of these means"
    return Table(f"intervals-{name}", title, whole, columns, "", tuple(notes), held_fixed, True)


def _own_limits(row: dict[str, Any]) -> dict[str, float]:
    """The mean once per interval, so that each column shows its own limits; empty without them."""
    return {
        name: row["mor"] if row[f"{name}_low"] == row[f"{name}_low"] else float("nan")
        for name in ("seeds", "examples", "tasks")
    }


def _errors(
    frame: pd.DataFrame, groups: list[Group]
) -> dict[tuple[Any, ...], dict[Any, NDArray[np.float64]]]:
    """Errors by cell and task, (upstream seeds, transfer seeds) flattened to one seed axis."""
    own = frame[frame["arm"].eq(groups[0].arm) & frame["model"].eq(groups[0].model)]
    own = own[own["mode"].ne("upstream")]
    has_seeds = own["upstream_seed"].nunique() > 1
    seed = "upstream_seed" if has_seeds else "transfer_seed"
    values = own.groupby([*ERRORS, "task", "split_hash", seed], dropna=False)["value"].mean()
    found: dict[tuple[Any, ...], dict[Any, NDArray[np.float64]]] = {}
    by_task = (1 - values).groupby([*ERRORS, "task", "split_hash"], dropna=False)
    for key, part in by_task:
        cell, task = cast("tuple[Any, ...]", key)[: len(ERRORS)], key[len(ERRORS) :]
        found.setdefault(cell, {})[task] = part.to_numpy()
    return found


def _bootstrapped(
    row: dict[str, Any],
    errors: dict[tuple[Any, ...], dict[Any, NDArray[np.float64]]],
) -> dict[str, float]:
    cell = tuple(row[name] for name in ERRORS)
    sparse = errors[cell]
    dense = next(
        (
            found
            for key, found in errors.items()
            if key[: len(GROUP)] == cell[: len(GROUP)] and str(key[len(GROUP)]).lower() == "dense"
        ),
        {},
    )
    shared = [task for task in sparse if task in dense and dense[task].mean() > 0]
    if len(shared) < 2 or len(shared) != row["n_tasks"]:
        return {}
    ours, theirs = [sparse[task] for task in shared], [dense[task] for task in shared]
    ratios = [float(s.mean() / d.mean() - 1) for s, d in zip(ours, theirs, strict=True)]
    bca = bca_interval(ratios, resamples=RESAMPLES)
    crossed = row["n_seeds"] > 1 and len({len(values) for values in [*ours, *theirs]}) == 1
    both = hierarchical_bootstrap(theirs, ours, crossed=crossed, resamples=RESAMPLES)
    return {
        "bca": bca.estimate,
        "bca_low": bca.low,
        "bca_high": bca.high,
        "both": both.estimate,
        "both_low": both.low,
        "both_high": both.high,
    }

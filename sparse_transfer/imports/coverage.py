"""What imported results lack, and the aggregates of what is complete.

A mean over some of the tasks is another quantity than the mean over all of them. So a method that
lacks a task, and a task that lacks its dense baseline, are named with file and line and enter no
mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from sparse_transfer.errors import UserError
from sparse_transfer.statistics import aggregate

BLOCK = ["model", "mode"]  # what is compared with one dense baseline
CELL = ["method", "sparsity"]


@dataclass(frozen=True)
class Gap:
    """Lines that no mean is taken over.

    Attributes:
        source, line: the file and the first of these lines.
        model, mode, method, sparsity: whose results they are; method "" where it is several.
        text: why, in words.
    """

    source: str
    line: int
    model: str
    mode: str
    method: str
    sparsity: float
    text: str

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}: {self.text}"


def complete(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Gap]]:
    """The rows whose means may be compared, and what was left out.

    Within a block (architecture and mode) these are the rows on tasks that dense and at least one
    other method have, of the cells (method × sparsity) that have all of these tasks.

    Args:
        frame: from `results.read_results`; method "dense" is the baseline.

    Returns:
        The rows kept, in order, and the gaps in the order of the blocks.
    """
    kept: list[pd.DataFrame] = []
    gaps: list[Gap] = []
    for _, block in frame.groupby(BLOCK, sort=False):
        rows, found = _complete_block(block)
        kept.append(rows)
        gaps += found
    return pd.concat(kept) if kept else frame, gaps


def refuse_empty(kept: pd.DataFrame, gaps: list[Gap]) -> None:
    """Raise a UserError where nothing at all can be compared."""
    if (kept["method"] != "dense").any():
        return
    if not gaps:
        raise UserError(
            "These results hold nothing that can be compared.",
            "All of them are dense.",
            "Give the file with the sparse results of the same architecture and setting too.",
        )
    shown = "\n".join(f"- {gap}" for gap in gaps[:10])
    more = f"\nAnd {len(gaps) - 10} more." if len(gaps) > 10 else ""
    raise UserError(
        "These results hold nothing that can be compared.",
        shown + more,
        "Give the file with the dense results of the same architecture and setting too.",
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Relative error increase over dense of every sparse cell, seeds averaged within a task.

    The same figures as `statistics.compare`, without intervals and tests: of 100,000 rows in about
    a second.

    Args:
        frame: from `complete`.

    Returns:
        model, mode, method, sparsity, mean_of_ratios, ratio_of_means, n_tasks, fewest_seeds,
        most_seeds (runs of a task); sorted by mode, model, sparsity and mean of ratios.
    """
    by_task = frame.groupby([*BLOCK, *CELL, "task"])["value"].agg(["mean", "count"]).reset_index()
    by_task["error"] = 1 - by_task["mean"]
    is_dense = by_task["method"] == "dense"
    dense = by_task[is_dense].set_index([*BLOCK, "task"])["error"].rename("dense")
    sparse = by_task[~is_dense].join(dense, on=[*BLOCK, "task"])
    rows: list[dict[str, Any]] = []
    for values, part in sparse.groupby([*BLOCK, *CELL]):
        found = aggregate(part["dense"].to_numpy(), part["error"].to_numpy())
        rows.append(
            {
                **dict(zip([*BLOCK, *CELL], cast("tuple[Any, ...]", values), strict=True)),
                "mean_of_ratios": found.mean_of_ratios,
                "ratio_of_means": found.ratio_of_means,
                "n_tasks": found.n,
                "fewest_seeds": int(part["count"].min()),
                "most_seeds": int(part["count"].max()),
            }
        )
    if not rows:
        return pd.DataFrame()
    order = ["mode", "model", "sparsity", "mean_of_ratios"]
    return pd.DataFrame(rows).sort_values(order, kind="stable").reset_index(drop=True)


def _complete_block(block: pd.DataFrame) -> tuple[pd.DataFrame, list[Gap]]:
    is_dense = block["method"] == "dense"
    dense_tasks = set(block.loc[is_dense, "task"])
    if not dense_tasks:
        first = block.iloc[0]
        text = (
            f"{first['model']}, {first['mode']}: no dense baseline, so no relative error; "
            f"{_lines(len(block))} left out"
        )
        return block.iloc[:0], [_gap(block, text)]
    sparse_tasks = set(block.loc[~is_dense, "task"])
    wanted = dense_tasks & sparse_tasks if sparse_tasks else dense_tasks
    gaps = list(_lonely_tasks(block, dense_tasks, sparse_tasks or dense_tasks))
    rows = block[block["task"].isin(wanted)]
    left_out: list[tuple[Any, ...]] = []
    for cell, part in rows.groupby(CELL, sort=False):
        absent = sorted(wanted - set(part["task"]))
        if absent:
            method, sparsity = cast("tuple[str, float]", cell)
            left_out.append((method, sparsity))
            text = (
                f"{method} {sparsity:g} has {len(wanted) - len(absent)} of {len(wanted)} tasks "
                f"({part['model'].iloc[0]}, {part['mode'].iloc[0]}), so it is in no mean; missing: "
                f"{', '.join(absent)}"
            )
            gaps.append(_gap(part, text, method, float(sparsity)))
    if left_out:
        cells = pd.MultiIndex.from_frame(rows[CELL])
        rows = rows[~cells.isin(left_out)]
    return rows, gaps


def _lonely_tasks(block: pd.DataFrame, dense: set[str], sparse: set[str]) -> Iterator[Gap]:
    """Tasks that only the dense model has, or only the others."""
    for task in sorted(dense ^ sparse):
        part = block[block["task"] == task]
        reason = "no sparse method" if task in dense else "no dense baseline"
        place = f"{part['model'].iloc[0]}, {part['mode'].iloc[0]}"
        yield _gap(part, f"{task} has {reason} ({place}); {_lines(len(part))} left out")


def _gap(rows: pd.DataFrame, text: str, method: str = "", sparsity: float = float("nan")) -> Gap:
    first = rows.iloc[0]
    source, line = str(first["source"]), int(first["line"])
    return Gap(source, line, str(first["model"]), str(first["mode"]), method, sparsity, text)


def _lines(count: int) -> str:
    return f"{count} line{'s are' if count != 1 else ' is'}"

"""Curves of accuracy by training images per class, and what pruning costs along them.

The unit of replication is the draw: which k images of every class were taken. Draws are shared by
all models, so differences are paired; intervals are conditional on the checkpoints.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd

from sparse_transfer.statistics.intervals import t_interval
from sparse_transfer.statistics.relative_error import aggregate, relative_error_by_seed

NAN = float("nan")
MODEL = ["arm", "model"]
CELL = ["method", "sparsity"]


def few_shot_curves(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy and relative error increase by shots, means over tasks.

    A curve has the shots that every task of its arm and model has, so that all its points are
    means over the same tasks.

    Args:
        frame: columns arm, model, method, sparsity, upstream_seed, task, shots, draw, value (the
            task's own metric); the reference is the method called "dense".

    Returns:
        one row per arm, model, method, sparsity and shots, with accuracy, accuracy_low,
        accuracy_high (95 % t-interval over draws), increase, increase_low, increase_high (mean of
        ratios, paired with dense by draw; NaN for dense and without it), n_tasks, n_draws,
        n_seeds. Only the upstream seeds that dense has, too, enter the increase.
    """
    made = [
        {**_named(place, cell), "shots": shots, **_point(own, dense)}
        for place, cell, part, reference in _cells(frame)
        for shots, own in part.groupby("shots")
        for dense in [reference[reference["shots"] == shots]]
    ]
    return pd.DataFrame(made)


def few_shot_areas(frame: pd.DataFrame) -> pd.DataFrame:
    """Area under the curve of accuracy over log2 of the shots, as a mean accuracy in [0, 1].

    Trapezoids over the shots that every task of an arm and model has, divided by their range, so
    that a constant accuracy is its own area.

    Args:
        frame: as for `few_shot_curves`.

    Returns:
        one row per arm, model, method and sparsity, with area, area_low, area_high (95 %
        t-interval over draws), difference (area − dense's, paired by draw) with its limits,
        first_shots and last_shots, n_tasks; empty where tasks share fewer than two numbers of
        shots.
    """
    made = []
    for place, cell, part, reference in _cells(frame):
        shots = sorted(part["shots"].unique())
        if len(shots) < 2:
            continue
        own, dense = _areas(part, shots), _areas(reference, shots)
        area = t_interval(own.groupby("draw").mean())
        both = (own - dense).dropna() if cell[0] != "dense" else own.iloc[:0]
        change = t_interval(both.groupby("draw").mean())
        made.append(
            {
                **_named(place, cell),
                "area": area.estimate,
                "area_low": area.low,
                "area_high": area.high,
                "difference": change.estimate,
                "difference_low": change.low,
                "difference_high": change.high,
                "first_shots": shots[0],
                "last_shots": shots[-1],
                "n_tasks": part["task"].nunique(),
            }
        )
    return pd.DataFrame(made)


def _cells(
    frame: pd.DataFrame,
) -> list[tuple[list[Any], tuple[str, float], pd.DataFrame, pd.DataFrame]]:
    """(arm and model, method and sparsity, the cell's rows, the rows of its dense model).

    Of the shots that every task of the arm and model has.
    """
    found = []
    for place, whole in frame.groupby(MODEL, sort=False):
        whole = whole[whole["shots"].isin(shared_shots(whole))]
        dense = whole[whole["method"] == "dense"]
        for cell, part in whole.groupby(CELL):
            found.append((list(cast(tuple, place)), cast("tuple[str, float]", cell), part, dense))
    return found


def _named(place: list[Any], cell: tuple[str, float]) -> dict[str, Any]:
    return dict(zip((*MODEL, *CELL), (*place, *cell), strict=True))


def _point(own: pd.DataFrame, dense: pd.DataFrame) -> dict[str, Any]:
    by_draw = own.groupby(["task", "draw"])["value"].mean().groupby("draw").mean()
    accuracy = t_interval(by_draw)
    increase, low, high = _increase(own, dense)
    return {
        "accuracy": accuracy.estimate,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "increase": increase,
        "increase_low": low,
        "increase_high": high,
        "n_tasks": own["task"].nunique(),
        "n_draws": own["draw"].nunique(),
        "n_seeds": own["upstream_seed"].nunique(),
    }


def _increase(own: pd.DataFrame, dense: pd.DataFrame) -> tuple[float, float, float]:
    """Mean of ratios over tasks with its interval over draws; NaN for dense itself."""
    nothing = (NAN, NAN, NAN)
    if own["method"].iloc[0] == "dense" or dense.empty:
        return nothing
    key = ["task", "upstream_seed", "draw"]
    joined = own.merge(dense, on=key, suffixes=("", "_dense"))
    if joined.empty:
        return nothing
    means = joined.groupby(["task", "draw"])[["value", "value_dense"]].mean()
    errors = 1 - means.unstack("draw").dropna()  # a draw that a task lacks is not averaged around
    sparse, reference = errors["value"].to_numpy(), errors["value_dense"].to_numpy()
    if not len(sparse):
        return nothing
    estimate = aggregate(reference.mean(axis=1), sparse.mean(axis=1)).mean_of_ratios
    by_draw = relative_error_by_seed(reference, sparse)
    usable = by_draw[~np.isnan(by_draw).any(axis=1)]
    interval = t_interval(usable.mean(axis=0)) if len(usable) else t_interval([])
    return estimate, interval.low, interval.high


def shared_shots(frame: pd.DataFrame) -> list[int]:
    """The shots that every task has, ascending."""
    by_task = [set(part["shots"]) for _, part in frame.groupby("task")]
    return sorted(set.intersection(*by_task)) if by_task else []


def _areas(rows: pd.DataFrame, shots: list[int]) -> pd.Series:
    """Normalised areas, indexed by task, upstream_seed and draw."""
    key = ["task", "upstream_seed", "draw"]
    table = rows.pivot_table(index=key, columns="shots", values="value")
    table = table.reindex(columns=shots).dropna()
    x = np.log2(shots)
    area = np.trapezoid(table.to_numpy(), x, axis=1) / (x[-1] - x[0])
    return pd.Series(area, index=table.index, dtype=float)

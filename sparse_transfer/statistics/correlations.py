"""Correlations with what makes them readable: n, an interval, and the size that chance reaches.

The correlation of upstream with downstream accuracy follows Kornblith et al. 2019 ("Do Better
ImageNet Models Transfer Better?", arXiv 1805.08974): accuracies as logits, those of a task centred
over models, then averaged over tasks. Deviation: an accuracy of 0 or 1, whose logit is infinite, is
taken half a test example inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sparse_transfer.statistics.cells import CELL, GROUP, NAN

# Groups that hold several upstream models: a better model is what the correlation is about.
ACROSS = [name for name in GROUP if name != "model"]
FEWEST = 4  # points from which Fisher's interval exists
MODEL_CELL = ["model", *CELL]
# Variance of Fisher's z times (n − 3): Fisher 1921; Fieller, Hartley and Pearson 1957.
_VARIANCE = {"pearson": 1.0, "spearman": 1.06}


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient with its interval; NaN where it does not exist.

    Attributes:
        r: the coefficient.
        low, high: interval by Fisher's z; NaN for fewer than 4 points.
        n: points.
    """

    r: float
    low: float
    high: float
    n: int


def correlation(
    x: ArrayLike, y: ArrayLike, *, kind: str = "pearson", confidence: float = 0.95
) -> Correlation:
    """Pearson's or Spearman's correlation with an interval by Fisher's z transformation.

    Args:
        x, y: (n,) paired values without NaN.
        kind: pearson or spearman.
        confidence: two-sided coverage in (0, 1).

    Returns:
        r is NaN for n < 3 or where either side does not vary; the limits also for n < 4.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = first.size
    if n < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return Correlation(NAN, NAN, NAN, n)
    if kind == "spearman":
        first, second = stats.rankdata(first), stats.rankdata(second)
    r = float(np.clip(np.corrcoef(first, second)[0, 1], -1, 1))
    if n < FEWEST:
        return Correlation(r, NAN, NAN, n)
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * np.sqrt(_VARIANCE[kind] / (n - 3))
    with np.errstate(divide="ignore"):
        z = np.arctanh(r)
    return Correlation(r, float(np.tanh(z - half)), float(np.tanh(z + half)), n)


def needed_correlation(n: int, *, significance: float = 0.05) -> float:
    """The |Pearson r| above which n points differ from no correlation, two-sided t test.

    Args:
        n: points; NaN below 3.
    """
    if n < 3:
        return NAN
    t = float(stats.t.ppf(1 - significance / 2, n - 2))
    return t / np.sqrt(n - 2 + t * t)


def logit(accuracy: ArrayLike, n_test: ArrayLike) -> NDArray[np.float64]:
    """log(a / (1 − a)); NaN for 0 and 1 where the size of the test set is unknown.

    Args:
        accuracy: in [0, 1].
        n_test: size of the test set, or NaN.
    """
    a, n = np.asarray(accuracy, dtype=np.float64), np.asarray(n_test, dtype=np.float64)
    inside = np.where(np.isnan(n), a, np.clip(a, 0.5 / n, 1 - 0.5 / n))
    inside = np.where((inside <= 0) | (inside >= 1), NAN, inside)
    return np.log(inside / (1 - inside))


def upstream_points(frame: pd.DataFrame) -> pd.DataFrame:
    """Upstream accuracy beside downstream accuracy for every cell (model × method × sparsity).

    Args:
        frame: the results frame, see `compare`; rows of mode "upstream" are the upstream side.

    Returns:
        One row per arm, recipe, mode, profile, image size and cell: upstream (accuracy in [0, 1],
        mean over seeds), upstream_logit, downstream (mean over tasks of their logit accuracies,
        each centred over the cells), n_tasks (tasks that every cell has; others do not enter),
        n_tasks_left_out. Empty where there is no upstream accuracy or no shared task.
    """
    table = frame.assign(n_test=frame.get("n_test", NAN))
    is_upstream = table["mode"] == "upstream"
    above = table[is_upstream].groupby(["arm", *MODEL_CELL])[["value", "n_test"]].mean()
    below = table[~is_upstream]
    parts: list[pd.DataFrame] = []
    if above.empty or below.empty:
        return pd.DataFrame()
    for values, part in below.groupby(ACROSS, sort=False, dropna=False):
        key = dict(zip(ACROSS, cast("tuple[Any, ...]", values), strict=True))
        by_task = part.groupby(["task", "split_hash", *MODEL_CELL])[["value", "n_test"]].mean()
        logits = pd.Series(logit(by_task["value"], by_task["n_test"]), index=by_task.index)
        wide = logits.unstack(["task", "split_hash"])
        known = above.loc[key["arm"]] if key["arm"] in above.index.get_level_values(0) else None
        if known is None:
            continue
        wide = wide.loc[wide.index.intersection(known.index)]
        shared = wide.dropna(axis=1)
        if shared.empty or shared.shape[1] == 0:
            continue
        own = known.loc[shared.index]
        made = pd.DataFrame(
            {
                "upstream": own["value"],
                "upstream_logit": logit(own["value"], own["n_test"]),
                "downstream": (shared - shared.mean()).mean(axis=1),
                "n_tasks": shared.shape[1],
                "n_tasks_left_out": wide.shape[1] - shared.shape[1],
            }
        ).reset_index()
        parts.append(made.assign(**key)[[*ACROSS, *made.columns]])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def upstream_correlation(points: pd.DataFrame) -> pd.DataFrame:
    """Pearson and Spearman of upstream with downstream accuracy, over cells.

    Args:
        points: from `upstream_points`.

    Returns:
        One row per arm, recipe, mode, profile and image size with at least 4 cells, and one for
        each of its sparsities with at least 4: cells ("all", or the sparsity in percent; at one
        sparsity the correlation is that of methods, not of sparsity), n, n_tasks, pearson and
        spearman, each with `_low` and `_high`.
    """
    rows: list[dict[str, Any]] = []
    if points.empty:
        return pd.DataFrame()
    usable = points[points["upstream_logit"].notna()]
    for values, part in usable.groupby(ACROSS, sort=False, dropna=False):
        key = dict(zip(ACROSS, cast("tuple[Any, ...]", values), strict=True))
        levels = sorted(set(part["sparsity"].astype(float)))
        of_level = {f"{100 * level:.4g} % sparse": part["sparsity"] == level for level in levels}
        for name, fits in {"all": part["sparsity"].notna(), **of_level}.items():
            some = part[fits]
            if len(some) < FEWEST or (name != "all" and len(some) == len(part)):
                continue
            row = {**key, "cells": name, "n": len(some), "n_tasks": int(some["n_tasks"].iloc[0])}
            for kind in _VARIANCE:
                found = correlation(some["upstream_logit"], some["downstream"], kind=kind)
                row |= {kind: found.r, f"{kind}_low": found.low, f"{kind}_high": found.high}
            rows.append(row)
    return pd.DataFrame(rows)

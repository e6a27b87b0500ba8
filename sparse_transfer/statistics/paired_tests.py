"""Paired tests, equivalence, ranks, and the smallest effect that a design can detect.

All take paired differences or blocks; the caller decides what a pair is (an upstream seed, a task).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

NAN = float("nan")
MOST_SIGNS = 20  # pairs whose 2^n sign patterns are enumerated
ROUNDING = 1e-12  # of the largest value: differences that are equal but for arithmetic


def sign_flip_test(differences: ArrayLike) -> float:
    """Exact two-sided p value of a mean difference of zero, by flipping every pattern of signs.

    Source: Fisher 1935, "The Design of Experiments", section 21. The smallest p of n pairs is
    2 / 2^n: with 5 upstream seeds nothing can be below 0.0625.

    Args:
        differences: (n,) paired differences, 1 ≤ n ≤ 20.

    Returns:
        The share of the 2^n patterns whose |mean| is at least the one observed; NaN for n = 0.
    """
    values = _differences(differences)
    if values.size == 0:
        return NAN
    if values.size > MOST_SIGNS:
        raise ValueError(f"{values.size} pairs are too many to enumerate; use wilcoxon_test.")
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    observed = abs(values.sum())
    slack = ROUNDING * np.abs(values).sum()  # patterns equal but for rounding count as equal
    return float(np.mean(np.abs(sums) >= observed - slack))


def wilcoxon_test(differences: ArrayLike) -> float:
    """Exact two-sided p value of the signed-rank test, with ties (mid-ranks) allowed.

    Source: Wilcoxon 1945. Zero differences are dropped, as he did. The null distribution is
    counted over all 2^n sign patterns by dynamic programming, so it is exact with ties too, where
    scipy's `method="exact"` is not.

    Args:
        differences: (n,) paired differences, for instance accuracy minus dense accuracy by task.

    Returns:
        p in (0, 1]; 1 when all differences are zero, NaN when there is none.
    """
    values = _differences(differences)
    if values.size == 0:
        return NAN
    values = values[np.abs(values) > ROUNDING * np.abs(values).max()]
    if values.size == 0:
        return 1.0
    doubled = np.rint(2 * stats.rankdata(np.abs(_merged(values)))).astype(
        int
    )  # mid-ranks → integers
    counts = np.zeros(doubled.sum() + 1)
    counts[0] = 1
    for rank in doubled:
        counts[rank:] = (counts[rank:] + counts[: counts.size - rank]) / 2
        counts[:rank] /= 2
    plus = int(doubled[values > 0].sum())
    tail = min(counts[: plus + 1].sum(), counts[plus:].sum())
    return float(min(1.0, 2 * tail))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p values adjusted for multiple testing, in the order given; NaN stays NaN and is not counted.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".

    Args:
        p_values: (m,) in [0, 1] or NaN.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, NAN)
    order = np.argsort(p, kind="stable")[: int(np.sum(~np.isnan(p)))]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return adjusted


def tost(differences: ArrayLike, margin: float) -> float:
    """p value of two one-sided t tests: small means that the mean lies inside ±margin.

    Source: Schuirmann 1987.

    Args:
        differences: (n,) paired differences.
        margin: half-width of the region of equivalence, above 0, same unit as the differences.

    Returns:
        The larger of the two one-sided p values; NaN for n < 2.
    """
    if margin <= 0:
        raise ValueError(f"margin {margin} is not above 0")
    values = _differences(differences)
    if values.size < 2:
        return NAN
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(values.size)
    if error == 0:
        return 0.0 if abs(mean) < margin else 1.0
    above_lower = stats.t.sf((mean + margin) / error, values.size - 1)
    below_upper = stats.t.cdf((mean - margin) / error, values.size - 1)
    return float(max(above_lower, below_upper))


def minimum_detectable_effect(
    sd: float, n: int, *, power: float = 0.8, significance: float = 0.05
) -> float:
    """The true mean difference that a two-sided paired t test would find with the given power.

    From the noncentral t distribution; about 1.4 × the half-width of the 95 % interval at 80 %
    power.

    Args:
        sd: standard deviation of the paired differences (ddof = 1), same unit as the result.
        n: number of pairs.

    Returns:
        The effect, in the unit of `sd`; NaN for n < 2 or an unknown sd.
    """
    if n < 2 or np.isnan(sd):
        return NAN
    return float(sd) * _detectable_in_sds(n, power, significance)


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over blocks (rank 1 is best) and the Friedman test that all methods are alike."""

    mean_ranks: NDArray[np.float64]
    statistic: float
    p: float
    blocks: int


def friedman(scores: ArrayLike, *, higher_is_better: bool = True) -> Ranks:
    """Mean ranks of methods over blocks, with the tie-corrected Friedman test.

    Source: Friedman 1937; Demšar 2006 for its use over data sets.

    Args:
        scores: (blocks, methods) without NaN; a block may be a task, a seed, a task × seed.

    Returns:
        Ranks; statistic and p are NaN for fewer than 2 blocks or methods and when all scores tie.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or np.isnan(table).any():
        raise ValueError(f"scores must be a full (blocks, methods) table, not {table.shape}")
    blocks, methods = table.shape
    ranks = stats.rankdata(-table if higher_is_better else table, axis=1)
    mean_ranks = ranks.mean(axis=0)
    # Between-method spread of ranks over its expectation: ties shrink both alike.
    within = np.sum((ranks - (methods + 1) / 2) ** 2)
    if blocks < 2 or methods < 2 or within == 0:
        return Ranks(mean_ranks, NAN, NAN, blocks)
    between = blocks**2 * np.sum((mean_ranks - (methods + 1) / 2) ** 2)
    statistic = float((methods - 1) * between / within)
    return Ranks(mean_ranks, statistic, float(stats.chi2.sf(statistic, methods - 1)), blocks)


@lru_cache(maxsize=256)
def _detectable_in_sds(n: int, power: float, significance: float) -> float:
    critical = float(stats.t.ppf(1 - significance / 2, n - 1))

    # Finding the effect with the wrong sign does not count as power.
    def shortfall(noncentrality: float) -> float:
        return float(stats.nct.sf(critical, n - 1, noncentrality)) - power

    solution = cast(float, optimize.brentq(shortfall, 0.0, 3 * critical + 10))
    return solution / math.sqrt(n)


def _merged(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """|values| with neighbours closer than rounding error made equal, so that they tie."""
    size = np.abs(values)
    order = np.argsort(size, kind="stable")
    gaps = np.diff(size[order], prepend=size[order[:1]]) > ROUNDING * size.max()
    merged = np.empty_like(size)
    starts = np.maximum.accumulate(np.where(gaps, np.arange(size.size), 0))
    merged[order] = size[order][starts]
    return merged


def _differences(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64).ravel()
    if np.isnan(array).any():
        raise ValueError("A paired difference is NaN; leave incomplete pairs out, and say so.")
    return array

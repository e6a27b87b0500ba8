"""Intervals: Student's t over seeds, Wilson for a share, BCa and hierarchical bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sparse_transfer.seeds import derive
from sparse_transfer.statistics.relative_error import (
    relative_error_by_seed,
    relative_error_increase,
)

Floats = NDArray[np.float64]
NAN = float("nan")
CHUNK = 4_000_000  # numbers held at once while resampling


class Interval(NamedTuple):
    """An estimate between its two confidence limits; NaN limits mean that there is no interval."""

    estimate: float
    low: float
    high: float


def t_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Mean ± t·sd/√n of independent values, the interval over seeds.

    Args:
        values: (n,) one value per replicate.
        confidence: two-sided coverage in (0, 1).

    Returns:
        The mean with its limits; the limits are NaN for n = 1, everything is NaN for n = 0.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return Interval(NAN, NAN, NAN)
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, NAN, NAN)
    error = float(sample.std(ddof=1)) / np.sqrt(sample.size)
    half = float(stats.t.ppf(0.5 + confidence / 2, sample.size - 1)) * error
    return Interval(mean, mean - half, mean + half)


def wilson_interval(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """The share successes / n with its score interval: the sampling error of a test set.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Args:
        successes: count of right answers, 0 ≤ successes ≤ n.
        n: count of test examples, at least 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    share = successes / n
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding must push no limit past the share or out of [0, 1].
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    return Interval(share, min(low, share), max(high, share))


def bca_interval(
    values: ArrayLike,
    statistic: Callable[..., NDArray[np.float64] | np.float64] = np.mean,
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval of a statistic of one sample.

    Source: Efron 1987, "Better bootstrap confidence intervals".

    Args:
        values: (n,) independent values, for instance r_t of the tasks.
        statistic: called as statistic(array, axis=-1); np.mean, np.median …
        resamples: how many bootstrap samples.
        seed: equal seeds give equal intervals.

    Returns:
        The statistic of the sample with its limits; NaN limits for n = 1, and limits equal to the
        estimate where all values are equal.
    """
    sample = np.asarray(values, dtype=np.float64)
    n = sample.size
    if n == 0:
        return Interval(NAN, NAN, NAN)
    estimate = float(statistic(sample, axis=-1))
    if n == 1:
        return Interval(estimate, NAN, NAN)
    generator = np.random.default_rng(derive(seed, "bca"))
    replicates = np.concatenate(
        [
            np.asarray(statistic(sample[generator.integers(0, n, (rows, n))], axis=-1))
            for rows in _chunks(resamples, n)
        ]
    )
    jackknife = np.array([float(statistic(np.delete(sample, i), axis=-1)) for i in range(n)])
    low, high = _bca_limits(estimate, replicates, jackknife, confidence)
    return Interval(estimate, low, high)


def hierarchical_bootstrap(
    dense_error: Floats | Sequence[ArrayLike],
    sparse_error: Floats | Sequence[ArrayLike],
    *,
    crossed: bool = True,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> Interval:
    """Mean relative error increase with an interval that covers both tasks and seeds.

    Tasks are resampled, then seeds. With `crossed`, one draw of upstream seeds serves all tasks and
    both models: the same checkpoints are transferred to every task, and sparse seed s started where
    dense seed s did. Without it, seeds are drawn anew for every task and model (the study's full
    fine-tuning, where seeds of different methods have nothing in common).

    Args:
        dense_error: (tasks, seeds) in [0, 1]; without `crossed` also one (seeds_t,) array per task.
        sparse_error: the same for the sparse model, same tasks in the same order.

    Returns:
        Mean of ratios of the seed means, with percentile limits; NaN limits for a single task.

    Raises:
        ValueError: a task without dense errors, which has no ratio: leave it out, and say so.
    """
    dense = [np.asarray(row, dtype=np.float64) for row in dense_error]
    sparse = [np.asarray(row, dtype=np.float64) for row in sparse_error]
    if len(dense) != len(sparse) or not dense:
        raise ValueError(f"{len(dense)} dense and {len(sparse)} sparse tasks")
    if not all(row.mean() > 0 for row in dense):
        raise ValueError("A task without dense errors has no relative error increase.")
    estimate = float(np.mean([s.mean() / d.mean() - 1 for d, s in zip(dense, sparse, strict=True)]))
    if len(dense) == 1:
        return Interval(estimate, NAN, NAN)
    generator = np.random.default_rng(derive(seed, "hierarchical"))
    draw = _crossed_means if crossed else _nested_means
    replicates = draw(dense, sparse, resamples, generator)
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail], method="nearest")
    return Interval(estimate, float(low), float(high))


def _crossed_means(
    dense: list[Floats], sparse: list[Floats], resamples: int, generator: np.random.Generator
) -> Floats:
    if len({row.shape for row in [*dense, *sparse]}) != 1:
        raise ValueError("Crossed seeds need the same seeds for every task and for both models.")
    tasks, seeds = len(dense), len(dense[0])
    seed_draw = generator.integers(0, seeds, (resamples, seeds))
    by_seed = relative_error_by_seed(np.stack(dense), np.stack(sparse))
    ratios = by_seed[:, seed_draw].mean(-1)  # (tasks, resamples)
    task_draw = generator.integers(0, tasks, (resamples, tasks))
    return ratios.T[np.arange(resamples)[:, None], task_draw].mean(-1)


def _nested_means(
    dense: list[Floats], sparse: list[Floats], resamples: int, generator: np.random.Generator
) -> Floats:
    tasks = len(dense)
    # A task that is drawn twice gets two draws of seeds: one ratio for every place it could take.
    shape = (resamples, tasks)
    drawn = [
        (_resampled_mean(d, shape, generator), _resampled_mean(s, shape, generator))
        for d, s in zip(dense, sparse, strict=True)
    ]
    ratios = np.stack([relative_error_increase(d, s) for d, s in drawn])
    ratios = np.where(np.isnan(ratios), np.inf, ratios)  # a draw without a single dense error
    task_draw = generator.integers(0, tasks, (resamples, tasks))
    places = np.arange(tasks)[None, :]
    return ratios[task_draw, np.arange(resamples)[:, None], places].mean(-1)


def _resampled_mean(
    values: Floats, shape: tuple[int, ...], generator: np.random.Generator
) -> Floats:
    return values[generator.integers(0, values.size, (*shape, values.size))].mean(-1)


def _bca_limits(
    estimate: float, replicates: Floats, jackknife: Floats, confidence: float
) -> tuple[float, float]:
    if np.ptp(replicates) == 0:
        return estimate, estimate
    count = replicates.size
    below = (np.sum(replicates < estimate) + np.sum(replicates <= estimate)) / 2 / count
    # All replicates on one side would give an infinite correction.
    bias = stats.norm.ppf(np.clip(below, 0.5 / count, 1 - 0.5 / count))
    leverage = jackknife.mean() - jackknife
    spread = np.sum(leverage**2) ** 1.5
    acceleration = np.sum(leverage**3) / (6 * spread) if spread > 0 else 0.0
    z = stats.norm.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    shares = stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))
    low, high = np.quantile(replicates, shares)
    return float(low), float(high)


def _chunks(total: int, width: int) -> list[int]:
    rows = max(1, CHUNK // max(width, 1))
    return [min(rows, total - start) for start in range(0, total, rows)]

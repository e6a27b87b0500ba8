"""Relative error increase over dense, per task and over tasks.

r_t = (e_sparse − e_dense) / e_dense with e = 1 − the task's own metric; positive = worse. Source:
Iofinova et al. 2022 (arXiv 2111.13445). The headline is the mean of ratios; the ratio of means and
the geometric mean weigh tasks differently and can differ from it in sign, so they stand beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NAN = float("nan")


def relative_error_increase(dense_error: ArrayLike, sparse_error: ArrayLike) -> NDArray[np.float64]:
    """(e_sparse − e_dense) / e_dense, elementwise; NaN where the dense model makes no error.

    Args:
        dense_error, sparse_error: errors in [0, 1], of shapes that broadcast.
    """
    dense = np.asarray(dense_error, dtype=np.float64)
    sparse = np.asarray(sparse_error, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(dense > 0, (sparse - dense) / dense, NAN)


@dataclass(frozen=True)
class Aggregates:
    """Relative error increase over tasks, in four ways.

    Attributes:
        mean_of_ratios: the headline, (1/T) Σ r_t; up-weights tasks with few dense errors.
        ratio_of_means: Σ e_sparse / Σ e_dense − 1; dominated by tasks with many errors.
        geometric_mean: exp(mean log(e_sparse/e_dense)) − 1; NaN if a sparse error is 0.
        median: median of r_t.
        n: tasks that entered; those without dense errors have no ratio and are left out of all.
        left_out: how many were.
    """

    mean_of_ratios: float
    ratio_of_means: float
    geometric_mean: float
    median: float
    n: int
    left_out: int

    @property
    def sign_agreed(self) -> bool:
        """Whether the three means say the same: all worse than dense, or all better."""
        return signs_agree(self.mean_of_ratios, self.ratio_of_means, self.geometric_mean)


def signs_agree(*values: float) -> bool:
    """Whether all values are above zero, or all are below."""
    return all(value > 0 for value in values) or all(value < 0 for value in values)


def aggregate(dense_error: ArrayLike, sparse_error: ArrayLike) -> Aggregates:
    """Aggregates of paired errors of tasks.

    Args:
        dense_error, sparse_error: (tasks,) seed means of the error, same order of tasks.
    """
    dense = np.asarray(dense_error, dtype=np.float64)
    sparse = np.asarray(sparse_error, dtype=np.float64)
    if dense.shape != sparse.shape or dense.ndim != 1:
        raise ValueError(f"shapes {dense.shape} and {sparse.shape}")
    usable = dense > 0
    dense, sparse = dense[usable], sparse[usable]
    left_out = int(np.sum(~usable))
    if dense.size == 0:
        return Aggregates(NAN, NAN, NAN, NAN, 0, left_out)
    ratios = relative_error_increase(dense, sparse)
    positive = bool(np.all(sparse > 0))
    return Aggregates(
        mean_of_ratios=float(ratios.mean()),
        ratio_of_means=float(sparse.sum() / dense.sum() - 1),
        geometric_mean=float(np.expm1(np.log(sparse / dense).mean())) if positive else NAN,
        median=float(np.median(ratios)),
        n=int(dense.size),
        left_out=left_out,
    )


def relative_error_by_seed(dense_error: ArrayLike, sparse_error: ArrayLike) -> NDArray[np.float64]:
    """One value of r_t per paired seed, whose mean is exactly r_t of the seed means.

    r_t + (e_sparse,s − (1 + r_t) e_dense,s) / mean_s e_dense: the first-order expansion of
    e_sparse,s / e_dense,s − 1 around the seed means. It varies over seeds as that ratio does, the
    denominator's noise included, but is centred on the headline and survives a seed without errors.

    Args:
        dense_error, sparse_error: (tasks, seeds); column s of both comes from the same upstream
            seed, so the two models share their initialisation.

    Returns:
        (tasks, seeds); a task without any dense error is NaN.
    """
    dense = np.asarray(dense_error, dtype=np.float64)
    sparse = np.asarray(sparse_error, dtype=np.float64)
    if dense.shape != sparse.shape or dense.ndim != 2:
        raise ValueError(f"shapes {dense.shape} and {sparse.shape}")
    mean = dense.mean(axis=1, keepdims=True)
    increase = relative_error_increase(mean, sparse.mean(axis=1, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return increase + np.where(mean > 0, (sparse - (1 + increase) * dense) / mean, NAN)

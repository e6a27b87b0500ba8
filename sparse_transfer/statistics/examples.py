"""Paired bootstrap over test examples: how much of r_t is the luck of this test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparse_transfer.errors import UserError
from sparse_transfer.predictions import Predictions
from sparse_transfer.seeds import derive
from sparse_transfer.statistics.relative_error import relative_error_increase

AccuracyMetric = Literal["top1", "mean_per_class"]


@dataclass(frozen=True)
class ExampleErrors:
    """How often the models of one cell (all its seeds) err on each test example.

    Attributes:
        example: (n,) str, sorted ids.
        label: (n,) int, the true class.
        error: (n,) in [0, 1], the (weighted) share of the models that are wrong.
    """

    example: NDArray[np.str_]
    label: NDArray[np.int64]
    error: NDArray[np.float64]


@dataclass(frozen=True)
class ExampleBootstrap:
    """r_t with percentile limits over resampled test sets, and the replicates, (resamples,)."""

    estimate: float
    low: float
    high: float
    replicates: NDArray[np.float64]


def example_errors(
    models: Sequence[Predictions], weights: Sequence[float] | None = None
) -> ExampleErrors:
    """Merge the predictions of one cell's seeds, matched by example id.

    Args:
        models: predictions of at least one model, all on the same examples.
        weights: one per model; equal if left out.

    Raises:
        UserError: the models did not see the same examples.
    """
    orders = [np.argsort(model.example) for model in models]
    example = models[0].example[orders[0]]
    label = models[0].label[orders[0]]
    if np.any(example[1:] == example[:-1]):
        raise _other_examples("An example id occurs twice in one file.")
    errors = []
    for model, order in zip(models, orders, strict=True):
        _check_same(example, label, model.example[order], model.label[order])
        errors.append(model.prediction[order] != model.label[order])
    share = np.average(np.stack(errors), axis=0, weights=weights)
    return ExampleErrors(example, label.astype(np.int64), share)


def paired_bootstrap(
    dense: Sequence[Predictions],
    sparse: Sequence[Predictions],
    *,
    metric: AccuracyMetric,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> ExampleBootstrap:
    """r_t = (e_sparse − e_dense) / e_dense with an interval over test examples.

    Every resampled test set is scored by all models, dense and sparse, so what is hard for both
    cancels. Seeds are averaged, not resampled: the interval is conditional on these checkpoints.

    Args:
        dense, sparse: predictions of one or more seeds each, on the same examples.
        metric: top1 resamples the examples; mean_per_class resamples within each class, so that
            no class is ever empty.
        resamples: how many test sets are drawn.
        seed: equal seeds give equal intervals.

    Returns:
        The estimate with percentile limits. A replicate without dense errors counts as infinitely
        worse, so the upper limit of a task with few dense errors may be infinite. Everything is
        NaN where the dense models make no error at all.

    Raises:
        UserError: dense and sparse models did not see the same examples.
    """
    return bootstrap_errors(
        example_errors(dense),
        example_errors(sparse),
        metric=metric,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )


def bootstrap_errors(
    dense: ExampleErrors,
    sparse: ExampleErrors,
    *,
    metric: AccuracyMetric,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> ExampleBootstrap:
    """`paired_bootstrap` for predictions that are merged already.

    Examples on which both cells err alike are interchangeable, so resampling n examples is one
    multinomial draw over the few distinct pairs of errors: exact, and independent of n in cost.
    """
    _check_same(dense.example, dense.label, sparse.example, sparse.label)
    generator = np.random.default_rng(derive(seed, "examples"))
    n = len(dense.label)
    group = dense.label if metric == "mean_per_class" else np.zeros(n, dtype=np.int64)
    groups = np.unique(group)
    pairs = np.stack([dense.error, sparse.error], axis=1).round(9)
    sums = np.zeros((resamples, 2))
    total = np.zeros(2)
    for value in groups:
        kinds, counts = np.unique(pairs[group == value], axis=0, return_counts=True)
        size = int(counts.sum())
        draws = generator.multinomial(size, counts / size, size=resamples)
        sums += draws @ kinds / size
        total += counts @ kinds / size
    estimate = float(relative_error_increase(total[0], total[1]))
    if np.isnan(estimate):
        nothing = np.full(resamples, np.nan)
        return ExampleBootstrap(estimate, estimate, estimate, nothing)
    replicates = relative_error_increase(sums[:, 0], sums[:, 1])
    replicates = np.where(np.isnan(replicates), np.inf, replicates)
    low, high = percentile_limits(replicates, confidence)
    return ExampleBootstrap(estimate, low, high, replicates)


def percentile_limits(
    replicates: NDArray[np.float64], confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile limits of bootstrap replicates, of which some may be infinite."""
    tail = (1 - confidence) / 2
    # Interpolating between infinities gives NaN: take replicates themselves, outwards.
    low = np.quantile(replicates, tail, method="lower")
    high = np.quantile(replicates, 1 - tail, method="higher")
    return float(low), float(high)


def _check_same(
    example: NDArray[np.str_],
    label: NDArray[np.int64],
    other_example: NDArray[np.str_],
    other_label: NDArray[np.int64],
) -> None:
    if len(example) != len(other_example):
        raise _other_examples(f"One has {len(example)} examples, the other {len(other_example)}.")
    different = np.flatnonzero(example != other_example)
    if different.size:
        first = int(different[0])
        raise _other_examples(
            f"{different.size} of {len(example)} ids differ, first '{example[first]}' and "
            f"'{other_example[first]}'."
        )
    if np.any(label != other_label):
        first = example[int(np.flatnonzero(label != other_label)[0])]
        raise _other_examples(f"The label of example '{first}' differs.")


def _other_examples(why: str) -> UserError:
    return UserError(
        "These predictions cannot be compared example by example.",
        why,
        "Compare runs on the same task and split; `split_hash` in their results must be equal.",
    )

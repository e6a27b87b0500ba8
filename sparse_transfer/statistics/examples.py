"""Paired bootstrap over test examples: how much of r_t is the luck of this test set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparse_transfer.errors import UserError
from sparse_transfer.predictions import Predictions
from sparse_transfer.seeds import derive
from sparse_transfer.statistics.relative_error import relative_error_increase

AccuracyMetric = Literal["top1", "mean_per_class"]

_DRAWN_AT_ONCE = 100_000  # examples of a block of test sets: what fits into a core's cache


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
    models: Iterable[Predictions], weights: Sequence[float] | None = None
) -> ExampleErrors:
    """Merge the predictions of one cell's seeds, matched by example id.

    Args:
        models: predictions of at least one model, all on the same examples.
        weights: one per model; equal if left out.

    Raises:
        UserError: the models did not see the same examples.
    """
    order = ExampleOrder()
    share = order.share(models, weights)
    return ExampleErrors(order.example, order.label, share)


class ExampleOrder:
    """Brings the models of one test set into one order of examples, that of the sorted ids.

    Ids are sorted and compared once for all models that share one array of them, as those that
    `Predictions.load` reads do.

    Attributes:
        example: (n,) str, sorted ids; known once a model was seen, as is `label`.
        label: (n,) int, the true classes.
    """

    def __init__(self) -> None:
        self.example: NDArray[np.str_] = np.zeros(0, dtype=str)
        self.label: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._orders: dict[int, tuple[NDArray[np.str_], NDArray[np.intp]]] = {}

    def share(
        self, models: Iterable[Predictions], weights: Sequence[float] | None = None
    ) -> NDArray[np.float64]:
        """(n,) in [0, 1], the (weighted) share of the models that are wrong on each example.

        Raises:
            UserError: a model did not see the examples of the models before it.
        """
        return np.average(np.stack([self._wrong(one) for one in models]), axis=0, weights=weights)

    def _wrong(self, model: Predictions) -> NDArray[np.bool_]:
        ids = model.example
        is_first, is_known = not self._orders, id(ids) in self._orders
        if not is_known:  # the array is held, so that its address stays its own
            self._orders[id(ids)] = ids, np.argsort(ids)
        order = self._orders[id(ids)][1]
        label = model.label[order]
        if is_first:
            self.example, self.label = ids[order], label.astype(np.int64)
            if np.any(self.example[1:] == self.example[:-1]):
                raise _other_examples("An example id occurs twice in one file.")
        elif is_known:
            _check_labels(self.example, self.label, label)
        else:
            check_same(self.example, self.label, ids[order], label)
        return model.prediction[order] != label


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

    Raises:
        UserError: dense and sparse models did not see the same examples.
    """
    check_same(dense.example, dense.label, sparse.example, sparse.label)
    error = np.stack([dense.error, sparse.error], axis=1)
    sums = resampled_errors(dense.label, error, metric=metric, resamples=resamples, seed=seed)
    return ratio_of_errors(sums[:, 0], sums[:, 1], confidence=confidence)


def resampled_errors(
    label: NDArray[np.int64],
    error: NDArray[np.float64],
    *,
    metric: AccuracyMetric,
    resamples: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """The errors of many cells on the test set as it is and on the same resampled test sets.

    An example on which no cell errs adds nothing wherever it is drawn: how many draws fall on the
    others is one binomial number per test set (and class), and only these are drawn one by one.

    Args:
        label: (n,) true classes.
        error: (n, cells) shares of models that are wrong, see `ExampleErrors`.
        metric: top1 draws from all examples, mean_per_class within each class.
        resamples, seed: see `paired_bootstrap`.

    Returns:
        (1 + resamples, cells): the metric's error, first of the test set itself.
    """
    generator = np.random.default_rng(derive(seed, "examples"))
    stratum = np.unique(label, return_inverse=True)[1] if metric == "mean_per_class" else label * 0
    size = np.bincount(stratum)
    # with this weight the sum over examples is the mean over strata of their mean error
    weighted = error / (size[stratum] * len(size))[:, None]
    order = np.argsort(stratum, kind="stable")
    order = order[error[order].any(axis=1)]
    weighted, hit = weighted[order], np.bincount(stratum[order], minlength=len(size))
    start = np.cumsum(hit) - hit
    found = np.empty((1 + resamples, error.shape[1]))
    found[0] = weighted.sum(axis=0)
    block = max(1, _DRAWN_AT_ONCE // max(1, len(order)))
    for first in range(0, resamples, block):
        count = min(block, resamples - first)
        draws = generator.binomial(size, hit / size, size=(count, len(size))).ravel()
        place = (np.arange(count)[:, None] * len(order) + start).ravel()
        within = generator.random(int(draws.sum())) * np.repeat(np.tile(hit, count), draws)
        drawn = np.repeat(place, draws) + within.astype(np.int64)
        times = np.bincount(drawn, minlength=count * len(order)).reshape(count, len(order))
        found[1 + first : 1 + first + count] = times @ weighted
    return found


def ratio_of_errors(
    dense: NDArray[np.float64], sparse: NDArray[np.float64], *, confidence: float = 0.95
) -> ExampleBootstrap:
    """The relative error increase of two columns of `resampled_errors`, with its limits."""
    ratios = relative_error_increase(dense, sparse)
    estimate, replicates = float(ratios[0]), ratios[1:]
    if np.isnan(estimate):
        nothing = np.full(len(replicates), np.nan)
        return ExampleBootstrap(estimate, estimate, estimate, nothing)
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


def check_same(
    example: NDArray[np.str_],
    label: NDArray[np.int64],
    other_example: NDArray[np.str_],
    other_label: NDArray[np.int64],
) -> None:
    """Refuse two sets of predictions, sorted by id, that are not of the same examples.

    Args:
        example, other_example: (n,) str, sorted. label, other_label: (n,) int.

    Raises:
        UserError: ids or labels differ; the first is named.
    """
    if len(example) != len(other_example):
        raise _other_examples(f"One has {len(example)} examples, the other {len(other_example)}.")
    different = np.flatnonzero(example != other_example)
    if different.size:
        first = int(different[0])
        raise _other_examples(
            f"{different.size} of {len(example)} ids differ, first '{example[first]}' and "
            f"'{other_example[first]}'."
        )
    _check_labels(example, label, other_label)


def _check_labels(
    example: NDArray[np.str_], label: NDArray[np.int64], other_label: NDArray[np.int64]
) -> None:
    if np.any(label != other_label):
        first = example[int(np.flatnonzero(label != other_label)[0])]
        raise _other_examples(f"The label of example '{first}' differs.")


def _other_examples(why: str) -> UserError:
    return UserError(
        "These predictions cannot be compared example by example.",
        why,
        "Compare runs on the same task and split; `split_hash` in their results must be equal.",
    )

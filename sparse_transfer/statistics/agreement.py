"""Two models on the same test examples: where they differ, and which class pays.

Accuracy can stay while predictions change. A flip is an example on which the predictions differ; a
negative flip is one that the dense model has right and the sparse one wrong. Sources: Yan et al.
2021, "Positive-Congruent Training" (arXiv 2011.09161) for negative flips; Cohen 1960 for kappa;
McNemar 1947, with the exact binomial p-value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sparse_transfer.predictions import Predictions
from sparse_transfer.statistics.examples import check_same

NAN = float("nan")


@dataclass(frozen=True)
class Agreement:
    """How two models' predictions relate.

    Attributes:
        n: examples.
        flips: predictions that differ; where both are wrong in two ways, they count here alone.
        negative_flips: examples that the first has right and the second wrong.
        positive_flips: the reverse.
        kappa: Cohen's kappa of the two predictions: 1 for equal ones, 0 for as much agreement as
            chance gives; NaN where both name one class throughout.
        mcnemar_p: two-sided exact p-value that both are right equally often: negative flips are
            then one half of all examples on which just one is right.
    """

    n: int
    flips: int
    negative_flips: int
    positive_flips: int
    kappa: float
    mcnemar_p: float


@dataclass(frozen=True)
class ByClass:
    """Accuracy within each class; classes without a test example are NaN, their count 0."""

    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def worst(self) -> int:
        """The class of least accuracy, the first of several."""
        return int(np.nanargmin(self.accuracy))


def agreement(first: Predictions, second: Predictions) -> Agreement:
    """Compare two models, matched by example id; the first one is the reference.

    Raises:
        UserError: they did not see the same examples.
    """
    label, a = first.label, first.prediction
    ids, other_label, b = second.example, second.label, second.prediction
    if not np.array_equal(first.example, ids):
        order, other_order = np.argsort(first.example), np.argsort(ids)
        label, a = label[order], a[order]
        other_label, b = other_label[other_order], b[other_order]
        check_same(first.example[order], label, ids[other_order], other_label)
    else:
        check_same(ids, label, ids, other_label)
    negative = int(np.sum((a == label) & (b != label)))
    positive = int(np.sum((a != label) & (b == label)))
    return Agreement(
        n=len(label),
        flips=int(np.sum(a != b)),
        negative_flips=negative,
        positive_flips=positive,
        kappa=cohen_kappa(a, b),
        mcnemar_p=mcnemar_p(negative, positive),
    )


def cohen_kappa(first: NDArray[np.int32], second: NDArray[np.int32]) -> float:
    """(p_o − p_e) / (1 − p_e): agreement beyond what the two marginals give by chance.

    Args:
        first, second: (n,) predicted classes of the same examples, n ≥ 1.
    """
    classes = int(max(first.max(), second.max())) + 1
    observed = float(np.mean(first == second))
    shares = [np.bincount(p, minlength=classes) / len(p) for p in (first, second)]
    expected = float(shares[0] @ shares[1])
    return (observed - expected) / (1 - expected) if expected < 1 else NAN


def mcnemar_p(negative: int, positive: int) -> float:
    """Exact two-sided p-value of McNemar's test from the two discordant counts; 1 if both are 0."""
    if negative + positive == 0:
        return 1.0
    return float(stats.binomtest(negative, negative + positive, 0.5).pvalue)


def by_class(predictions: Predictions, classes: int) -> ByClass:
    """Top-1 accuracy within each of `classes` classes."""
    right = (predictions.prediction == predictions.label).astype(float)
    count = np.bincount(predictions.label, minlength=classes)
    hits = np.bincount(predictions.label, weights=right, minlength=classes)
    with np.errstate(divide="ignore", invalid="ignore"):
        return ByClass(np.where(count > 0, hits / count, NAN), count)

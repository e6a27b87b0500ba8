"""Agreement of two models against counts by hand, scikit-learn and the binomial tail."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score, recall_score

from sparse_transfer import statistics
from sparse_transfer.errors import UserError
from sparse_transfer.predictions import Predictions


def predictions(predicted: list[int], labels: list[int], ids: list[str] | None = None):
    classes = max(*predicted, *labels) + 1
    names = ids or [f"x{i:03}" for i in range(len(labels))]
    return Predictions.from_logits(np.array(names), np.array(labels), np.eye(classes)[predicted])


LABELS = [0, 0, 1, 1, 2, 2]


def test_every_kind_of_flip_by_hand():
    dense = predictions([0, 0, 1, 2, 0, 1], LABELS)  # right, right, right, wrong, wrong, wrong
    sparse = predictions([0, 1, 2, 1, 1, 1], LABELS)  # =, negative, negative, positive, flip, =
    found = statistics.agreement(dense, sparse)
    assert (found.n, found.flips) == (6, 4)
    assert (found.negative_flips, found.positive_flips) == (2, 1)
    # agree on 2 of 6; marginals 3, 2, 1 and 1, 4, 1 of 6 by class
    expected = (3 * 1 + 2 * 4 + 1 * 1) / 36
    assert found.kappa == pytest.approx((2 / 6 - expected) / (1 - expected))
    # three discordant ones: P(at most 1 or at least 2 of 3) = 1
    assert found.mcnemar_p == pytest.approx(1.0)


def test_examples_are_matched_by_id_not_by_place():
    dense = predictions([0, 1, 2], [0, 1, 2], ["a", "b", "c"])
    sparse = predictions([2, 0, 0], [2, 0, 1], ["c", "a", "b"])
    found = statistics.agreement(dense, sparse)
    assert (found.flips, found.negative_flips, found.positive_flips) == (1, 1, 0)


def test_other_examples_are_refused():
    with pytest.raises(UserError, match="example by example"):
        statistics.agreement(predictions([0, 1], [0, 1]), predictions([0], [0]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=50
    )
)
def test_invariants_and_kappa_of_scikit_learn(rows):
    labels, first, second = map(list, zip(*rows, strict=True))
    one, other = predictions(first, labels), predictions(second, labels)
    found, reverse = statistics.agreement(one, other), statistics.agreement(other, one)
    assert found.negative_flips == reverse.positive_flips
    assert found.negative_flips + found.positive_flips <= found.flips <= found.n
    # accuracy is what negative and positive flips leave of it
    difference = sum(p == y for p, y in zip(second, labels, strict=True)) - sum(
        p == y for p, y in zip(first, labels, strict=True)
    )
    assert difference == found.positive_flips - found.negative_flips
    if not math.isnan(found.kappa):
        assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert statistics.agreement(one, one).flips == 0


def test_kappa_of_two_models_that_name_one_class_is_not_a_number():
    same = predictions([1, 1], [0, 1])
    assert math.isnan(statistics.agreement(same, same).kappa)


@settings(max_examples=60, deadline=None)
@given(negative=st.integers(0, 60), positive=st.integers(0, 60))
def test_mcnemar_is_twice_the_smaller_tail(negative, positive):
    n = negative + positive
    tail = float(stats.binom.cdf(min(negative, positive), n, 0.5))
    assert statistics.mcnemar_p(negative, positive) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_by_hand():
    # 1 against 5: 2 (C(6,0) + C(6,1)) / 2^6
    assert statistics.mcnemar_p(1, 5) == pytest.approx(2 * (1 + 6) / 64)


def test_accuracy_by_class_is_recall_and_absent_classes_have_none():
    model = predictions([0, 1, 1, 1, 0, 2], LABELS)
    found = statistics.by_class(model, 4)
    for k in range(3):
        recall = recall_score(LABELS, model.prediction, labels=[k], average="macro")
        assert found.accuracy[k] == pytest.approx(recall)
    assert math.isnan(found.accuracy[3]) and found.count.tolist() == [2, 2, 2, 0]
    assert found.worst == 0

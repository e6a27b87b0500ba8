"""Metrics against scikit-learn and against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.metrics import log_loss as sklearn_log_loss

from sparse_transfer.calibration import BINS
from sparse_transfer.metrics.ece import METRIC as ECE
from sparse_transfer.metrics.log_loss import METRIC as LOG_LOSS
from sparse_transfer.metrics.mean_per_class import METRIC as MEAN_PER_CLASS
from sparse_transfer.metrics.top1 import METRIC as TOP1
from sparse_transfer.predictions import Predictions

CLASSES = 7


def made(n: int = 500, seed: int = 0, classes: int = CLASSES) -> tuple[Predictions, np.ndarray]:
    """Predictions of a model that is right more often than by chance, and its probabilities."""
    generator = np.random.default_rng(seed)
    # Class 0 is common and class `classes - 1` never occurs: the per-class mean must differ.
    labels = generator.choice(classes - 1, n, p=np.arange(classes - 1, 0, -1) / 21)
    logits = generator.normal(size=(n, classes)) + 1.5 * (np.arange(classes) == labels[:, None])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Predictions.from_logits(np.arange(n).astype(str), labels, logits), probabilities


def hand_made(labels: list[int], probabilities: list[list[float]]) -> Predictions:
    ids = np.array([str(i) for i in range(len(labels))])
    return Predictions.from_logits(ids, np.array(labels), np.log(np.array(probabilities)))


@pytest.mark.parametrize("seed", range(3))
def test_accuracies_agree_with_scikit_learn(seed):
    predictions, _ = made(seed=seed)
    label, prediction = predictions.label, predictions.prediction
    assert TOP1.compute(predictions, CLASSES) == pytest.approx(accuracy_score(label, prediction))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        expected = balanced_accuracy_score(label, prediction)
    assert MEAN_PER_CLASS.compute(predictions, CLASSES) == pytest.approx(expected)
    assert MEAN_PER_CLASS.compute(predictions, CLASSES) != TOP1.compute(predictions, CLASSES)


def test_log_loss_agrees_with_scikit_learn():
    predictions, probabilities = made()
    expected = sklearn_log_loss(predictions.label, probabilities, labels=range(CLASSES))
    assert LOG_LOSS.compute(predictions, CLASSES) == pytest.approx(expected, rel=1e-6)


def test_ece_agrees_with_scikit_learns_reliability_curve():
    predictions, probabilities = made(n=3000)
    confidence = probabilities.max(axis=1)
    right = predictions.prediction == predictions.label
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=BINS)
    counts, _ = np.histogram(confidence, bins=BINS, range=(0, 1))
    gaps = np.abs(accuracy - mean_confidence)
    expected = np.sum(counts[counts > 0] * gaps) / len(confidence)
    assert ECE.compute(predictions, CLASSES) == pytest.approx(expected, abs=1e-6)


def test_values_by_hand():
    predictions = hand_made([0, 0, 0, 1], [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    assert TOP1.compute(predictions, 2) == 0.75
    assert MEAN_PER_CLASS.compute(predictions, 2) == pytest.approx((2 / 3 + 1) / 2)
    expected = -np.log([0.9, 0.8, 0.3, 0.6]).mean()
    assert LOG_LOSS.compute(predictions, 2) == pytest.approx(expected, rel=1e-6)
    # Four confidences in four bins: right, right, wrong, right.
    assert ECE.compute(predictions, 2) == pytest.approx((0.1 + 0.2 + 0.7 + 0.4) / 4, abs=1e-6)


def test_ece_sums_gaps_within_a_bin():
    """Two examples of confidence .8, one right: one bin, accuracy .5, gap .3."""
    predictions = hand_made([0, 1], [[0.8, 0.2], [0.8, 0.2]])
    assert ECE.compute(predictions, 2) == pytest.approx(0.3, abs=1e-6)


def test_uniform_guess_has_log_loss_log_classes():
    predictions = hand_made([0, 1, 2], [[1 / 3] * 3] * 3)
    assert LOG_LOSS.compute(predictions, 3) == pytest.approx(np.log(3), rel=1e-6)

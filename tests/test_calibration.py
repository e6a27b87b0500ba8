"""Calibration scores by hand; the fitted temperature against an optimiser told nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss as sklearn_log_loss

from sparse_transfer import calibration
from sparse_transfer.calibration import expected_calibration_error, fit_temperature, scores


def sample(seed: int, n: int = 200, classes: int = 5, sharpness: float = 3.0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    logits = generator.normal(0, 1, (n, classes))
    logits[np.arange(n), labels] += 1.0
    return sharpness * logits, labels


def test_calibration_error_by_hand():
    # bins of 1/15: .5 and .52 lie in (7/15, 8/15], .9 in (13/15, 14/15], 1.0 in the last one
    confidence = [0.5, 0.52, 0.9, 1.0]
    right = [True, False, False, True]
    by_hand = (abs(1 - 0.5 - 0.52) + abs(0 - 0.9) + abs(1 - 1.0)) / 4
    assert expected_calibration_error(confidence, right) == pytest.approx(by_hand)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    edge = 3 / 15
    assert expected_calibration_error([edge, edge - 1e-6], [True, False]) == pytest.approx(
        abs(1 - 2 * edge + 1e-6) / 2
    )


def test_scores_by_hand():
    probs = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    found = scores(np.log(probs), [0, 1])
    assert found.brier == pytest.approx(
        ((0.3**2 + 0.2**2 + 0.1**2) + (0.1**2 + 0.7**2 + 0.6**2)) / 2
    )
    assert found.log_loss == pytest.approx(-(np.log(0.7) + np.log(0.3)) / 2)
    assert found.ece == pytest.approx((0.3 + 0.6) / 2)


def test_the_log_loss_is_that_of_scikit_learn():
    logits, labels = sample(0)
    probs = np.exp(calibration.log_probabilities(logits, 2.0))
    assert scores(logits, labels, 2.0).log_loss == pytest.approx(sklearn_log_loss(labels, probs))


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_is_the_one_that_an_optimiser_finds(seed, sharpness):
    logits, labels = sample(seed, sharpness=sharpness)
    found = fit_temperature(logits, labels)
    best: Any = minimize_scalar(
        lambda log_t: scores(logits, labels, np.exp(log_t)).log_loss,
        bounds=(np.log(calibration.COLDEST), np.log(calibration.HOTTEST)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert found.value == pytest.approx(np.exp(best.x), rel=1e-5)
    assert not found.at_limit and found.images == len(labels)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.floats(0.5, 2.0))
def test_scaling_the_logits_scales_the_temperature(seed, factor):
    logits, labels = sample(seed, n=60, sharpness=1.0)
    one, other = fit_temperature(logits, labels), fit_temperature(factor * logits, labels)
    if not (one.at_limit or other.at_limit):
        assert other.value == pytest.approx(factor * one.value, rel=1e-6)
    assert scores(logits, labels, one.value).log_loss <= scores(logits, labels).log_loss + 1e-12


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 20.0))
def test_a_temperature_changes_no_prediction(seed, temperature):
    logits, _ = sample(seed, n=20)
    scaled = calibration.log_probabilities(logits, temperature)
    assert np.array_equal(scaled.argmax(axis=1), logits.argmax(axis=1))


def test_a_model_that_is_always_right_cannot_be_too_sure():
    found = fit_temperature(5 * np.eye(3), np.arange(3))
    assert found.value == calibration.COLDEST and found.at_limit


def test_a_model_that_is_always_wrong_should_say_nothing():
    found = fit_temperature(5 * np.eye(3), (np.arange(3) + 1) % 3)
    assert found.value == calibration.HOTTEST and found.at_limit

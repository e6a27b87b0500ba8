"""How far probabilities can be trusted, and the one temperature that mends most of it.

Pure functions over logits. Source: Guo et al. 2017, "On Calibration of Modern Neural Networks"
(arXiv 1706.04599); the score of Brier 1950 in its form for several classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

BINS = 15
# Beyond these a fit says no more than "as sharp as can be" or "knows nothing".
COLDEST, HOTTEST = 0.05, 20.0


@dataclass(frozen=True)
class Scores:
    """Calibration of one model on one set of images.

    Attributes:
        ece: expected calibration error, in [0, 1], see `expected_calibration_error`.
        log_loss: mean of −log p(true class), in nats.
        brier: mean of Σ_k (p_k − [k is the true class])², in [0, 2].
    """

    ece: float
    log_loss: float
    brier: float


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature T: probabilities become softmax(logits / T).

    Attributes:
        value: T, between `COLDEST` and `HOTTEST`; above 1 where the model is too sure of itself.
        images: on how many held-out images it was fitted.
        at_limit: the best T lies at or beyond a limit, as where every held-out image is right.
    """

    value: float
    images: int
    at_limit: bool


def log_probabilities(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
    """Log-softmax of logits / temperature over the last axis, in float64."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    shifted = scaled - scaled.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def expected_calibration_error(confidence: ArrayLike, right: ArrayLike) -> float:
    """ECE = Σ_b (n_b / n) |accuracy_b − confidence_b| over 15 bins ((b−1)/15, b/15].

    Args:
        confidence: (n,) in [0, 1], the probability of the predicted class.
        right: (n,) bool, whether that class is the true one.
    """
    sure = np.asarray(confidence, dtype=np.float64).clip(0.0, 1.0)
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    surplus = np.bincount(bins, weights=np.asarray(right, np.float64) - sure, minlength=BINS)
    return float(np.abs(surplus).sum() / len(sure))


def scores(logits: ArrayLike, labels: ArrayLike, temperature: float = 1.0) -> Scores:
    """All scores of softmax(logits / temperature).

    Args:
        logits: (n, classes). labels: (n,) int, the true classes.
    """
    log_probs = log_probabilities(logits, temperature)
    true = np.asarray(labels, dtype=np.int64)
    of_true = np.take_along_axis(log_probs, true[:, None], axis=1)[:, 0]
    probs = np.exp(log_probs)
    # Σ_k (p_k − [k = y])² = Σ_k p_k² − 2 p_y + 1
    squared = np.square(probs).sum(axis=1) - 2 * np.exp(of_true) + 1
    return Scores(
        ece=expected_calibration_error(probs.max(axis=1), log_probs.argmax(axis=1) == true),
        log_loss=float(-of_true.mean()),
        brier=float(squared.mean()),
    )


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> Temperature:
    """The temperature of least log-loss on images that the logits' model was not trained on.

    The log-loss is convex in 1/T, so its derivative, the mean over images of
    E_p[logit] − logit(true class), has one zero at most: no starting point, no step size.

    Args:
        logits: (n, classes), n ≥ 1. labels: (n,) int, the true classes.
    """
    z = np.asarray(logits, dtype=np.float64)
    true = np.asarray(labels, dtype=np.int64)
    z_true = np.take_along_axis(z, true[:, None], axis=1)[:, 0]

    def slope(sharpness: float) -> float:
        return float(((np.exp(log_probabilities(z * sharpness)) * z).sum(axis=1) - z_true).mean())

    flattest, sharpest = 1 / HOTTEST, 1 / COLDEST
    if slope(sharpest) <= 0:
        return Temperature(COLDEST, len(z), at_limit=True)
    if slope(flattest) >= 0:
        return Temperature(HOTTEST, len(z), at_limit=True)
    found: Any = brentq(slope, flattest, sharpest, xtol=1e-12)
    return Temperature(1 / float(found), len(z), at_limit=False)

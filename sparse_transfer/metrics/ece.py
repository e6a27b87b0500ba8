"""Expected calibration error: how far confidence is from accuracy, over 15 confidence bins.

ECE = Σ_b (n_b / n) |accuracy_b − confidence_b| over equal-width bins ((b−1)/15, b/15] of the
confidence, the probability of the predicted class. Source: Guo et al. 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

import numpy as np

from sparse_transfer.calibration import expected_calibration_error
from sparse_transfer.metrics import Metric
from sparse_transfer.predictions import Predictions


def ece(predictions: Predictions, classes: int) -> float:
    """The expected calibration error, in [0, 1]; 0 for a calibrated model."""
    confidence = np.exp(predictions.top_log_prob[:, 0].astype(np.float64))
    return expected_calibration_error(confidence, predictions.prediction == predictions.label)


METRIC = Metric("ece", version=1, higher_is_better=False, function=ece)

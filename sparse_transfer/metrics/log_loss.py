"""Log-loss: mean negative log-probability of the true class, in nats."""

from __future__ import annotations

import numpy as np

from sparse_transfer.metrics import Metric
from sparse_transfer.predictions import Predictions


def log_loss(predictions: Predictions, classes: int) -> float:
    """The mean of −log p(true class), at least 0; log(classes) for a uniform guess."""
    return float(-np.mean(predictions.log_prob, dtype=np.float64))


METRIC = Metric("log_loss", version=1, higher_is_better=False, function=log_loss)

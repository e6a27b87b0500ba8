"""Top-1 accuracy: the share of test examples whose most probable class is the true one."""

from __future__ import annotations

import numpy as np

from sparse_transfer.metrics import Metric
from sparse_transfer.predictions import Predictions


def top1(predictions: Predictions, classes: int) -> float:
    """The share of right predictions, in [0, 1]; ties of logits go to the lowest class index."""
    return float(np.mean(predictions.prediction == predictions.label))


METRIC = Metric("top1", version=1, higher_is_better=True, function=top1)

"""Mean per-class accuracy: top-1 within each class, averaged over the classes.

Classes without a test example are left out, as in scikit-learn's `balanced_accuracy_score`; the
study's code divides by their zero counts and returns NaN. Which tasks use it: Kornblith et al.
2019 (arXiv 1805.08974) and Salman et al. 2020 (arXiv 2007.08489).
"""

from __future__ import annotations

import numpy as np

from sparse_transfer.metrics import Metric
from sparse_transfer.predictions import Predictions


def mean_per_class(predictions: Predictions, classes: int) -> float:
    """The unweighted mean over classes of the share of right predictions, in [0, 1]."""
    right = predictions.prediction == predictions.label
    examples = np.bincount(predictions.label, minlength=classes)
    right_ones = np.bincount(predictions.label, weights=right, minlength=classes)
    present = examples > 0
    return float(np.mean(right_ones[present] / examples[present]))


METRIC = Metric("mean_per_class", version=1, higher_is_better=True, function=mean_per_class)

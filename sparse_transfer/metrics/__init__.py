"""Metrics over stored predictions; one file per metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparse_transfer.errors import UserError
from sparse_transfer.predictions import Predictions


@dataclass(frozen=True)
class Metric:
    """One number of one model on one test set.

    Attributes:
        name: the plugin's name.
        version: raised whenever a stored value would change, so that reports know to recompute.
        higher_is_better: the direction of the metric.
        function: (predictions of n ≥ 1 examples, number of classes) → the value.
    """

    name: str
    version: int
    higher_is_better: bool
    function: Callable[[Predictions, int], float]

    def compute(self, predictions: Predictions, classes: int) -> float:
        """The metric's value.

        Args:
            predictions: of one model on one test set.
            classes: how many classes the task has.

        Raises:
            UserError: there is no example, or a label that is not one of the classes.
        """
        labels = np.asarray(predictions.label)
        if len(labels) == 0:
            raise UserError(
                f"{self.name} cannot be computed.",
                "There is not a single test example.",
                "Check the task's test split with `sparse-transfer check`.",
            )
        if labels.min() < 0 or labels.max() >= classes:
            raise UserError(
                f"{self.name} cannot be computed.",
                f"Labels run from {labels.min()} to {labels.max()}, of {classes} classes.",
                "Check the number of classes on the task's card.",
            )
        return float(self.function(predictions, classes))

"""After how many tasks a pruned model has paid back what it cost upstream."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sparse_transfer.statistics.intervals import Interval, t_interval

NAN = float("nan")


class BreakEven(NamedTuple):
    """Tasks until the upstream cost is paid back, and in words what stands behind it.

    Attributes:
        tasks: whole tasks; 0 where there is no extra cost to pay back, infinity where nothing is
            saved, NaN where it cannot be said.
        saving: seconds per task (dense − sparse), with an interval over tasks.
    """

    tasks: float
    saving: Interval


def break_even(extra: float, dense_seconds: ArrayLike, sparse_seconds: ArrayLike) -> BreakEven:
    """The number of tasks whose saved training time outweighs the extra upstream time.

    A saving counts only if its 95 % interval over tasks lies above zero: times of one machine
    scatter, and a difference of noise would promise a number of tasks that means nothing.

    Args:
        extra: seconds that the sparse upstream model cost more than the dense one.
        dense_seconds, sparse_seconds: (tasks,) training time of the same tasks.
    """
    saved = np.asarray(dense_seconds, dtype=np.float64) - np.asarray(sparse_seconds, np.float64)
    saving = t_interval(saved)
    if math.isnan(saving.low) or math.isnan(extra):
        return BreakEven(NAN, saving)
    if saving.low <= 0:
        return BreakEven(0.0 if extra <= 0 and saving.high > 0 else math.inf, saving)
    return BreakEven(float(max(0, math.ceil(extra / saving.estimate))), saving)

"""When channels go and how many: step sizes that are shaped like learning rates.

A schedule is a list of milestones: at step t the MACs must have fallen by that share of what has
to go in all. Milestones are cumulative, so whatever rounding or a cap leaves over at one event is
made up for at the next. Shares are integrals of the shape over training, which makes them exact
for any number of updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.schedule import to_step

StepSize = Literal["constant", "step", "cosine", "cubic", "warmup", "learning_rate"]
WARMUP = 0.1  # share of the window in which `warmup` rises
DROPS = ((0.5, 1.0), (0.75, 0.1), (1.0, 0.01))  # `step`: the size until each share of the window


def done(shape: StepSize, progress: float) -> float:
    """Integral of the step size from 0 to `progress` in [0, 1], over the integral to 1.

    `constant`; `step`: 1, then 0.1 from half of the window, 0.01 from three quarters; `cosine`:
    half a cosine down to 0; `cubic`: a quadratic decay, the cumulative curve of Zhu & Gupta 2017
    (arXiv 1710.01878); `warmup`: a line from 0 over the first tenth, then half a cosine.
    """
    if shape == "constant":
        return progress
    if shape == "cubic":
        return 1.0 - (1.0 - progress) ** 3
    if shape == "cosine":
        return _cosine(progress)
    if shape == "step":
        return _steps(progress) / _steps(1.0)
    assert shape == "warmup", f"{shape} is not a function of progress alone"
    # Areas under the line (height 1, so WARMUP / 2) and under the half cosine (half its width).
    rising = min(progress, WARMUP) ** 2 / (2 * WARMUP)
    falling = (1 - WARMUP) / 2 * _cosine(max(0.0, progress - WARMUP) / (1 - WARMUP))
    return (rising + falling) / (WARMUP / 2 + (1 - WARMUP) / 2)


def milestones(
    shape: StepSize,
    *,
    start: float,
    end: float,
    updates: int,
    total_steps: int,
    learning_rate: Callable[[int], float] | None,
) -> dict[int, float]:
    """Step → share of the reduction that must be reached there; the last is exactly 1 at `end`.

    One update takes place at `start`, at once. Several are evenly spaced at start +
    k (end - start) / n for k = 1..n, fewer where the window has fewer steps.

    Args:
        start, end: fractions of training.
        learning_rate: optimizer step (from 1) → learning rate, for the shape of that name.

    Raises:
        UserError: the window has no room for two updates, or the learning rate is needed and is
            not known or zero throughout.
    """
    first, last = to_step(start, total_steps), to_step(end, total_steps)
    if updates == 1:
        return {first: 1.0}
    if last - first < 2:
        raise UserError(
            f"Channels cannot be removed gradually in {total_steps} training steps.",
            f"Between {start:g} and {end:g} of the training lie {last - first} steps; "
            "it needs at least 2.",
            f"Train for at least {math.ceil(2 / (end - start) - 1e-9)} steps, or prune at once "
            "with the method `structured` and `updates: 1`.",
        )
    n = min(updates, last - first)
    steps = [first + round(k * (last - first) / n) for k in range(1, n + 1)]
    if shape == "learning_rate":
        return _by_learning_rate(steps, first, learning_rate)
    shares = {t: done(shape, (t - first) / (last - first)) for t in steps}
    return shares | {last: 1.0}


def _cosine(progress: float) -> float:
    return progress + math.sin(math.pi * progress) / math.pi


def _steps(progress: float) -> float:
    area, left = 0.0, 0.0
    for right, size in DROPS:
        area += size * max(0.0, min(progress, right) - left)
        left = right
    return area


def _by_learning_rate(
    steps: list[int], first: int, learning_rate: Callable[[int], float] | None
) -> dict[int, float]:
    if learning_rate is None:
        raise UserError(
            "The step size cannot follow the learning rate.",
            "There is no learning rate: nothing is trained.",
            "Choose another `step_size`, such as cosine.",
        )
    rates = {t: learning_rate(t) for t in range(first + 1, steps[-1] + 1)}
    total = math.fsum(rates.values())
    if total <= 0:
        raise UserError(
            "The step size cannot follow the learning rate.",
            f"It is zero from step {first + 1} to step {steps[-1]}.",
            "Choose another `step_size`, such as cosine.",
        )
    shares = {t: math.fsum(r for s, r in rates.items() if s <= t) / total for t in steps}
    return shares | {steps[-1]: 1.0}

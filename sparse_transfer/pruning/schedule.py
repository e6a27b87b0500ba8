"""When the sparsity changes and to what: pure functions of the step, fractions of training in.

Steps count optimizer steps: 0 is before the first, `total_steps` after the last.
"""

from __future__ import annotations

import math

from sparse_transfer.errors import UserError


def to_step(fraction: float, total_steps: int) -> int:
    """The step nearest to a fraction of training (halves go up)."""
    return math.floor(fraction * total_steps + 0.5)


def cubic(progress: float, initial: float, final: float) -> float:
    """Sparsity at `progress` in [0, 1]: exactly `initial` at 0 and `final` at 1.

    Source: Zhu & Gupta 2017, arXiv 1710.01878: s = s_f + (s_i - s_f) (1 - progress)^3.
    """
    left = 1.0 - min(max(progress, 0.0), 1.0)
    return initial if left == 1.0 else final + (initial - final) * left**3


def cosine(progress: float, first: float, last: float) -> float:
    """A rate that falls from `first` at 0 to `last` at 1 along half a cosine."""
    return last + (first - last) * (1.0 + math.cos(math.pi * progress)) / 2.0


def gradual(
    *,
    start: float,
    end: float,
    updates: int,
    total_steps: int,
    initial: float,
    final: float,
) -> dict[int, float]:
    """The updates of a cubic schedule: step → sparsity, the last exactly `final` at `end`.

    Evenly spaced at start + k (end - start) / n for k = 1..n, as in the source; the value at
    k = 0 is `initial`, which the caller applies itself where it is not zero. A window with
    fewer steps than `updates` gets one update per step.

    Args:
        start: fraction of training before which nothing changes.
        end: fraction of training at which the final sparsity is reached.
        updates: wanted number of updates n.

    Raises:
        UserError: the window has no room for two updates (or for the one that is asked for).
    """
    least = min(2, updates)
    first, last = to_step(start, total_steps), to_step(end, total_steps)
    if last - first < least:
        enough = math.ceil(least / (end - start) - 1e-9)
        raise UserError(
            f"A gradual schedule cannot run in {total_steps} training steps.",
            f"Between {start:g} and {end:g} of the training lie {last - first} steps; "
            f"it needs at least {least}.",
            f"Train for at least {enough} steps, or use `magnitude`, which prunes at once.",
        )
    n = min(updates, last - first)
    steps = [first + round(k * (last - first) / n) for k in range(1, n + 1)]
    return {t: cubic((t - first) / (last - first), initial, final) for t in steps}

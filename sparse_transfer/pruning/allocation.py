"""How many weights each layer keeps: integer counts that sum to the target exactly.

`global` leaves the counts to the scores; `uniform` gives every layer the same density; `erk`
(Erdős–Rényi kernel) gives a layer a density proportional to (sum of its dimensions) / (product of
its dimensions), so that small and narrow layers stay denser.

Source: Evci et al. 2020, arXiv 1911.11134 (ERK). Deviation: layers that would exceed density 1
are capped and the rest solved again, which meets the total exactly, and every layer keeps at
least one weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from sparse_transfer.errors import UserError

Allocation = Literal["global", "uniform", "erk"]


def keep_count(weights: int, sparsity: float) -> int:
    """Number of weights that stay at a sparsity: the only place where a target is rounded."""
    return round(weights * (1.0 - sparsity))


def check_keep(weights: int, layers: int, sparsity: float) -> None:
    """Refuse a sparsity that cannot leave one weight in each layer.

    Raises:
        UserError: says the highest sparsity that these layers allow.
    """
    if keep_count(weights, sparsity) < layers:
        highest = math.floor(1e6 * (1 - layers / weights)) / 1e6
        raise UserError(
            f"Sparsity {sparsity:g} would empty a layer.",
            f"It keeps {keep_count(weights, sparsity)} of {weights} weights in {layers} layers, "
            "and each layer needs at least one.",
            f"The highest possible sparsity here is {highest:g}.",
        )


def keep_counts(
    allocation: Literal["uniform", "erk"],
    shapes: Mapping[str, Sequence[int]],
    keep: int,
    active: Mapping[str, int],
) -> dict[str, int]:
    """Kept weights by layer, at least 1 and at most `active` each, summing to `keep`.

    Args:
        shapes: weight shapes, (out, in, *kernel).
        keep: total to keep; between the number of layers and the sum of `active`.
        active: weights that are still there; a monotone method cannot keep more.
    """
    # ERK: density * size = eps * sum(dims) / prod(dims) * prod(dims)
    weights = [float(math.prod(s) if allocation == "uniform" else sum(s)) for s in shapes.values()]
    counts = apportion(weights, keep, [active[name] for name in shapes])
    return dict(zip(shapes, counts, strict=True))


def apportion(weights: Sequence[float], total: int, upper: Sequence[int]) -> list[int]:
    """Integers in [1, upper] proportional to `weights` where the bounds allow, with exact sum.

    The real solution is clip(scale * weight, 1, upper) with the one scale that meets the sum;
    rounding is by largest remainder, ties to the first.

    Args:
        weights: positive numbers.
        total: between len(weights) and sum(upper).
    """
    assert len(weights) <= total <= sum(upper)

    def filled(scale: float) -> list[float]:
        return [min(max(scale * w, 1.0), float(u)) for w, u in zip(weights, upper, strict=True)]

    # The sum is piecewise linear and non-decreasing in the scale: find the piece, then interpolate.
    bends = sorted({bound / w for w, u in zip(weights, upper, strict=True) for bound in (1, u)})
    sums = [math.fsum(filled(scale)) for scale in bends]
    right = next(i for i, value in enumerate(sums) if value >= total - 1e-9 * total)
    scale = bends[right]
    if right and sums[right] > sums[right - 1]:
        part = (total - sums[right - 1]) / (sums[right] - sums[right - 1])
        scale = bends[right - 1] + part * (bends[right] - bends[right - 1])
    real = filled(scale)
    counts = [math.floor(x) for x in real]
    by_remainder = sorted(range(len(real)), key=lambda i: counts[i] - real[i])
    open_slots = [i for i in by_remainder if counts[i] < upper[i]]
    for i in open_slots[: total - sum(counts)]:
        counts[i] += 1
    assert sum(counts) == total
    return counts

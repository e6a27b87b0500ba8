"""How many weights each layer keeps: integer counts that sum to the target exactly.

`global` leaves the counts to the scores; `uniform` gives every layer the same density; `erk`
(Erdős–Rényi kernel) gives a layer a density proportional to (sum of its dimensions) / (product of
its dimensions), so that small and narrow layers stay denser; `lamp` leaves the counts to scores
that are comparable across layers (`criteria.lamp`). An N:M pattern such as "2:4" keeps exactly N of
every M consecutive input channels of an output channel at a kernel position.

Source: Evci et al. 2020, arXiv 1911.11134 (ERK); Lee et al. 2021, arXiv 2010.07611 (LAMP); Zhou et
al. 2021, arXiv 2102.04010 (N:M). Deviation: layers that would exceed density 1 are capped and the
rest solved again, which meets the total exactly, and every layer keeps at least one weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from sparse_transfer.errors import UserError

if TYPE_CHECKING:
    from sparse_transfer.pruning.method import Target

RULES = ("global", "uniform", "erk", "lamp")


def pattern_of(allocation: str) -> tuple[int, int] | None:
    """(N, M) of an N:M pattern with 1 <= N <= M; None for anything else."""
    found = re.fullmatch(r"([1-9]\d{0,2}):([1-9]\d{0,2})", allocation)
    if found is None or int(found[1]) > int(found[2]):
        return None
    return int(found[1]), int(found[2])


def _an_allocation(value: Any) -> str:
    if value in RULES:
        return value
    try:
        return _a_pattern(value)
    except ValueError as error:
        raise ValueError(f"an allocation is one of {', '.join(RULES)}, or {error}") from None


def _a_pattern(value: Any) -> str:
    if isinstance(value, str) and pattern_of(value) is not None:
        return value
    # YAML 1.1 reads a bare 2:4 as minutes and seconds, the number 124.
    raise ValueError('a pattern N:M with N <= M in quotation marks, as in "2:4"')


Allocation = Annotated[str, BeforeValidator(_an_allocation)]
Pattern = Annotated[str, BeforeValidator(_a_pattern)]


def check_allocation(allocation: Allocation, target: Target) -> None:
    """Refuse an N:M pattern that does not fit; every other rule fits. For `schedule()`.

    Raises:
        UserError: the input channels of a layer cannot be cut into groups of M, the sparsity is not
            1 - N/M, or the model is already sparse, so that a group may have fewer than N left.
    """
    pattern = pattern_of(allocation)
    if pattern is None:
        return
    n, m = pattern
    uneven = {name: shape[1] for name, shape in target.shapes.items() if shape[1] % m}
    if uneven:
        names = list(uneven)
        shown = ", ".join(f"{name} ({uneven[name]})" for name in names[:5])
        entries = ", ".join(f"'^{re.escape(name)}$'" for name in names)
        raise UserError(
            f"{allocation} sparsity needs input channels that come in groups of {m}.",
            f"{len(names)} of {len(target.shapes)} layers have another number: {shown}"
            + (f" and {len(names) - 5} more." if len(names) > 5 else "."),
            f"Keep them dense by adding to `keep_dense`: {entries}.",
        )
    if keep_count(target.weights, target.sparsity) * m != target.weights * n:
        nearest = min(max(round(m * (1 - target.sparsity)), 1), m)
        raise UserError(
            f"{allocation} sparsity is {1 - n / m:g}, but {target.sparsity:g} is asked for.",
            f"It keeps exactly {n} of every {m} weights.",
            f"Ask for {1 - n / m:g}, or for another pattern: {nearest}:{m} is {1 - nearest / m:g}.",
        )
    if target.active < target.weights:
        raise UserError(
            f"{allocation} sparsity has to start from a dense model.",
            f"This one is {target.sparsity_now:.4f} sparse, and a group may have fewer than {n} "
            "weights left.",
            "Start from its dense checkpoint, or use `given` where the pattern is there already.",
        )


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
    allocation: str,
    shapes: Mapping[str, Sequence[int]],
    keep: int,
    active: Mapping[str, int],
) -> dict[str, int]:
    """Kept weights by layer, at least 1 and at most `active` each, summing to `keep`.

    Args:
        allocation: uniform or erk, the rules that fix counts.
        shapes: weight shapes, (out, in, *kernel).
        keep: total to keep; between the number of layers and the sum of `active`.
        active: weights that are still there; a monotone method cannot keep more.
    """
    assert allocation in ("uniform", "erk"), allocation
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

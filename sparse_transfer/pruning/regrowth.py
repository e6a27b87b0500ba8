"""Drop and grow: masks that move while every layer keeps its number of weights.

An update drops the kept weights with the smallest |w| and grows as many of all positions that are
not kept any more. A position dropped and grown in the same update was never away: it keeps its
value and optimizer state. A truly new one starts at zero with zero state.

Source: Mocanu et al. 2018, arXiv 1707.04780 (random growth); Evci et al. 2020, arXiv 1911.11134
(growth by gradient); Liu et al. 2021, arXiv 2102.02887 (exploration over time). Deviations: counts
are exact and ties are broken by index, in place of noise on the scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import Allocation, keep_count
from sparse_transfer.pruning.criteria import Scores, Stage, lowest, magnitude, random, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import Event, Scene, Target
from sparse_transfer.pruning.schedule import to_step

CLOSEST = 2  # steps between updates: one of the two steps trains, even if the other is skipped


def update_steps(
    *, end: float, updates: int, interval: int | None, total_steps: int, name: str
) -> list[int]:
    """The steps of the mask updates: evenly spaced after step 0 and before `end`, exclusively.

    They are k e / (n + 1) for k = 1..n, e being the step of `end`; or with an interval its
    multiples. A window too short for n updates gets one every second step.

    Args:
        end: fraction of training at which updates cease.
        updates: wanted number of updates n.
        interval: steps between updates, at least 2; overrides `updates`.
        name: of the method, for the message.

    Raises:
        UserError: no update fits.
    """
    last = to_step(end, total_steps)
    if interval is not None:
        steps = list(range(interval, last, interval))
    else:
        spaces = min(updates + 1, last // CLOSEST)
        steps = [round(k * last / spaces) for k in range(1, spaces)]
    if not steps:
        distance, least = (CLOSEST, 2 * CLOSEST) if interval is None else (interval, interval + 1)
        raise UserError(
            f"{name} cannot change its masks in {total_steps} training steps.",
            f"Updates come every {distance} steps or less often, before step {last}: none fits.",
            f"Train for at least {math.ceil(least / end - 1e-9)} steps"
            + (", or shorten `interval`." if interval is not None else "."),
        )
    return steps


def random_start(target: Target, sparsity: float, allocation: Allocation) -> dict[int, Event]:
    """The event at step 0 that keeps a random part of the weights, with exact counts by layer.

    None for a model that is as sparse already, which goes on from its own masks.
    """
    if target.active <= keep_count(target.weights, sparsity):
        return {}

    def choose(scene: Scene) -> Masks:
        stages = [Stage(random(scene.weights, scene.generator))]
        return remove(scene.masks, stages, sparsity, allocation)

    return {0: Event("random start", sparsity, choose)}


def drop_and_grow(
    masks: Masks,
    weights: Mapping[str, Tensor],
    growth: Scores,
    rate: float,
    rounding: Callable[[float], int] = math.floor,
) -> Masks:
    """New masks with the same count in every layer, of which the share `rate` was chosen anew.

    Args:
        weights: by parameter name, in the weight's shape; those with the smallest |w| are dropped.
        growth: float32 scores ≥ 0 in the same shapes; the largest are grown.
        rate: share of each layer's kept weights to drop, in [0, 1].
        rounding: of rate × kept weights to a count: `math.floor` or `math.ceil`.

    Raises:
        UserError: a weight is NaN or infinite.
    """
    sizes = magnitude(weights)
    return Masks(
        {
            name: exchange(mask, sizes[name], growth[name], replaced(kept, rate, rounding))
            for (name, mask), kept in zip(masks.items(), masks.counts().values(), strict=True)
        }
    )


def replaced(kept: int, rate: float, rounding: Callable[[float], int]) -> int:
    """How many of the kept weights of a layer an update drops: rate × kept, rounded.

    Free of floating-point noise: ceil(0.07 × 100) is 7 although 0.07 × 100 exceeds 7 in floats.
    """
    return rounding(round(rate * kept, 6))


def exchange(mask: Tensor, size: Tensor, growth: Tensor, count: int) -> Tensor:
    """One layer: drop the `count` smallest kept, grow the `count` best of all that are not kept.

    The number of kept weights is the same whatever the scores, also where all are equal; of equal
    scores the position that comes first stays or is grown.

    Args:
        mask: bool, any shape; `size` and `growth` float32 without NaN in the same shape.
        count: 0 to the number of kept weights.
    """
    flat = mask.reshape(-1)
    kept = flat & ~lowest(size.reshape(-1).masked_fill(~flat, torch.inf), count)
    left_out = flat.numel() - int(torch.count_nonzero(flat))
    passed_over = lowest(growth.reshape(-1).masked_fill(kept, torch.inf), left_out)
    return ~passed_over.reshape(mask.shape)


def union(first: Masks, second: Masks) -> Masks:
    """What either of two masks of the same layers keeps."""
    return Masks({name: mask | second[name].to(mask.device) for name, mask in first.items()})


def explored(memory: Mapping[str, Tensor], weights: int) -> float:
    """In-time over-parameterisation R_s: the share of weights that was ever active, in [0, 1].

    Args:
        memory: packed masks (`Masks.pack`) of what was ever active.
        weights: number of weights under the masks.
    """
    bits = (np.unpackbits(packed.cpu().numpy()) for packed in memory.values())
    return sum(int(part.sum()) for part in bits) / weights

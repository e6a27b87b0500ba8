"""Random pruning: a random mask before training, the floor that every criterion must beat.

With `layers` each layer keeps the given number of weights: the control that tells whether a
criterion chose good weights or only good numbers of them.

Family: sparse from the start, random, no regrowth.
Schedule: everything at step 0.
Cost: a mask multiplication per step.
Source: the baseline of the sparse-training literature (Liu et al. 2022, arXiv 2202.02643, with ERK
densities); the control at a method's own densities: Frankle et al. 2020, arXiv 2009.08576.
Deviations: exact counts, not independent coin flips; a function of the seed alone.
"""

from __future__ import annotations

import math
from typing import final

import torch
from pydantic import Field

from sparse_transfer.config import Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import Allocation, check_allocation, keep_count
from sparse_transfer.pruning.criteria import Stage, lowest, random, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target

ALIAS = "random"


class RandomOptions(Frozen):
    """`allocation`: over all layers together, or fixed shares by layer; `layers`: weights that
    each prunable layer keeps, by parameter name, in place of the allocation."""

    allocation: Allocation = "global"
    layers: dict[str, int] = Field({}, description="kept weights by parameter name")


@final
class Method(AbstractMethod[RandomOptions]):
    """One event at step 0."""

    name = ALIAS
    version = 1
    Options = RandomOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """The whole target at once."""
        check_allocation(self.options.allocation, target)
        counts = self.options.layers
        if counts:
            _check_counts(counts, target)

        def choose(scene: Scene) -> Masks:
            scores = random(scene.weights, scene.generator)
            if not counts:
                return remove(
                    scene.masks, [Stage(scores)], target.sparsity, self.options.allocation
                )
            kept = {}
            for name, mask in scene.masks.items():
                flat = scores[name].masked_fill(~mask, -torch.inf).reshape(-1)
                kept[name] = ~lowest(flat, flat.numel() - counts[name]).reshape(mask.shape)
            return Masks(kept)

        return {0: Event("prune", target.sparsity, choose)}


def _check_counts(counts: dict[str, int], target: Target) -> None:
    sizes = {name: math.prod(shape) for name, shape in target.shapes.items()}
    wrong = [
        name for name in {**sizes, **counts} if not 1 <= counts.get(name, 0) <= sizes.get(name, 0)
    ]
    if wrong:
        raise UserError(
            f"`layers` of random does not fit the model at {', '.join(wrong[:3])}.",
            "It needs every prunable layer, with at least one weight kept and at most all.",
            "Take the numbers from the `layers` of another run's summary of the same model.",
        )
    wanted = keep_count(target.weights, target.sparsity)
    if sum(counts.values()) != wanted or target.active < target.weights:
        raise UserError(
            f"`layers` of random keeps {sum(counts.values())} weights.",
            f"Sparsity {target.sparsity:g} of a dense model keeps {wanted}.",
            "Give the sparsity that the numbers were taken from.",
        )

"""Random pruning: a random mask before training, the floor that every criterion must beat.

Source: the baseline of the sparse-training literature (Liu et al. 2022, arXiv 2202.02643, with ERK
densities). Exact counts, not independent coin flips; a function of the seed alone.
"""

from __future__ import annotations

from typing import final

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.allocation import Allocation
from sparse_transfer.pruning.criteria import Stage, random, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target

ALIAS = "random"


class RandomOptions(Frozen):
    """`allocation`: over all layers together, or fixed shares by layer (uniform, erk)."""

    allocation: Allocation = "global"


@final
class Method(AbstractMethod[RandomOptions]):
    """One event at step 0."""

    name = ALIAS
    version = 1
    Options = RandomOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """The whole target at once."""

        def choose(scene: Scene) -> Masks:
            stages = [Stage(random(scene.weights, scene.generator))]
            return remove(scene.masks, stages, target.sparsity, self.options.allocation)

        return {0: Event("prune", target.sparsity, choose)}

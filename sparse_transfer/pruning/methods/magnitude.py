"""One-shot magnitude pruning: the smallest |w| go before training, the rest is fine-tuned.

Source: the baseline of every study (Han et al. 2015, arXiv 1506.02626, without its rounds). The
removal is at step 0; the training that follows repairs. With no training it prunes only.
"""

from __future__ import annotations

from typing import final

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.allocation import Allocation
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target


class MagnitudeOptions(Frozen):
    """`allocation`: one ranking over all layers, or fixed shares by layer (uniform, erk)."""

    allocation: Allocation = "global"


@final
class Method(AbstractMethod[MagnitudeOptions]):
    """One event at step 0."""

    name = "magnitude"
    version = 1
    Options = MagnitudeOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """The whole target at once."""

        def choose(scene: Scene) -> Masks:
            stages = [Stage(magnitude(scene.weights))]
            return remove(scene.masks, stages, target.sparsity, self.options.allocation)

        return {0: Event("prune", target.sparsity, choose)}

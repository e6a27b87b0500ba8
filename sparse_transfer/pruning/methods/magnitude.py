"""One-shot magnitude pruning: the smallest |w| go before training, the rest is fine-tuned.

The removal is at step 0; the training that follows repairs. With no training it prunes only.

Family: one-shot, magnitude, no regrowth.
Schedule: the whole target at step 0.
Cost: one ranking of the weights.
Source: the baseline of every study (Han et al. 2015, arXiv 1506.02626).
Deviations: one removal, not rounds of removal and training; one ranking over all layers by default.
"""

from __future__ import annotations

from typing import final

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.allocation import Allocation, check_allocation
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target


class MagnitudeOptions(Frozen):
    """`allocation`: one ranking over all layers by |w| (global) or by LAMP score (lamp), fixed
    shares by layer (uniform, erk), or an N:M pattern such as "2:4"."""

    allocation: Allocation = "global"


@final
class Method(AbstractMethod[MagnitudeOptions]):
    """One event at step 0."""

    name = "magnitude"
    version = 1
    Options = MagnitudeOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """The whole target at once."""
        check_allocation(self.options.allocation, target)

        def choose(scene: Scene) -> Masks:
            stages = [Stage(magnitude(scene.weights))]
            return remove(scene.masks, stages, target.sparsity, self.options.allocation)

        return {0: Event("prune", target.sparsity, choose)}

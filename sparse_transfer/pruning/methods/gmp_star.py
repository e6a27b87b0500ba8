"""GMP*: gradual magnitude pruning with a large first step and few updates after it.

Half of the weights go at once at the first update, the rest in few updates along the cubic, each
with time to recover. This file holds only the pruning. The other two ingredients belong to the
recipe: a learning rate that starts again at every update (`lr_restarts: prune`) and distillation
from the dense model (`distillation:`), as in the recipe gmp-star; without both it is gmp with other
numbers.

Family: gradual, magnitude, from dense to sparse; no regrowth.
Schedule: a jump to `initial_sparsity` at `start`, then cubic to the target at `end`.
Cost: one ranking of the weights for each update; a teacher's forward pass if the recipe has one.
Source: Kurtic & Alistarh 2022, arXiv 2210.06384 (for BERT).
Deviations: the paper's recipe is recalled, not read: the large first step, the learning rate that
is wound up again at each update, and tuned distillation. The window, .07 to .87 of training with 6
updates after the jump, is that of a public oBERT recipe by an overlapping group, whose first step
is .7; masks are monotone and the ranking is over all prunable layers.
"""

from __future__ import annotations

from typing import final

from pydantic import Field, model_validator

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.pruning.allocation import Allocation, check_allocation
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target
from sparse_transfer.pruning.methods.gmp import updates


class GmpStarOptions(Frozen):
    """`initial_sparsity` is reached at once at `start`, the target at `end` (of training)."""

    allocation: Allocation = "global"
    start: Fraction = 0.07
    end: float = Field(0.87, gt=0, le=1)
    updates: int = Field(6, ge=1)
    initial_sparsity: Fraction = 0.5

    @model_validator(mode="after")
    def _window(self) -> GmpStarOptions:
        if self.start >= self.end:
            raise ValueError("`start` must lie before `end`")
        return self


@final
class Method(AbstractMethod[GmpStarOptions]):
    """gmp's events with other defaults."""

    name = "gmp_star"
    version = 1
    Options = GmpStarOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """The jump and `updates` events after it."""
        options = self.options
        check_allocation(options.allocation, target)
        return updates(
            target,
            self._choose,
            method=self.name,
            start=options.start,
            end=options.end,
            number=options.updates,
            initial_sparsity=options.initial_sparsity,
        )

    def _choose(self, scene: Scene, sparsity: float) -> Masks:
        stages = [Stage(magnitude(scene.weights))]
        return remove(scene.masks, stages, sparsity, self.options.allocation)

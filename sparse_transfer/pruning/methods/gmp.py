"""Gradual magnitude pruning: the smallest |w| go in many updates along a cubic schedule.

Source: Zhu & Gupta 2017, arXiv 1710.01878; global ranking as run by Singh & Alistarh 2020, arXiv
2004.14340. Deviations: masks are monotone (a pruned weight is zero and cannot outrank a
kept one); one ranking over all layers by default; the window is a fraction of training with a
number of updates, not an interval in steps, and the last update is exactly the target.
"""

from __future__ import annotations

from functools import partial
from typing import final

from pydantic import Field, model_validator

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import Allocation
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target
from sparse_transfer.pruning.schedule import gradual, to_step


class GmpOptions(Frozen):
    """`start` and `end` are fractions of training; `initial_sparsity` is applied at `start`."""

    allocation: Allocation = "global"
    start: Fraction = 0.1
    end: float = Field(0.75, gt=0, le=1)
    updates: int = Field(50, ge=1)
    initial_sparsity: Fraction = 0.0

    @model_validator(mode="after")
    def _window(self) -> GmpOptions:
        if self.start >= self.end:
            raise ValueError("`start` must lie before `end`")
        return self


@final
class Method(AbstractMethod[GmpOptions]):
    """Cubic schedule, one magnitude stage, no regrowth."""

    name = "gmp"
    version = 1
    Options = GmpOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """`updates` events, and one more at `start` where it jumps."""
        options = self.options
        if options.initial_sparsity >= target.sparsity:
            raise UserError(
                f"gmp cannot start at sparsity {options.initial_sparsity:g} to reach "
                f"{target.sparsity:g}.",
                "Its sparsity only grows.",
                "Lower `initial_sparsity`.",
            )
        jumps = options.initial_sparsity > target.sparsity_now
        points = gradual(
            start=options.start,
            end=options.end,
            updates=options.updates,
            total_steps=target.total_steps,
            initial=options.initial_sparsity if jumps else target.sparsity_now,
            final=target.sparsity,
        )
        if jumps:
            points[to_step(options.start, target.total_steps)] = options.initial_sparsity
        return {
            step: Event("prune", sparsity, partial(self._choose, sparsity=sparsity))
            for step, sparsity in sorted(points.items())
        }

    def _choose(self, scene: Scene, *, sparsity: float) -> Masks:
        stages = [Stage(magnitude(scene.weights))]
        return remove(scene.masks, stages, sparsity, self.options.allocation)

"""Gradual magnitude pruning: the smallest |w| go in many updates along a cubic schedule.

Masks are monotone: a pruned weight is zero and cannot outrank a kept one. With `rerank` each pruned
weight is remembered at the value that it had when it went and is ranked again at every update; one
that outranks what is left comes back with that value, at zero optimizer state. With an N:M pattern
as allocation the N largest of each group are never touched, and the rest goes along the schedule.

Family: gradual, magnitude, from dense to sparse; no regrowth unless `rerank`.
Schedule: cubic from `initial_sparsity` at `start` to the target at `end`, in `updates` updates.
Cost: one ranking of the weights for each update; `rerank` keeps a copy of the weights.
Source: Zhu & Gupta 2017, arXiv 1710.01878; global ranking as run by Singh & Alistarh 2020, arXiv
2004.14340.
Deviations: masks are monotone by default, where the original ranks the stale values of pruned
weights too; one ranking over all layers by default; the window is a fraction of training with a
number of updates, not an interval in steps, and the last update is exactly the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from pydantic import Field, model_validator

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import Allocation, check_allocation
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Change, Event, Scene, Target
from sparse_transfer.pruning.schedule import gradual, to_step


class GmpOptions(Frozen):
    """`start` and `end` are fractions of training; `initial_sparsity` is applied at `start`.

    `allocation`: one ranking over all layers by |w| (global) or by LAMP score (lamp), fixed shares
    by layer (uniform, erk), or an N:M pattern such as "2:4". `rerank`: pruned weights may return.
    """

    allocation: Allocation = "global"
    start: Fraction = 0.1
    end: float = Field(0.75, gt=0, le=1)
    updates: int = Field(50, ge=1)
    initial_sparsity: Fraction = 0.0
    rerank: bool = False

    @model_validator(mode="after")
    def _window(self) -> GmpOptions:
        if self.start >= self.end:
            raise ValueError("`start` must lie before `end`")
        return self


@final
class Method(AbstractMethod[GmpOptions]):
    """Cubic schedule, one magnitude stage, no regrowth but by `rerank`."""

    name = "gmp"
    version = 1
    Options = GmpOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """`updates` events, and one more at `start` where it jumps."""
        options = self.options
        check_allocation(options.allocation, target)
        return updates(
            target,
            self._choose_again if options.rerank else self._choose,
            method=self.name,
            start=options.start,
            end=options.end,
            number=options.updates,
            initial_sparsity=options.initial_sparsity,
        )

    def _choose(self, scene: Scene, sparsity: float) -> Masks:
        stages = [Stage(magnitude(scene.weights))]
        return remove(scene.masks, stages, sparsity, self.options.allocation)

    def _choose_again(self, scene: Scene, sparsity: float) -> Change:
        last_values = {
            name: torch.where(scene.masks[name], weight, scene.memory[name].to(weight))
            if name in scene.memory
            else weight.detach()
            for name, weight in scene.weights.items()
        }
        stages = [Stage(magnitude(last_values))]
        masks = remove(Masks.ones(last_values), stages, sparsity, self.options.allocation)
        return Change(masks, values=last_values, memory=last_values)


def updates(
    target: Target,
    choose: Callable[[Scene, float], Masks | Change],
    *,
    method: str,
    start: float,
    end: float,
    number: int,
    initial_sparsity: float = 0.0,
) -> dict[int, Event]:
    """The events of a gradual method: `number` along the cubic, one more where it jumps at `start`.

    Args:
        choose: (scene, sparsity) → the masks of that sparsity.
        method: name for the errors.
        start, end: fractions of training.

    Raises:
        UserError: the sparsity would start beyond its target, or the window has no room.
    """
    if initial_sparsity >= target.sparsity:
        raise UserError(
            f"{method} cannot start at sparsity {initial_sparsity:g} to reach {target.sparsity:g}.",
            "Its sparsity only grows.",
            "Lower `initial_sparsity`.",
        )
    jumps = initial_sparsity > target.sparsity_now
    points = gradual(
        start=start,
        end=end,
        updates=number,
        total_steps=target.total_steps,
        initial=initial_sparsity if jumps else target.sparsity_now,
        final=target.sparsity,
    )
    if jumps:
        points[to_step(start, target.total_steps)] = initial_sparsity

    def event(sparsity: float) -> Event:
        return Event("prune", sparsity, lambda scene: choose(scene, sparsity))

    return {step: event(sparsity) for step, sparsity in sorted(points.items())}

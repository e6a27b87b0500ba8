"""SET: sparse training that drops the smallest |w| and grows as many weights at random.

Training begins with a random mask of the target sparsity; a model that is already as sparse keeps
its own, which is the way to go on from a trained network: a random mask destroys it. At each update
every layer drops the share `rate` of its kept weights and activates as many random positions; a
layer's count never changes.

Family: dynamic sparse training (sparse from the start), per layer.
Schedule: a random start at step 0, then `updates` evenly spaced before `end` (or one each
    `interval` steps), after the optimizer step; the share is constant, or falls to 0 along a cosine
    (`annealed`).
Cost: a mask in each step; two selections per layer at each update, no gradients kept.
Source: Mocanu et al. 2018, arXiv 1707.04780 (rate 0.3); schedule and order (the optimizer step
    first) of the baseline in Evci et al. 2020, arXiv 1911.11134.
Deviations: all prunable layers, shares by ERK; positions dropped in an update are among those to
    choose from (and then keep their value), so that RigL with random scores is SET; counts are
    exact; the source prunes the smallest positive and largest negative weights apart, once an epoch
    until the end.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, final

from pydantic import Field

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.criteria import random
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target
from sparse_transfer.pruning.regrowth import drop_and_grow, random_start, update_steps
from sparse_transfer.pruning.schedule import cosine, to_step


class SetOptions(Frozen):
    """`rate`: share of a layer's kept weights replaced; `end`: fraction of training."""

    allocation: Literal["erk", "uniform"] = "erk"
    rate: float = Field(0.3, ge=0, le=1)
    annealed: bool = False
    end: float = Field(0.75, gt=0, le=1)
    updates: int = Field(100, ge=1)
    interval: int | None = Field(None, ge=2, description="steps; overrides `updates`")


@final
class Method(AbstractMethod[SetOptions]):
    """Random start, magnitude drop, random growth."""

    name = "set"
    version = 1
    Options = SetOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """One event at step 0 unless the model is as sparse already, and the updates."""
        options = self.options
        events = random_start(target, target.sparsity, options.allocation)
        last = to_step(options.end, target.total_steps)
        for step in update_steps(
            end=options.end,
            updates=options.updates,
            interval=options.interval,
            total_steps=target.total_steps,
            name=self.name,
        ):
            rate = cosine(step / last, options.rate, 0.0 if options.annealed else options.rate)
            events[step] = Event("regrow", target.sparsity, partial(self._choose, rate=rate))
        return events

    def _choose(self, scene: Scene, *, rate: float) -> Masks:
        growth = random(scene.weights, scene.generator)
        return drop_and_grow(scene.masks, scene.weights, growth, rate)

"""GraNet: gradual global magnitude pruning whose every update also regrows weights by gradient.

An update first prunes to the sparsity of the cubic schedule, |w| ranked over all layers. Then every
layer drops a further share of its kept weights and grows as many of all positions that are not
kept, by the dense |gradient| of that step: the global ranking sets how many weights a layer keeps,
the regrowth which. After the window the regrowth goes on alone until the end of training.

Family: gradual pruning with regrowth; dense start, or sparse (`sparse_start`, 0.5 in the source).
Schedule: `updates` evenly spaced from `start` to `end`, the sparsity along the cubic, and further
    ones at the same distance until the training ends; the share falls from `rate` to `final_rate`
    along a cosine over the whole training. An update after the last step (`end: 1`) only prunes.
Cost: a mask in each step; at each update one global selection, two per layer, and one copy of the
    gradients.
Source: Liu et al. 2021, arXiv 2106.10404: rate 0.5 to 0.005, window 0 to 0.5 (CIFAR, 28 to 31
    updates in it) or 0 to 0.3 (ImageNet) of training, counts rounded up.
Deviations: a number of updates, not an interval; the last update of the window is exactly the
    target; selection by exact counts, not by a threshold; no layer is emptied; a weight that is
    pruned and regrown in one update counts as never pruned (the source restarts it from zero).
    With `sparse_start` equal to the target it is RigL-ITOP, with both rates 0 it is gmp.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import count, takewhile
from typing import final

from pydantic import Field, model_validator

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Need, Scene, Target
from sparse_transfer.pruning.regrowth import drop_and_grow, random_start
from sparse_transfer.pruning.schedule import cosine, gradual, to_step

NEEDS: frozenset[Need] = frozenset({"gradients"})


class GranetOptions(Frozen):
    """`start` and `end` of pruning are fractions of training; `rate`: share replaced by layer."""

    rate: float = Field(0.5, ge=0, le=1)
    final_rate: float = Field(0.005, ge=0, le=1)
    sparse_start: Fraction = Field(0.0, description="sparsity of a random ERK mask at step 0")
    start: Fraction = 0.0
    end: float = Field(0.5, gt=0, le=1)
    updates: int = Field(30, ge=1, description="between `start` and `end`")

    @model_validator(mode="after")
    def _window(self) -> GranetOptions:
        if self.start >= self.end:
            raise ValueError("`start` must lie before `end`")
        return self


@final
class Method(AbstractMethod[GranetOptions]):
    """gmp's schedule, and after each pruning a magnitude drop and gradient growth."""

    name = "granet"
    version = 1
    Options = GranetOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """One event at step 0 with `sparse_start`, the window, and the regrowth after it."""
        options = self.options
        if options.sparse_start > target.sparsity:
            raise UserError(
                f"granet cannot start at sparsity {options.sparse_start:g} to reach "
                f"{target.sparsity:g}.",
                "Its sparsity only grows.",
                f"Lower `sparse_start` to {target.sparsity:g} or less.",
            )
        events = random_start(target, options.sparse_start, "erk")
        points = gradual(
            start=options.start,
            end=options.end,
            updates=options.updates,
            total_steps=target.total_steps,
            initial=options.sparse_start if events else target.sparsity_now,
            final=target.sparsity,
        )
        last = max(points)
        distance = (last - to_step(options.start, target.total_steps)) / len(points)
        later = takewhile(
            lambda step: step < target.total_steps,
            (last + round(k * distance) for k in count(1)),
        )
        for step, sparsity in {**points, **dict.fromkeys(later, target.sparsity)}.items():
            rate = cosine(step / target.total_steps, options.rate, options.final_rate)
            if step == target.total_steps:
                rate = 0.0  # what grew now would never train
            choose = partial(self._choose, sparsity=sparsity, rate=rate)
            kind = "prune and regrow" if step in points else "regrow"
            events[step] = Event(kind, sparsity, choose, needs=NEEDS)
        return events

    def _choose(self, scene: Scene, *, sparsity: float, rate: float) -> Masks:
        pruned = remove(scene.masks, [Stage(magnitude(scene.weights))], sparsity, "global")
        growth = magnitude(scene.gradients)
        return drop_and_grow(pruned, scene.weights, growth, rate, math.ceil)

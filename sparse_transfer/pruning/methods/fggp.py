"""FGGP: gradually remove the smallest |w| among the weights with the smallest |gradient|.

At each update the fixed share `rate` of the active weights with the smallest |g| are candidates,
and the smallest |w| among them go: gradient first, magnitude next, no regrowth, global ranking.

The ablations are options: `order`, `pool: annealed` (n + a (R - n) candidates, a falling from 0.5
to 0.005 along GraNet's cosine, arXiv 2106.10404; R active weights, n to remove), and
`sparse_start: 0.5` (a random ERK mask before training).

Family: dense-to-sparse or sparse-to-sparse, gradient and magnitude, no regrowth.
Schedule: cubic, 50 updates between 0.1 and 0.75 of training.
Cost: a mask multiplication per step; two selections and one copy of weights and gradients per
update.
Source: Zhu, Bezek & Goksel 2024, arXiv 2411.05500. As in the authors' code |w| is the weight that
produced the gradient (before the optimizer step) and g belongs to one optimizer step.
Deviations: window and number of updates are gmp's where theirs is 0 to 0.8; masks are hard; counts
are rounded, not floored; an update that wants more than the candidates is refused before training.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, final

from pydantic import Field, model_validator

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import check_keep, keep_count
from sparse_transfer.pruning.criteria import Stage, magnitude, random, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Need, Scene, Target
from sparse_transfer.pruning.schedule import cosine, gradual

ANNEALED_FROM, ANNEALED_TO = 0.5, 0.005
NEEDS: frozenset[Need] = frozenset({"gradients", "forward_weights"})


class FggpOptions(Frozen):
    """`rate`: share of the active weights that are candidates (used by `pool: fixed`)."""

    rate: float = Field(0.5, gt=0, le=1)
    order: Literal["gradient_first", "magnitude_first"] = "gradient_first"
    pool: Literal["fixed", "annealed"] = "fixed"
    sparse_start: Fraction = Field(0.0, description="sparsity of a random ERK mask at step 0")
    start: Fraction = 0.1
    end: float = Field(0.75, gt=0, le=1)
    updates: int = Field(50, ge=1)

    @model_validator(mode="after")
    def _window(self) -> FggpOptions:
        if self.start >= self.end:
            raise ValueError("`start` must lie before `end`")
        return self


@final
class Method(AbstractMethod[FggpOptions]):
    """gmp's schedule with two criterion stages."""

    name = "fggp"
    version = 1
    Options = FggpOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """`updates` events, and one at step 0 with `sparse_start`."""
        options = self.options
        if options.sparse_start >= target.sparsity:
            raise UserError(
                f"fggp cannot start at sparsity {options.sparse_start:g} to reach "
                f"{target.sparsity:g}.",
                "Its sparsity only grows.",
                "Lower `sparse_start`.",
            )
        jumps = options.sparse_start > target.sparsity_now
        points = gradual(
            start=options.start,
            end=options.end,
            updates=options.updates,
            total_steps=target.total_steps,
            initial=options.sparse_start if jumps else target.sparsity_now,
            final=target.sparsity,
        )
        self._check_pools(points, target)
        events = {}
        if jumps:
            check_keep(target.weights, target.layers, options.sparse_start)
            events[0] = Event("random start", options.sparse_start, self._start)
        for step, sparsity in points.items():
            progress = step / target.total_steps
            choose = partial(self._choose, sparsity=sparsity, progress=progress)
            events[step] = Event("prune", sparsity, choose, needs=NEEDS)
        return events

    def candidates(self, active: int, removed: int, progress: float) -> int:
        """Size of the pool that the first criterion hands to the second.

        Args:
            active: weights before the update.
            removed: how many of them the update removes.
            progress: step over total steps.
        """
        if self.options.pool == "fixed":
            return math.floor(self.options.rate * active)
        annealed = cosine(progress, ANNEALED_FROM, ANNEALED_TO)
        return removed + math.floor(annealed * (active - removed))

    def _start(self, scene: Scene) -> Masks:
        stages = [Stage(random(scene.weights, scene.generator))]
        return remove(scene.masks, stages, self.options.sparse_start, "erk")

    def _choose(self, scene: Scene, *, sparsity: float, progress: float) -> Masks:
        first, second = magnitude(scene.gradients), magnitude(scene.forward_weights)
        if self.options.order == "magnitude_first":
            first, second = second, first
        pool = partial(self.candidates, progress=progress)
        return remove(scene.masks, [Stage(first, pool), Stage(second)], sparsity, "global")

    def _check_pools(self, points: dict[int, float], target: Target) -> None:
        active = min(target.active, keep_count(target.weights, self.options.sparse_start))
        for step, sparsity in points.items():
            removed = max(0, active - keep_count(target.weights, sparsity))
            pool = self.candidates(active, removed, step / target.total_steps)
            if pool < removed:
                raise UserError(
                    f"fggp's update at step {step} must remove {removed} of {active} weights, "
                    f"but only {pool} are candidates.",
                    f"`rate: {self.options.rate:g}` is too small for so large an update.",
                    "Use more `updates`, more training steps, or a larger `rate`.",
                )
            active -= removed

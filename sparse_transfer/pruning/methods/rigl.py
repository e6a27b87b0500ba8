"""RigL: sparse training that drops the smallest |w| and grows where |gradient| is largest.

Training begins with a random mask of the target sparsity; a model that is already as sparse keeps
its own, which is the way to go on from a trained network: a random mask destroys it. At each update
every layer drops a share of its kept weights and activates as many of all positions that are not
kept, by the dense gradient of that step; a layer's count never changes. The update takes the place
of the optimizer step: weights that stay do not move in it.

Family: dynamic sparse training (sparse from the start), per layer.
Schedule: a random start at step 0, then `updates` evenly spaced before `end` (or one each
    `interval` steps); the share falls from `rate` to 0 at `end` along a cosine.
Cost: a mask in each step; at each update two selections per layer, one copy of the gradients and
    the optimizer step that is left out. It gains from long training: the source's "5x" results are
    recipes five times as long, updates included (five times the `updates`, the same `interval`).
Source: Evci et al. 2020, arXiv 1911.11134: rate 0.3, an update each 100 steps until 75 to 78 % of
    training, ERK or uniform.
Deviations: a number of updates, not an interval, by default; all prunable layers take part (the
    recipe's `keep_dense` is for the first layer); uniform has no layer of its own kept dense; ties
    are broken by index, not by noise; at most every second step is an update.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, final

from pydantic import Field

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.criteria import magnitude
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Need, Scene, Target
from sparse_transfer.pruning.regrowth import drop_and_grow, random_start, update_steps
from sparse_transfer.pruning.schedule import cosine, to_step

NEEDS: frozenset[Need] = frozenset({"gradients"})


class RiglOptions(Frozen):
    """`rate`: share of a layer's kept weights replaced at first; `end`: fraction of training."""

    allocation: Literal["erk", "uniform"] = "erk"
    rate: float = Field(0.3, ge=0, le=1)
    end: float = Field(0.75, gt=0, le=1)
    updates: int = Field(100, ge=1)
    interval: int | None = Field(None, ge=2, description="steps; overrides `updates`")


@final
class Method(AbstractMethod[RiglOptions]):
    """Random start, magnitude drop, gradient growth in place of the optimizer step."""

    name = "rigl"
    version = 1
    Options = RiglOptions

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
            choose = partial(self._choose, rate=cosine(step / last, options.rate, 0.0))
            events[step] = Event(
                "regrow", target.sparsity, choose, needs=NEEDS, skips_optimizer=True
            )
        return events

    def _choose(self, scene: Scene, *, rate: float) -> Masks:
        return drop_and_grow(scene.masks, scene.weights, magnitude(scene.gradients), rate)

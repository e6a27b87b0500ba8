"""RigL-ITOP: RigL with rare updates over the whole training, so that more weights are explored.

Each topology is trained for longer before it changes, the share replaced begins larger, and updates
go on to the end. What was ever active is remembered; the summary's `explored` is the
exploration rate R_s, the share of weights that took part at some time.

Training begins with a random mask of the target sparsity; a model that is already as sparse keeps
its own, which is the way to go on from a trained network: a random mask destroys it.

Family: dynamic sparse training (sparse from the start), per layer.
Schedule: a random start at step 0, then `updates` evenly spaced over the whole training (or one
    each `interval` steps), after the optimizer step, which is not left out; the share falls from
    `rate` to `final_rate` along a cosine.
Cost: a mask in each step; at each update two selections per layer and one copy of the gradients;
    one bit per weight for what was ever active.
Source: Liu et al. 2021, arXiv 2102.02887: rate 0.5 to 0.005, an update each 4000 steps (24 in its
    CIFAR training; each 1500 steps, or 65, with random growth).
Deviations: a number of updates, not an interval, by default; random growth has exact counts; a
    training too short for the updates has one every second step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal, final

from pydantic import Field
from torch import Tensor

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.criteria import magnitude, random
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Change, Event, Need, Scene, Target
from sparse_transfer.pruning.regrowth import (
    drop_and_grow,
    explored,
    random_start,
    union,
    update_steps,
)
from sparse_transfer.pruning.schedule import cosine

NEEDS: dict[str, frozenset[Need]] = {"gradient": frozenset({"gradients"}), "random": frozenset()}


class RiglItopOptions(Frozen):
    """`rate`, `final_rate`: share of a layer's kept weights replaced at first and at the end."""

    allocation: Literal["erk", "uniform"] = "erk"
    growth: Literal["gradient", "random"] = "gradient"
    rate: float = Field(0.5, ge=0, le=1)
    final_rate: float = Field(0.005, ge=0, le=1)
    updates: int = Field(24, ge=1)
    interval: int | None = Field(None, ge=2, description="steps; overrides `updates`")


@final
class Method(AbstractMethod[RiglItopOptions]):
    """Random start, magnitude drop, gradient (or random) growth after the optimizer step."""

    name = "rigl_itop"
    version = 1
    Options = RiglItopOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """One event at step 0 unless the model is as sparse already, and the updates."""
        options = self.options
        events = random_start(target, target.sparsity, options.allocation)
        for step in update_steps(
            end=1.0,
            updates=options.updates,
            interval=options.interval,
            total_steps=target.total_steps,
            name=self.name,
        ):
            rate = cosine(step / target.total_steps, options.rate, options.final_rate)
            choose = partial(self._choose, rate=rate)
            events[step] = Event("regrow", target.sparsity, choose, needs=NEEDS[options.growth])
        return events

    def _choose(self, scene: Scene, *, rate: float) -> Change:
        if self.options.growth == "gradient":
            growth = magnitude(scene.gradients)
        else:
            growth = random(scene.weights, scene.generator)
        masks = drop_and_grow(scene.masks, scene.weights, growth, rate, math.ceil)
        shapes = {name: mask.shape for name, mask in masks.items()}
        before = Masks.unpack(scene.memory, shapes) if scene.memory else scene.masks
        return Change(masks, memory=union(masks, before).pack())

    def facts(self, memory: Mapping[str, Tensor], weights: int) -> dict[str, float]:
        """`explored`: the share of weights that was ever active."""
        return {"explored": explored(memory, weights)} if memory else {}

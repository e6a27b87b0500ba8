"""Progressive channel pruning: small steps, more from layers that matter less than the others.

Our formulation of an idea that has no published formula: prune while training, decide from
statistics compared across layers which layers give the channels of a step, and treat the size of
a step like a learning rate. Layer l with C_l live channels gives a share proportional to
C_l exp(-kappa z_l) of a step; z_l = (log A_l - median) / MAD over layers, where A_l is the median
importance of its channels over sqrt(weights behind a score). `kappa: 0` is exactly uniform. Within
a layer the least important channels go. The sparsity is the share of the model's
multiply-accumulates (MACs) to remove.

`shuffle` gives the statistics to the wrong layers, at random: the control that tells whether they
matter. `trust` halves a step as long as it would raise the loss on training images by more than
that share, and defers the rest; `range_test` finds, before the first step, the largest step that
would be trusted, and caps the later ones.

Family: structured, gradual
Schedule: `updates` events from `start` to `end`, steps in the shape of `step_size`
Cost: with `taylor` O(weights) per step; with `trust` a few forward passes over 256 images at each
event; training gets faster as it goes
Source: none for the whole. Parts: importance by gates, Molchanov et al. 2019
(NVlabs/Taylor_pruning); groups of channels, Fang et al. 2023, arXiv 2301.12900
Deviations: steps are measured in MACs, not channels, because the target is MACs; caps and trust
yield at the last event, which always completes; the running mean of scores is taken for `taylor`
alone, other importances do not depend on the mini-batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from pydantic import Field, model_validator

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.pruning.structured.budget import budget, relative_importance, spare
from sparse_transfer.pruning.structured.importance import Importance
from sparse_transfer.pruning.structured.method import AbstractStructuredMethod, Layer
from sparse_transfer.pruning.structured.schedule import StepSize, milestones


class ProgressiveOptions(Frozen):
    """`start`, `end`: fractions of training; `cap`, `max_share`: of a layer's channels.

    `cap` limits one step (of the live channels, at least one channel), `max_share` all steps (of
    the channels at the start). `ema` is the share of the old score in the running mean. `kappa`:
    how strongly relative importance counts. `shuffle`: statistics of wrong layers, the control.
    `trust`: share by which a step may raise the loss; `range_test`: find the largest such step.
    """

    importance: Importance = "taylor"
    kappa: float = Field(1.0, ge=0)
    start: Fraction = 0.1
    end: float = Field(0.7, gt=0, le=1)
    updates: int = Field(50, ge=1)
    step_size: StepSize = "cosine"
    cap: float = Field(0.05, gt=0, le=1)
    max_share: float = Field(0.8, gt=0, le=1)
    min_channels: int = Field(8, ge=1)
    ema: Fraction = 0.9
    shuffle: bool = False
    trust: float | None = Field(None, ge=0)
    range_test: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> ProgressiveOptions:
        if self.updates > 1 and self.start >= self.end:
            raise ValueError("`start` must lie before `end`")
        if self.range_test and self.trust is None:
            raise ValueError("`range_test` measures by `trust`: give it a value, such as 0.1")
        return self


@final
class Method(AbstractStructuredMethod[ProgressiveOptions]):
    """Milestones, relative statistics, capped budgets."""

    name = "progressive"
    version = 1
    Options = ProgressiveOptions

    def __init__(self, options: ProgressiveOptions) -> None:
        super().__init__(options)
        self.ema, self.trust, self.range_test = options.ema, options.trust, options.range_test
        self.needs_images = options.trust is not None

    @property
    def importance(self) -> Importance:
        """As chosen."""
        return self.options.importance

    def milestones(
        self, total_steps: int, learning_rate: Callable[[int], float] | None
    ) -> dict[int, float]:
        """`updates` events."""
        options = self.options
        return milestones(
            options.step_size,
            start=options.start,
            end=options.end,
            updates=options.updates,
            total_steps=total_steps,
            learning_rate=learning_rate,
        )

    def room(self, live: int, before: int, last: bool) -> int:
        """Down to `min_channels` and to what `max_share` leaves, by `cap` at once."""
        most = live if last else max(1, math.floor(self.options.cap * live))
        return min(most, spare(live, before, self.options.min_channels, self.options.max_share))

    def allocate(
        self, layers: Sequence[Layer], room: Sequence[int], generator: torch.Generator
    ) -> Callable[[int], list[int]]:
        """Shares by relative importance, or by that of another layer with `shuffle`."""
        z = relative_importance([layer.scores for layer in layers], [x.fan for x in layers])
        if self.options.shuffle:
            order = torch.randperm(len(z), generator=generator).tolist()
            z = [z[i] for i in order]
        live = [layer.live for layer in layers]
        return lambda n: budget(n, live, z, self.options.kappa, room)

"""Removes whole channels, at once or gradually, by one ranking or evenly over layers.

The sparsity is the share of the model's multiply-accumulates (MACs) to remove, at the image size
of the run: 0.75 leaves a quarter. Channels that depend on each other (residual additions, depthwise
convolutions, batch norm) go together; removed channels are cut out of the network and out of the
optimizer's state, and the training goes on. With the defaults this is the classic train, prune,
fine-tune: one event at half of the training. `updates` above 1 spreads the removal from `start` to
`end` with steps in the shape of `step_size`.

Family: structured
Schedule: one event at `start`, or `updates` events from `start` to `end`
Cost: one trace before training; tracked gradients with `taylor` alone; training gets faster
Source: groups of channels: Fang et al. 2023, arXiv 2301.12900 (DepGraph); criteria: Li et al. 2017,
arXiv 1608.08710 (l1, l2), Liu et al. 2017, arXiv 1708.06519 (bn_gamma), He et al. 2019, arXiv
1811.00250 (fpgm), Molchanov et al. 2019, NVlabs/Taylor_pruning (taylor)
Deviations: the target is MACs, not a ratio of channels, and n channels go where n - 1 do not reach
it; the global ranking divides a layer's scores by their mean, which makes layers comparable; no
layer loses more than `max_share` of its channels; groups that cannot be cut exactly stay whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from pydantic import Field, model_validator

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.pruning.structured.budget import budget, spare
from sparse_transfer.pruning.structured.importance import Importance, lowest_counts
from sparse_transfer.pruning.structured.method import AbstractStructuredMethod, Layer
from sparse_transfer.pruning.structured.schedule import StepSize, milestones


class StructuredOptions(Frozen):
    """`start` and `end` are fractions of training; `max_share` is of a layer's channels at start.

    `ema` is the share of the old score in the running mean of `taylor`, whose scores are noisy.
    """

    importance: Importance = "l2"
    allocation: Literal["uniform", "global"] = "global"
    start: Fraction = 0.5
    end: float = Field(0.75, gt=0, le=1)
    updates: int = Field(1, ge=1)
    step_size: StepSize = "cubic"
    min_channels: int = Field(1, ge=1)
    max_share: float = Field(0.9, gt=0, le=1)
    ema: Fraction = 0.9

    @model_validator(mode="after")
    def _window(self) -> StructuredOptions:
        if self.updates > 1 and self.start >= self.end:
            raise ValueError("`start` must lie before `end`")
        return self


@final
class Method(AbstractStructuredMethod[StructuredOptions]):
    """Milestones, an importance, and even or ranked counts."""

    name = "structured"
    version = 1
    Options = StructuredOptions

    def __init__(self, options: StructuredOptions) -> None:
        super().__init__(options)
        self.ema = options.ema

    @property
    def importance(self) -> Importance:
        """As chosen."""
        return self.options.importance

    def milestones(
        self, total_steps: int, learning_rate: Callable[[int], float] | None
    ) -> dict[int, float]:
        """One event at `start`, or `updates` of them."""
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
        """Down to `min_channels`, and to what `max_share` leaves."""
        return spare(live, before, self.options.min_channels, self.options.max_share)

    def allocate(
        self, layers: Sequence[Layer], room: Sequence[int], generator: torch.Generator
    ) -> Callable[[int], list[int]]:
        """The same fraction of every layer, or the lowest of all by score over layer mean."""
        if self.options.allocation == "uniform":
            live = [layer.live for layer in layers]
            return lambda n: budget(n, live, [0.0] * len(live), 0.0, room)
        means = [layer.scores.mean().clamp_min(1e-30) for layer in layers]
        return lowest_counts([x.scores / m for x, m in zip(layers, means, strict=True)], room)

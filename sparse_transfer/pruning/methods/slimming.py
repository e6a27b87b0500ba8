"""Network slimming: an L1 penalty on batch-norm scales, then the smallest channels are cut out.

While training, every batch-norm scale gamma that belongs to a group of channels pays
`strength` * |gamma|, which drives the scales of unneeded channels towards zero. At the fraction
`at` of training the channels with the smallest |gamma| over all layers are removed for good and
the penalty ends; the rest of the training is the fine-tuning. The sparsity is the share of the
model's multiply-accumulates (MACs) to remove.

Family: structured, regularisation
Schedule: penalty until `at`, one event there
Cost: O(channels) per step; one trace before training; the training after `at` is faster
Source: Liu et al. 2017, arXiv 1708.06519 (strength 1e-4 for VGG, 1e-5 for ResNet-164)
Deviations: the percentile of |gamma| is not given but follows from the MACs; channels that depend
on each other go together, by the mean of their |gamma|, where the source adds selection layers to
pre-activation networks; the penalty spares scales whose channels stay; each layer keeps
`min_channels`; fine-tuning goes on in the same training instead of starting a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.pruning.structured.importance import Importance, lowest_counts
from sparse_transfer.pruning.structured.method import AbstractStructuredMethod, Layer
from sparse_transfer.pruning.structured.schedule import milestones


class SlimmingOptions(Frozen):
    """`strength` multiplies the sum of |gamma|; `at` is a fraction of training."""

    strength: float = Field(1e-4, ge=0)
    at: Fraction = 0.5
    min_channels: int = Field(1, ge=1)


@final
class Method(AbstractStructuredMethod[SlimmingOptions]):
    """A penalty, one milestone, one ranking of the scales as they are."""

    name = "slimming"
    version = 1
    Options = SlimmingOptions

    @property
    def importance(self) -> Importance:
        """|gamma|."""
        return "bn_gamma"

    def milestones(
        self, total_steps: int, learning_rate: Callable[[int], float] | None
    ) -> dict[int, float]:
        """One event."""
        at = self.options.at
        return milestones(
            "constant",
            start=at,
            end=1.0,
            updates=1,
            total_steps=total_steps,
            learning_rate=learning_rate,
        )

    def room(self, live: int, before: int, last: bool) -> int:
        """Down to `min_channels`."""
        return max(0, live - self.options.min_channels)

    def allocate(
        self, layers: Sequence[Layer], room: Sequence[int], generator: torch.Generator
    ) -> Callable[[int], list[int]]:
        """The smallest of all layers together."""
        return lowest_counts([layer.scores for layer in layers], room)

    def penalty(self, scales: Sequence[Tensor]) -> Tensor | None:
        """strength * sum |gamma|, whose subgradient at zero is zero."""
        if not self.options.strength:
            return None
        return self.options.strength * torch.stack([s.abs().sum() for s in scales]).sum()

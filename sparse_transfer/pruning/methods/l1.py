"""L1 by its proximal operator: after each step every |w| shrinks, and small weights become zero.

After an optimizer step at learning rate r every prunable weight is set to sign(w) max(|w| - r
strength, 0). Zeros are exact but not final: a gradient may bring a weight back until training ends.
There is no target; a larger `strength` gives more zeros, and the amount depends on the recipe too.
Under batch normalisation the scale of a filter is free, so the penalty shrinks whole filters
without changing what they compute; the zeros come from the weights that are small beside others.

Family: penalty, magnitude, learns its sparsity.
Schedule: no events; every step shrinks, and what is zero at the end is pruned.
Cost: one pass over the weights for each step.
Source: the proximal gradient method (ISTA); folklore in pruning, no one paper.
Deviations: the subgradient form, which adds strength sign(w) to the gradient, is left out: it gives
no exact zeros. The threshold is r strength for every optimizer: exact for SGD without momentum;
the operator that is exact for Adam would scale by coordinate, r / (sqrt(v) + eps).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.method import AbstractMethod, Event, Target


class L1Options(Frozen):
    """`strength`: weight of the sum of |w| over prunable weights in the loss."""

    strength: float = Field(1e-4, gt=0)


@final
class Method(AbstractMethod[L1Options]):
    """Soft thresholding after each step."""

    name = "l1"
    version = 1
    has_target = False
    learns_mask = True
    shrinks = True
    Options = L1Options

    def schedule(self, target: Target) -> dict[int, Event]:
        """No events."""
        return {}

    def shrink(self, weights: Mapping[str, Tensor], rate: float) -> None:
        """The proximal step of `strength` |w|, in place."""
        for weight in weights.values():
            weight.copy_(functional.softshrink(weight, rate * self.options.strength))

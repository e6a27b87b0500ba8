"""Group lasso: after each step every output channel shrinks as a whole, and weak ones become zero.

A group is the weights of one output channel (a row of a linear layer) of a prunable layer. After an
optimizer step at learning rate r its n weights are multiplied by max(0, 1 - r strength sqrt(n) /
||w||). Groups at zero may return until training ends. There is no target. The weights of a channel
are gone, its bias or batch-norm shift is not: it still gives that constant, which has to be folded
into the next layer before the channel is cut out. A whole layer can vanish if `strength` is large;
keep the head dense, where an output channel is a class.

Family: penalty, structured by output channel, learns its sparsity.
Schedule: no events; every step shrinks, and what is zero at the end is pruned.
Cost: two passes over the weights for each step.
Source: Yuan & Lin 2006 (group lasso); on filters Wen et al. 2016, arXiv 1608.03665.
Deviations: Wen et al. add the penalty's gradient and cut at the end; here the proximal operator
gives exact zeros. Groups are output channels alone, not input channels, shapes or depths, and not
coupled across layers. The threshold is r strength for every optimizer, also where the exact
operator would scale by coordinate (Adam).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import final

import torch
from pydantic import Field
from torch import Tensor

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.method import AbstractMethod, Event, Target


class GroupLassoOptions(Frozen):
    """`strength`: weight of the sum over output channels of sqrt(n) ||w|| in the loss."""

    strength: float = Field(1e-4, gt=0)


@final
class Method(AbstractMethod[GroupLassoOptions]):
    """Block soft thresholding after each step."""

    name = "group_lasso"
    version = 1
    has_target = False
    learns_mask = True
    shrinks = True
    Options = GroupLassoOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """No events."""
        return {}

    def shrink(self, weights: Mapping[str, Tensor], rate: float) -> None:
        """The proximal step of `strength` sqrt(n) ||w|| for each output channel, in place."""
        for weight in weights.values():
            dims = tuple(range(1, weight.dim()))
            norm = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
            threshold = rate * self.options.strength * math.sqrt(weight[0].numel())
            # (norm - threshold) / norm, with 0 / 1 where nothing is left
            weight.mul_((norm - threshold).clamp_min_(0) / norm.where(norm > threshold, 1.0))

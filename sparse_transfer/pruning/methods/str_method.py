"""STR: each layer learns a threshold below which its weights are zero.

The forward pass uses sign(w) max(|w| - sigmoid(s), 0) with one learned s for each layer; at the end
these values become the plain weights. There is no target: the sparsity follows from `s_init`, from
the decay of s and from the task. While sigmoid(s) is almost 0 the task does not move s, and under
SGD with momentum m, learning rates r and decay d it follows s(t) = s_init exp(-d sum(r) / (1 - m)):
it drifts towards 0, where the threshold would be .5, until the task holds it back. So the source's
s_init of -3200 needs a long training (d sum(r) / (1 - m) of 5.4 to reach -15, where the threshold
is 3e-7); a short one needs an s_init near the s that is wanted: sigmoid(-6) is .0025, sigmoid(-4)
is .018.

Family: relaxation (learned threshold by layer), learns its sparsity.
Schedule: no events; thresholds move with every step.
Cost: an elementwise function of every weight for each forward pass; one parameter for each layer.
Source: Kusupati et al. 2020, arXiv 2002.03231.
Deviations: `s_init` is -10, not -3200 (give that with the paper's recipe of 100 epochs); which
layers learn a threshold is the recipe's `keep_dense`, where the paper takes all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.method import AbstractMethod, Event, Target

ALIAS = "str"


class StrOptions(Frozen):
    """`s_init`: where s begins in each layer. `threshold_decay`: its weight decay; None takes the
    recipe's. With neither decay nor gradient s stays where it is."""

    s_init: float = Field(-10.0, le=0)
    threshold_decay: float | None = Field(None, ge=0)


@final
class SoftThreshold(nn.Module):
    """Weight in, soft-thresholded weight out; `threshold` (1,) is s, the threshold sigmoid(s)."""

    def __init__(self, like: Tensor, s_init: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.full((1,), s_init).to(like))

    def forward(self, weight: Tensor) -> Tensor:
        """sign(w) max(|w| - sigmoid(s), 0), in the weight's shape."""
        return weight.sign() * nn.functional.relu(weight.abs() - self.threshold.sigmoid())


@final
class Method(AbstractMethod[StrOptions]):
    """A soft threshold around every prunable weight."""

    name = ALIAS
    version = 1
    has_target = False
    learns_mask = True
    Options = StrOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """No events."""
        return {}

    def relax(self, layers: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Module]:
        """A `SoftThreshold` for each layer."""
        s_init = self.options.s_init
        return {name: SoftThreshold(layer.detach(), s_init) for name, layer in layers.items()}

    def relaxed_options(self) -> Mapping[str, float]:
        """The decay of the thresholds, if it is not the recipe's."""
        decay = self.options.threshold_decay
        return {} if decay is None else {"weight_decay": decay}

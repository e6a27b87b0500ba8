"""SR-STE: N:M sparsity from dense weights, masked anew in every forward pass.

Every weight keeps training. The forward pass uses the N largest |w| of every M consecutive input
channels; the gradient goes straight through to all weights, and those that are masked now are also
pulled to zero by `decay` w, so that the pattern settles. At the end the masked weights become the
plain ones.

Family: straight-through estimator, N:M pattern, magnitude.
Schedule: no events; the pattern is chosen anew at every forward pass.
Cost: a sort of the weights in groups of M for each forward pass; the model trains dense.
Source: Zhou et al. 2021, arXiv 2102.04010; `decay` 2e-4 as published.
Deviations: groups lie along input channels, as the hardware reads them, where the first variant of
the authors' code cuts the flat tensor; biases stay; of equal weights the first is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from pydantic import Field
from torch import Tensor, nn

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.allocation import Pattern, check_allocation, pattern_of
from sparse_transfer.pruning.criteria import strongest
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Target


class SrSteOptions(Frozen):
    """`pattern`: "N:M"; the sparsity asked for must be 1 - N/M. `decay`: pull on masked weights."""

    pattern: Pattern = "2:4"
    decay: float = Field(2e-4, ge=0)


class MaskedForward(torch.autograd.Function):
    """Forward w m(w); backward the gradient as it comes, also where m is zero."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor) -> Tensor:
        """The weight with what is masked at zero."""
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        """Straight through."""
        return gradients[0], None


@final
class StraightThrough(nn.Module):
    """Weight in, N:M weight out; no parameters.

    Attributes:
        masked: the weights that the last forward pass masked, zero elsewhere; they are pulled to
            zero once in a step, however many passes its gradient is accumulated over.
    """

    def __init__(self, pattern: tuple[int, int]) -> None:
        super().__init__()
        self.pattern = pattern
        self.masked: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        """(out, in, *kernel) → the same shape."""
        mask = strongest(weight.detach().abs(), self.pattern)
        self.masked = weight.masked_fill(mask, 0.0) if self.training else None
        return MaskedForward.apply(weight, mask)


@final
class Method(AbstractMethod[SrSteOptions]):
    """A straight-through mask around every prunable weight."""

    name = "sr_ste"
    version = 1
    learns_mask = True
    Options = SrSteOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """No events; refuses what the pattern does not fit."""
        check_allocation(self.options.pattern, target)
        return {}

    def relax(self, layers: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Module]:
        """A `StraightThrough` for each layer."""
        return {name: StraightThrough(self._pattern()) for name in layers}

    def penalty(self, relaxed: Mapping[str, nn.Module]) -> Tensor | None:
        """decay / 2 × the squares of what is masked: the gradient decay (1 - m) w."""
        squares = []
        for module in relaxed.values():
            assert isinstance(module, StraightThrough)
            if module.masked is not None:
                squares.append(module.masked.square().sum())
                module.masked = None  # it holds a graph, and a copy of the model cannot
        return self.options.decay / 2 * torch.stack(squares).sum() if squares else None

    def final_masks(self, weights: Mapping[str, Tensor]) -> Masks:
        """Exactly N of every M, also where kept weights happen to be zero."""
        return Masks({n: strongest(w.detach().abs(), self._pattern()) for n, w in weights.items()})

    def _pattern(self) -> tuple[int, int]:
        pattern = pattern_of(self.options.pattern)
        assert pattern is not None  # validated
        return pattern

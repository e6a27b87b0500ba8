"""A network in bfloat16 that takes and returns float32."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor, nn


@final
class InBfloat16(nn.Module):
    """A copy of a module whose parameters, buffers and arithmetic are bfloat16."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        """Any float tensor → float32."""
        return self.module(images.to(torch.bfloat16)).float()

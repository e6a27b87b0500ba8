"""PyTorch eager: batch norm folded, channels-last, inference mode."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from sparse_transfer.fusion import fold_batch_norms
from sparse_transfer.latency import Prepared


@final
class Backend:
    """The reference that every other backend is compared with."""

    name = "dense"
    uses_zeros = "does not use zeros"

    def available(self) -> str | None:
        """None: PyTorch is always there."""
        return None

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """A callable (n, 3, h, w) → (n, classes) on the example's device; the model is copied."""
        fused, note = fold_batch_norms(model)
        fused = fused.to(example.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

        def run(images: Tensor) -> Tensor:
            with torch.inference_mode():
                return fused(images.contiguous(memory_format=torch.channels_last))

        return Prepared(run, note)

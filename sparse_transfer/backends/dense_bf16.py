"""PyTorch in bfloat16, eager or torch.compile as `dense`; inputs and outputs float32."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from sparse_transfer.backends.dense import eager_or_compiled
from sparse_transfer.bfloat16 import InBfloat16
from sparse_transfer.fusion import fold_batch_norms
from sparse_transfer.latency import BF16_TOLERANCE, Prepared

ALIAS = "dense-bf16"


@final
class Backend:
    """What a CPU with matrix units for bfloat16 (AMX), or a GPU, does best without zeros."""

    name = ALIAS
    uses_zeros = "does not use zeros"
    tolerance = BF16_TOLERANCE

    def available(self) -> str | None:
        """None: PyTorch is always there, if slow where the CPU has no bfloat16."""
        return None

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """A callable (n, 3, h, w) → (n, classes) on the example's device; the model is copied."""
        fused, note = fold_batch_norms(model)
        rounded = InBfloat16(fused).to(example.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return eager_or_compiled(rounded, example, note, self.tolerance)

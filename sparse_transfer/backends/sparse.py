"""The package's own sparse engine: zeros are skipped on the CPU, layer by layer where that pays."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from sparse_transfer.errors import UserError
from sparse_transfer.latency import Prepared
from sparse_transfer.sparse import library


@final
class Backend:
    """Compiles for the example's shape; falls back to the dense path where that is faster."""

    name = "sparse"
    uses_zeros = "uses zeros"

    def available(self) -> str | None:
        """Why there are no kernels, or None."""
        return library.available()

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Measure, choose and pack; the model is copied.

        Raises:
            UserError: there are no kernels, or the model is not in float32 on the CPU.
        """
        reason = self.available()
        if reason is not None:
            raise UserError("The backend sparse cannot run.", reason)
        from sparse_transfer.sparse.engine import compile

        compiled = compile(model, example)
        level, threads = library.current().level, torch.get_num_threads()
        return Prepared(
            compiled, f"{compiled.engine}: {compiled.reason}; {level}, {threads} threads"
        )

"""The package's own sparse engine where rounding to bfloat16 is allowed: the fastest type wins."""

from __future__ import annotations

from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from sparse_transfer.backends import dense_bf16
from sparse_transfer.backends.sparse import or_dense
from sparse_transfer.errors import UserError
from sparse_transfer.latency import BF16_TOLERANCE, Prepared
from sparse_transfer.sparse import library

ALIAS = "sparse-bf16"


@final
class Backend:
    """The engine in bfloat16 or in float32, or the backend `dense-bf16`: what is fastest here.

    Inputs and outputs are float32; the note says which it is.
    """

    name = ALIAS
    uses_zeros = "uses zeros"
    tolerance = BF16_TOLERANCE

    def available(self) -> str | None:
        """Why there are no kernels for bfloat16, or None."""
        return library.available(torch.bfloat16)

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Measure, choose and pack; the model is copied.

        Raises:
            UserError: there are no kernels, or the model is not in float32 on the CPU.
        """
        reason = self.available()
        if reason is not None:
            raise UserError(f"The backend {ALIAS} cannot run.", reason)
        from sparse_transfer.sparse.engine import compile

        compiled = compile(model, example, dtype=torch.bfloat16)
        kind, threads = str(compiled.dtype).removeprefix("torch."), torch.get_num_threads()
        note = f"sparse in {kind}: {compiled.reason}; {threads} threads"
        return or_dense(compiled, note, partial(dense_bf16.Backend().prepare, model), example)

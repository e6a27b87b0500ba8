"""The package's own sparse engine: zeros are skipped on the CPU, layer by layer where that pays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from sparse_transfer import latency
from sparse_transfer.backends import dense
from sparse_transfer.errors import UserError
from sparse_transfer.latency import Prepared
from sparse_transfer.sparse import library

if TYPE_CHECKING:
    from sparse_transfer.sparse.engine import Compiled


CLOSE = 2.0  # gain over PyTorch eager beyond which torch.compile has not been seen to be ahead


@final
class Backend:
    """Compiles for the example's shape; is the backend `dense` where zeros are not worth it."""

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
        note = f"sparse: {compiled.reason}; {level}, {threads} threads"
        return or_dense(compiled, note, partial(dense.Backend().prepare, model), example)


def or_dense(
    compiled: Compiled, note: str, prepare: Callable[[Tensor], Prepared], example: Tensor
) -> Prepared:
    """The compiled network, or the dense backend where that is faster.

    Compiling compares with PyTorch eager alone, so a small gain is measured again against what the
    dense backend makes of the model.
    """
    timing = compiled.timing
    if compiled.engine == "sparse" and timing and timing.dense > CLOSE * timing.sparse:
        return Prepared(compiled, note)
    plain = prepare(example)
    if compiled.engine == "dense":
        return Prepared(plain.run, f"dense: {compiled.reason}; {plain.note}")
    medians = latency.medians({"sparse": compiled, "dense": plain.run}, example)
    if medians["sparse"] <= medians["dense"]:
        return Prepared(compiled, note)
    times = " against ".join(f"{1000 * medians[name]:.3g} ms" for name in ("sparse", "dense"))
    return Prepared(plain.run, f"dense: zeros skipped were not faster ({times}); {plain.note}")

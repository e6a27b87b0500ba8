"""PyTorch: batch norm folded, channels-last; eager or torch.compile, whichever is faster here.

torch.compile (inductor, weights frozen) is tried where an eager call takes at least `WORTH`
seconds: compiling takes from seconds to a minute, which nobody waits for to save less. Both are
timed on the example in interleaved rounds, and the note says both times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from sparse_transfer import latency
from sparse_transfer.errors import UserError
from sparse_transfer.fusion import fold_batch_norms, trace
from sparse_transfer.latency import Prepared

WORTH = 0.02  # seconds of an eager call from which on the model is compiled, too


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
        return eager_or_compiled(fused, example, note)


def eager_or_compiled(
    fused: nn.Module, example: Tensor, note: str, tolerance: float = latency.TOLERANCE
) -> Prepared:
    """The faster of both; they must agree within the tolerance."""
    eager = _called(fused)
    if latency.medians({"eager": eager}, example, repeats=3)["eager"] < WORTH:
        return Prepared(eager, f"{note}; eager")
    try:
        compiled = _called(compile_frozen(fused))
        latency.agreement("torch.compile", compiled(example), eager(example), tolerance)
    # what tracing, code generation and the C++ compiler raise is not theirs to promise
    except Exception as error:
        return Prepared(eager, f"{note}; eager, as torch.compile failed: {_reason(error)}")
    medians = latency.medians({"eager": eager, "compiled": compiled}, example)
    best = min(medians, key=lambda name: medians[name])
    times = ", ".join(f"{name} {1000 * value:.3g} ms" for name, value in medians.items())
    return Prepared(compiled if best == "compiled" else eager, f"{note}; {best} ({times})")


def compile_frozen(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model for torch.compile; compiled at its first call, for the shape of that one.

    It is traced before: Dynamo keeps what it compiled by code object, and two models of one class
    would share one; a graph has code of its own.

    Raises:
        Exception: torch.fx cannot trace it.
    """
    options: dict[str, Any] = {"freezing": True}
    return torch.compile(trace(model), dynamic=False, options=options)


def _called(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images.contiguous(memory_format=torch.channels_last))

    return run


def _reason(error: Exception) -> str:
    """The first line of an error that says something."""
    text = error.why if isinstance(error, UserError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__

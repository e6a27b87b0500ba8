"""Sparse weights made fast on a CPU: kernels, single layers, and an inference engine.

from sparse_transfer import sparse

fast = sparse.compile(model.eval(), images)   # a timm network with zeros, images as they will come
fast(images)
print(fast.explain())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_transfer.sparse.drop_in import SparseConv2d
    from sparse_transfer.sparse.engine import Compiled, compile  # noqa: A004
    from sparse_transfer.sparse.layer import SparseConvolution, SparseLinear

_PLACES = {
    "Compiled": "engine",
    "compile": "engine",
    "SparseConv2d": "drop_in",
    "SparseConvolution": "layer",
    "SparseLinear": "layer",
}
__all__ = ["Compiled", "SparseConv2d", "SparseConvolution", "SparseLinear", "compile"]


def __getattr__(name: str) -> Any:
    """Torch is imported by what needs it, not by the package."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)

"""Sparse weights made fast on a CPU: kernels, single layers, inference and training.

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
    from sparse_transfer.sparse.training import TrainingModel, convert_for_training

_PLACES = {
    "Compiled": "engine",
    "compile": "engine",
    "TrainingModel": "training",
    "convert_for_training": "training",
    "SparseConv2d": "drop_in",
    "SparseConvolution": "layer",
    "SparseLinear": "layer",
}
__all__ = [
    "Compiled",
    "SparseConv2d",
    "SparseConvolution",
    "SparseLinear",
    "TrainingModel",
    "compile",
    "convert_for_training",
]


def __getattr__(name: str) -> Any:
    """Torch is imported by what needs it, not by the package."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)

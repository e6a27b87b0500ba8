"""Prune vision models, transfer them with the mask held fixed, and measure what the zeros cost.

The public Python API: `load` opens a sparse checkpoint. Everything else may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse_transfer.checkpoint import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # late, so that `import sparse_transfer` does not import torch
    if name == "load":
        from sparse_transfer.checkpoint import load

        return load
    raise AttributeError(f"module 'sparse_transfer' has no attribute '{name}'")

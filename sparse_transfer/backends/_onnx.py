"""A model as an ONNX graph in memory, for the engines that take one."""

from __future__ import annotations

from torch import Tensor, nn

from sparse_transfer import onnx_export
from sparse_transfer.onnx_export import missing

__all__ = ["export", "missing"]


def export(model: nn.Module, example: Tensor, backend: str) -> bytes:
    """The model in eval mode, serialised with its weights, for inputs of the example's shape.

    Raises:
        UserError: the exporter cannot do it; the backend that wants it is named.
    """
    return onnx_export.graph(model, example.cpu(), hint=f"Leave `{backend}` out of `backends`.")

"""ONNX Runtime on the CPU: the model exported by torch.onnx, as many threads as PyTorch uses."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from sparse_transfer.backends._onnx import export, missing
from sparse_transfer.errors import UserError
from sparse_transfer.latency import Prepared

ALIAS = "onnxruntime"
NEEDED = ("onnx", "onnxscript", "onnxruntime")


@final
class Backend:
    """A portable dense baseline that fuses operators; the batch size is the example's."""

    name = ALIAS
    uses_zeros = "does not use zeros"

    def available(self) -> str | None:
        """Which packages are missing, or None."""
        return missing(NEEDED, "onnxruntime")

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Export and compile the model for inputs of the example's shape.

        Raises:
            UserError: a package is missing, or the model cannot be exported.
        """
        reason = self.available()
        if reason is not None:
            raise UserError("The backend onnxruntime cannot run.", reason)
        return session(export(model, example, ALIAS))


def session(graph: bytes) -> Prepared:
    """A serialised ONNX graph of one input and one output, ready to be called."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    made = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = made.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(made.run(None, {name: images.cpu().numpy()})[0])

    threads = f"{options.intra_op_num_threads} threads"
    return Prepared(run, f"onnxruntime {onnxruntime.__version__}, {threads}, CPU")

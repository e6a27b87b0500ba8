"""OpenVINO on the CPU in float32: the model exported by torch.onnx, as many threads as PyTorch.

The graph goes through ONNX and not through OpenVINO's own converter of PyTorch models, so that all
engines get the same one.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from sparse_transfer.backends._onnx import export, missing
from sparse_transfer.errors import UserError
from sparse_transfer.latency import Prepared

ALIAS = "openvino"
NEEDED = ("onnx", "onnxscript", "openvino")


@final
class Backend:
    """Intel's engine: convolutions fused with what follows, layouts of its own."""

    name = ALIAS
    uses_zeros = "does not use zeros"

    def available(self) -> str | None:
        """Which packages are missing, or None."""
        return missing(NEEDED, "openvino")

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Export and compile the model for inputs of the example's shape.

        Raises:
            UserError: a package is missing, or the model cannot be exported.
        """
        reason = self.available()
        if reason is not None:
            raise UserError(f"The backend {ALIAS} cannot run.", reason)
        return network(export(model, example, ALIAS), "f32")


def network(graph: bytes, precision: str) -> Prepared:
    """A serialised ONNX graph of one input and one output, compiled for the CPU.

    Args:
        precision: what OpenVINO may compute in, "f32" or "bf16"; inputs and outputs are float32.
    """
    import openvino  # pyright: ignore[reportMissingImports]

    core = openvino.Core()
    threads = torch.get_num_threads()
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,  # one call at a time, all threads at it
        "PERFORMANCE_HINT": "LATENCY",
        "LOG_LEVEL": "LOG_ERROR",
    }
    compiled = core.compile_model(core.read_model(graph), "CPU", settings)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled(images.cpu().contiguous().numpy())[0])

    version = openvino.__version__.partition("-")[0]
    return Prepared(run, f"openvino {version} in {precision}, {threads} threads, CPU")

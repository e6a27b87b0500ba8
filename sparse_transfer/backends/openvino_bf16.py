"""OpenVINO on the CPU in bfloat16, where the CPU multiplies that; inputs and outputs float32."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from sparse_transfer.backends._onnx import export, missing
from sparse_transfer.backends.openvino_backend import NEEDED, network
from sparse_transfer.errors import UserError
from sparse_transfer.latency import BF16_TOLERANCE, Prepared

ALIAS = "openvino-bf16"


@final
class Backend:
    """As `openvino`, with half the bytes and the wider multiplications of bfloat16."""

    name = ALIAS
    uses_zeros = "does not use zeros"
    tolerance = BF16_TOLERANCE

    def available(self) -> str | None:
        """Which packages are missing, or that the CPU has no bfloat16; else None."""
        reason = missing(NEEDED, "openvino")
        if reason is not None:
            return reason
        import openvino  # pyright: ignore[reportMissingImports]

        found = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if "BF16" not in found:
            return f"this CPU does not multiply bfloat16: OpenVINO lists {', '.join(found)}"
        return None

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Export and compile the model for inputs of the example's shape.

        Raises:
            UserError: a package is missing, or the model cannot be exported.
        """
        reason = self.available()
        if reason is not None:
            raise UserError(f"The backend {ALIAS} cannot run.", reason)
        return network(export(model, example, ALIAS), "bf16")

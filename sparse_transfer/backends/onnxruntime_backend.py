"""ONNX Runtime on the CPU: the model exported by torch.onnx, as many threads as PyTorch uses."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
from typing import final

import torch
from torch import Tensor, nn

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
        missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if not missing:
            return None
        return f"{', '.join(missing)} not installed: pip install 'sparse-transfer[onnxruntime]'"

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Export and compile the model for inputs of the example's shape.

        Raises:
            UserError: a package is missing, or the model cannot be exported.
        """
        reason = self.available()
        if reason is not None:
            raise UserError("The backend onnxruntime cannot run.", reason)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            _export(model, example.cpu()), options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: images.cpu().numpy()})[0])

        threads = f"{options.intra_op_num_threads} threads"
        return Prepared(run, f"onnxruntime {onnxruntime.__version__}, {threads}, CPU")


def _export(model: nn.Module, example: Tensor) -> bytes:
    """The model as a serialised ONNX graph with its weights inside."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        # the exporter reports its progress on standard output
        with contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                copy.deepcopy(model).cpu().eval(), (example,), dynamo=True, verbose=False
            )
    except Exception as error:  # the exporter wraps whatever the model's own code raises
        raise UserError(
            f"{type(model).__name__} cannot be exported to ONNX.",
            str(error).strip().partition("\n")[0],
            "Leave `onnxruntime` out of `backends`.",
        ) from error
    finally:
        exporter.setLevel(level)
    assert program is not None
    return program.model_proto.SerializeToString()

"""A model as an ONNX graph in memory, for the engines that take one."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_transfer.errors import UserError


def missing(packages: Sequence[str], extra: str) -> str | None:
    """Which of the packages are not installed and what installs them, or None."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{', '.join(absent)} not installed: pip install 'sparse-transfer[{extra}]'"


def export(model: nn.Module, example: Tensor, backend: str) -> bytes:
    """The model in eval mode, serialised with its weights, for inputs of the example's shape.

    Raises:
        UserError: the exporter cannot do it; the backend that wants it is named.
    """
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        # the exporter reports its progress on standard output
        with contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                copy.deepcopy(model).cpu().eval(), (example.cpu(),), dynamo=True, verbose=False
            )
    except Exception as error:  # the exporter wraps whatever the model's own code raises
        raise UserError(
            f"{type(model).__name__} cannot be exported to ONNX.",
            str(error).strip().partition("\n")[0],
            f"Leave `{backend}` out of `backends`.",
        ) from error
    finally:
        exporter.setLevel(level)
    assert program is not None
    return program.model_proto.SerializeToString()

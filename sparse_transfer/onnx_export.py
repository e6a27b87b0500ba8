"""Networks as ONNX graphs, through torch.onnx: for ONNX Runtime here, and for other engines."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sparse_transfer import latency
from sparse_transfer.errors import UserError
from sparse_transfer.fusion import fold_batch_norms
from sparse_transfer.store import replacing

NEEDED = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT, BATCH = "images", "logits", "batch"
CHECKED = (1, 2, 5)  # numbers of images that a written graph is tried with


def missing(packages: Sequence[str], extra: str) -> str | None:
    """Which of the packages are not installed and what installs them, or None."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{', '.join(absent)} not installed: pip install 'sparse-transfer[{extra}]'"


def graph(
    model: nn.Module,
    example: Tensor,
    *,
    any_batch: bool = False,
    metadata: Mapping[str, str] | None = None,
    hint: str = "torch.export must be able to follow its code; a packed file needs no ONNX.",
) -> bytes:
    """The model in eval mode as a serialised ONNX graph with its weights inside.

    Args:
        example: (n, 3, h, w) float32 on the CPU; n at least 2 for `any_batch`.
        any_batch: the number of images is free; else it is the example's.
        metadata: entries of the graph's own metadata.
        hint: what to do where it cannot be exported.

    Raises:
        UserError: the model cannot be exported.
    """
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        # the exporter reports its progress on standard output
        with contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                copy.deepcopy(model).cpu().eval(),
                (example,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: BATCH},) if any_batch else None,
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        made = program.model_proto
        if metadata:
            from onnx.helper import set_model_props

            set_model_props(made, dict(metadata))
        return made.SerializeToString()
    except Exception as error:  # the exporter wraps whatever the model's own code raises
        raise UserError(
            f"{type(model).__name__} cannot be exported to ONNX.",
            str(error).strip().partition("\n")[0],
            hint,
        ) from error
    finally:
        exporter.setLevel(level)


def write(model: nn.Module, image_size: int, path: Path, metadata: Mapping[str, str]) -> str:
    """Write a network with its batch norms folded, for any number of images.

    What was written is run by ONNX Runtime before it is kept.

    Args:
        model: float32.
        image_size: pixels of the square input.
        metadata: entries of the graph's own metadata.

    Returns:
        What was folded, and how far the outputs are from PyTorch's.

    Raises:
        UserError: a package is missing, the model cannot be exported, the outputs differ by more
            than `latency.TOLERANCE` of the largest, or the file cannot be written.
    """
    reason = missing(NEEDED, "onnxruntime")
    if reason is not None:
        raise UserError("Nothing can be exported to ONNX.", reason)
    import onnxruntime

    model = copy.deepcopy(model).cpu().eval()
    folded, note = fold_batch_norms(model)
    generator = torch.Generator().manual_seed(0)
    channels = getattr(model, "in_chans", 3)
    images = torch.randn(
        max(CHECKED), channels, image_size, image_size, generator=generator, dtype=torch.float32
    )
    serialised = graph(folded, images[:2], any_batch=True, metadata=metadata)
    with replacing(path) as temporary:
        temporary.write_bytes(serialised)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(temporary), options, providers=["CPUExecutionProvider"]
        )
        errors = []
        for count in CHECKED:
            with torch.inference_mode():
                expected = model(images[:count])
            found = session.run([OUTPUT], {INPUT: images[:count].numpy()})[0]
            errors.append(latency.relative_error(torch.from_numpy(found), expected))
        if not max(errors) <= latency.TOLERANCE:  # NaN is not
            raise UserError(
                f"{path} was not written.",
                f"In ONNX Runtime its outputs differ from PyTorch's by {max(errors):.1e} of the "
                f"largest; {latency.TOLERANCE:.0e} is allowed.",
                "Export it as `packed`, or to ONNX with other versions of torch and onnxruntime.",
            )
    return f"{note}; outputs in ONNX Runtime within {max(errors):.0e} of the largest"

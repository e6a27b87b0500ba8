"""ONNX Runtime on the CPU in 8-bit integers: static quantisation, calibrated on training images.

Batch norms are folded, then every convolution and matrix product gets quantize and dequantize nodes
around it (QDQ): unsigned activations of one scale per tensor, the range being the least and
greatest value over the calibration images; signed weights of one scale per output channel. It is
not the model's function, so its outputs need not agree: its accuracy stands beside its time. On
CPUs without VNNI instructions pairs of products may saturate; that is in the accuracy too.

Source: Nagel et al. 2021, arXiv 2106.08295, section 3 (static, min-max, per-channel weights).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from sparse_transfer.backends._onnx import export, missing
from sparse_transfer.backends.onnxruntime_backend import NEEDED, session
from sparse_transfer.errors import UserError
from sparse_transfer.fusion import fold_batch_norms
from sparse_transfer.latency import Prepared

ALIAS = "onnxruntime-int8"


@final
class Backend:
    """What quantisation buys beside pruning, or instead of it."""

    name = ALIAS
    uses_zeros = "does not use zeros"
    tolerance = math.inf
    needs_images = True

    def available(self) -> str | None:
        """Which packages are missing, or None."""
        return missing(NEEDED, "onnxruntime")

    def prepare(self, model: nn.Module, example: Tensor, images: Tensor) -> Prepared:
        """Export, calibrate, quantise and compile the model for inputs of the example's shape.

        Args:
            images: (m, 3, h, w) training images as the model takes them.

        Raises:
            UserError: a package is missing, the model cannot be exported, or the images are none
                or of another size than the example.
        """
        reason = self.available()
        if reason is not None:
            raise UserError(f"The backend {ALIAS} cannot run.", reason)
        if not len(images) or images.shape[1:] != example.shape[1:]:
            raise UserError(
                f"The backend {ALIAS} cannot be calibrated.",
                f"The images are {tuple(images.shape)}, the example is {tuple(example.shape)}.",
                "Pass training images of the example's size.",
            )
        folded, _ = fold_batch_norms(model)
        made = session(_quantised(export(folded, example, ALIAS), images, len(example)))
        return Prepared(made.run, f"{made.note}, calibrated on {len(images)} training images")


def _quantised(graph: bytes, images: Tensor, batch: int) -> bytes:
    """A serialised ONNX graph with 8-bit weights and activations."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self._feeds = ({name: part.numpy()} for part in batches(images.cpu(), batch))

        def get_next(self) -> dict | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, shaped, made = (
            Path(folder) / f"{name}.onnx" for name in ("plain", "shaped", "int8")
        )
        plain.write_bytes(graph)
        quant_pre_process(plain, shaped, skip_symbolic_shape=True)
        quantize_static(
            shaped,
            made,
            Reader(onnx.load_from_string(graph).graph.input[0].name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return made.read_bytes()


def batches(images: Tensor, size: int) -> Iterator[Tensor]:
    """Images in batches of exactly this size; the last one is filled up from the beginning."""
    for start in range(0, len(images), size):
        rows = torch.arange(start, start + size) % len(images)
        yield images[rows]

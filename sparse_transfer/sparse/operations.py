"""Operations for the kernels, appended by methods named after them, in segments.

Within a segment an item (as many images as fill the lanes) goes through all operations before the
next one starts; what passes from segment to segment lies in the arena of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sparse_transfer.sparse.abi import Activation, Kind
from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.layout import Axis
from sparse_transfer.sparse.packing import Packed, PackedDense


@dataclass(eq=False)
class Operation:
    """Fields, buffers (input, output, other) and tables of an `abi.Op`."""

    fields: dict[str, Any]
    buffers: dict[str, Buffer]
    arrays: dict[str, np.ndarray | Tensor]
    is_pointwise: bool = False


class Operations:
    """A list of operations.

    Attributes:
        operations: all of them.
        segments: (first operation, images of an item) of each segment.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.segments: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.operations)

    def segment(self, images: int, *, is_new: bool = False) -> None:
        """What follows is done for items of that many images, or once for the batch where it is 0.

        A new segment waits until all items are through the one before it.
        """
        if is_new or not self.segments or self.segments[-1][1] != images:
            self.segments.append((len(self.operations), images))

    def add(
        self,
        kind: Kind,
        *,
        buffers: dict[str, Buffer],
        arrays: dict[str, np.ndarray | Tensor | None] | None = None,
        window: dict[str, int] | None = None,
        is_pointwise: bool = False,
        **fields: float,
    ) -> None:
        """Append an operation: its buffers (input, output, other), tables and numbers.

        One that is pointwise reads, for an output, nothing but the same position of its inputs.
        """
        number = len(self.operations)
        for buffer in buffers.values():
            (buffer.whole or buffer).uses.append(number)
        kept = {name: array for name, array in (arrays or {}).items() if array is not None}
        self.operations.append(
            Operation({"kind": int(kind), **(window or {}), **fields}, buffers, kept, is_pointwise)
        )

    def load(self, tensor: int, buffer: Buffer) -> None:
        """Tensor number `tensor` (images, channels, height, width), any strides → planes."""
        self.add(Kind.LOAD, buffers={"output": buffer}, tensor=tensor)

    def store(self, buffer: Buffer, tensor: int) -> None:
        """Planes → tensor number `tensor`."""
        self.add(Kind.STORE, buffers={"input": buffer}, tensor=tensor)

    def halo(self, buffer: Buffer, fill: float = 0.0) -> None:
        """Fill the halo, and what lies outside the images, with `fill`; the rest from neighbours.

        A buffer without either needs nothing.
        """
        self.add(Kind.HALO, buffers={"input": buffer}, fill=fill)

    def sparse(
        self,
        packed: Packed,
        source: Buffer,
        target: Buffer,
        *,
        tile: tuple[int, int],
        blocks: int,
        channels: np.ndarray,
        step: tuple[int, int],
        count: tuple[int, int],
        first: tuple[int, int] = (0, 0),
        out_step: tuple[int, int] = (1, 1),
        bias: np.ndarray | None = None,
        residual: Buffer | None = None,
        activation: Activation = Activation.NONE,
        is_pointwise: bool = False,
    ) -> None:
        """Outputs first + i · out_step, i < count, each from the inputs at i · step.

        `channels` (rows,) int32 says which channel each row of the matrix makes.
        """
        self.add(
            Kind.SPARSE,
            buffers=_with("other", residual, input=source, output=target),
            arrays={
                "entries": packed.entries,
                "pointers": packed.pointers,
                "channels": channels,
                "bias": bias,
            },
            activation=int(activation),
            is_pointwise=is_pointwise,
            n_rows=len(channels),
            blocks=blocks,
            first_y=first[0],
            first_x=first[1],
            out_step_y=out_step[0],
            out_step_x=out_step[1],
            window=_window(tile, step, count),
        )

    def dense(
        self,
        weights: np.ndarray,
        offsets: np.ndarray,
        source: Buffer,
        target: Buffer,
        *,
        tile: tuple[int, int],
        blocks: int,
        step: tuple[int, int],
        bias: np.ndarray | None = None,
        residual: Buffer | None = None,
        activation: Activation = Activation.NONE,
        is_pointwise: bool = False,
    ) -> None:
        """The same with a matrix of `pack_dense`, into all channels of the target."""
        self.add(
            Kind.DENSE,
            buffers=_with("other", residual, input=source, output=target),
            arrays={"weights": weights, "offsets": offsets, "bias": bias},
            activation=int(activation),
            is_pointwise=is_pointwise,
            n_rows=target.layout.channels,
            n_offsets=len(offsets),
            blocks=blocks,
            out_step_y=1,
            out_step_x=1,
            window=_window(tile, step, target.layout.block),
        )

    def gradient(
        self,
        packed: Packed,
        source: Buffer,
        gradient: Buffer,
        into: Tensor,
        *,
        tile: tuple[int, int],
        blocks: int,
        channels: np.ndarray,
        step: tuple[int, int],
        is_pointwise: bool = False,
        is_dense: bool = False,
    ) -> None:
        """Adds to `into` (threads, entries) float32 what each thread finds.

        Rows of a dense matrix all have the same entries, in one block.
        """
        columns = len(packed.entries) // len(channels) if is_dense else 0
        self.add(
            Kind.GRADIENT,
            buffers={"input": source, "other": gradient},
            arrays={
                "entries": packed.entries,
                "pointers": packed.pointers,
                "channels": channels,
                "gradient": into,
                "offsets": packed.entries["offset"][:columns].copy() if is_dense else None,
            },
            is_pointwise=is_pointwise,
            n_offsets=columns,
            gradient_stride=into.stride(0),
            n_rows=len(channels),
            blocks=blocks,
            window=_window(tile, step, gradient.layout.block),
        )

    def pool(self, source: Buffer, target: Buffer, axes: tuple[Axis, Axis], is_max: bool) -> None:
        """Maximum or mean of windows; a mean counts the padding."""
        self.add(
            Kind.MAX_POOL if is_max else Kind.AVERAGE_POOL,
            buffers={"input": source, "output": target},
            window=_windows(axes, target.layout.block),
        )

    def mean(self, source: Buffer, target: Buffer) -> None:
        """The mean of every image and channel, at the one position of each of its lanes."""
        self.add(Kind.MEAN, buffers={"input": source, "output": target})

    def pointwise(
        self,
        source: Buffer,
        target: Buffer,
        *,
        other: Buffer | None = None,
        is_gate: bool = False,
        scale: np.ndarray | Tensor | None = None,
        bias: np.ndarray | Tensor | None = None,
        activation: Activation = Activation.NONE,
    ) -> None:
        """activation(source · scale + bias + other), or activation(source · scale + bias) · gate.

        Scale and bias are per channel; a gate has one position.
        """
        self.add(
            Kind.POINTWISE,
            buffers=_with("other", other, input=source, output=target),
            arrays={"scale": scale, "bias": bias},
            is_pointwise=not is_gate,
            activation=int(activation),
            gate=int(is_gate),
        )

    def regrid(self, source: Buffer, target: Buffer, step: tuple[int, int] = (1, 1)) -> None:
        """Every step-th pixel of the same images in other lanes.

        From another segment the source must be shared.
        """
        self.add(
            Kind.REGRID,
            buffers={"input": source, "output": target},
            step_y=step[0],
            step_x=step[1],
        )

    def sample(self, source: Buffer, target: Buffer, step: tuple[int, int]) -> None:
        """Every step-th pixel of the source, for `join` in a later segment of more images.

        The target is shared and has the layout of what is joined, without a halo; `can_sample` says
        where this can be done.
        """
        self.add(
            Kind.SAMPLE,
            buffers={"input": source, "output": target},
            blocks=target.layout.grid.images // source.layout.grid.images,
            step_y=step[0],
            step_x=step[1],
        )

    def join(self, source: Buffer, target: Buffer, items: int) -> None:
        """What `sample` took from so many items, as planes."""
        self.add(Kind.JOIN, buffers={"input": source, "output": target}, blocks=items)

    def sums(self, source: Buffer, into: Tensor) -> None:
        """Adds to `into` (threads, 2 · channels or more) float64 sums and sums of squares."""
        self.add(
            Kind.SUMS,
            buffers={"input": source},
            arrays={"sums": into},
            sums_stride=into.stride(0),
            is_pointwise=True,
        )

    def gradient_sums(
        self,
        gradient: Buffer,
        *,
        source: Buffer | None = None,
        made: Buffer | None = None,
        activation: Activation = Activation.NONE,
        state: Tensor | None = None,
        into: Tensor | None = None,
    ) -> None:
        """The gradient passes the activation that gave `made`, in place.

        Adds to `into` (threads, 2 · channels or more) float64 its sums, and those of its product
        with the source less the average in `state`. Pixels that do not exist become zero.
        """
        buffers = _with("other", made, output=gradient)
        self.add(
            Kind.GRADIENT_SUMS,
            buffers=_with("input", source, **buffers),
            arrays={"state": state, "sums": into},
            sums_stride=0 if into is None else into.stride(0),
            is_pointwise=True,
            activation=int(activation),
        )

    def norm(
        self, source: Buffer, state: Tensor, sums: Tensor, epsilon: float, *, backward: bool
    ) -> None:
        """Once: what sums make of a norm's state (see training_tables.py); clears them."""
        self.add(
            Kind.FINISH_NORM_GRADIENT if backward else Kind.NORM,
            buffers={"input": source},
            arrays={"state": state, "sums": sums},
            sums_stride=sums.stride(0),
            n_copies=len(sums),
            epsilon=epsilon,
        )

    def norm_gradient(
        self, gradient: Buffer, source: Buffer, target: Buffer, state: Tensor
    ) -> None:
        """The gradient of a norm's result → that of its source; zero where no pixel is."""
        self.add(
            Kind.NORM_GRADIENT,
            buffers={"input": gradient, "other": source, "output": target},
            arrays={"state": state},
            is_pointwise=True,
        )

    def largest_tap(self, source: Buffer, target: Buffer, axes: tuple[Axis, Axis]) -> None:
        """The number of the tap with the maximum of each window, the first of equal ones."""
        self.add(
            Kind.LARGEST_TAP,
            buffers={"input": source, "output": target},
            window=_windows(axes, target.layout.block),
        )

    def pool_gradient(
        self, gradient: Buffer, taps: Buffer, target: Buffer, axes: tuple[Axis, Axis]
    ) -> None:
        """Gradient and taps of windows → gradient of what was pooled."""
        self.add(
            Kind.POOL_GRADIENT,
            buffers={"input": gradient, "other": taps, "output": target},
            window=_windows(axes, target.layout.block),
        )

    def write_values(self, tensor: int, packed: Packed | PackedDense) -> None:
        """Once: tensor number `tensor`, (non-zeros,) → the values of a matrix."""
        self.add(
            Kind.WRITE_VALUES,
            buffers={},
            arrays={
                "weights": packed.weights if isinstance(packed, PackedDense) else None,
                "entries": packed.entries if isinstance(packed, Packed) else None,
                "order": packed.order.astype(np.int32),
            },
            tensor=tensor,
            n_entries=len(packed.order),
        )

    def collect_gradient(self, tensor: int, packed: Packed, sums: Tensor) -> None:
        """Once: what `gradient` added to `sums` → tensor number `tensor`; clears the sums."""
        self.add(
            Kind.COLLECT_GRADIENT,
            buffers={},
            arrays={"gradient": sums, "order": packed.order.astype(np.int32)},
            tensor=tensor,
            n_entries=len(packed.order),
            gradient_stride=sums.stride(0),
            n_copies=len(sums),
        )


def _with(name: str, buffer: Buffer | None, **buffers: Buffer) -> dict[str, Buffer]:
    return buffers if buffer is None else {**buffers, name: buffer}


def _windows(axes: tuple[Axis, Axis], count: tuple[int, int]) -> dict[str, int]:
    """Of a pool."""
    y, x = axes
    window = _window((1, 1), (y.stride, x.stride), count)
    kernel = {"kernel_y": y.kernel, "kernel_x": x.kernel}
    return window | kernel | {"pad_y": y.before, "pad_x": x.before}


def _window(tile: tuple[int, int], step: tuple[int, int], count: tuple[int, int]) -> dict[str, int]:
    return {
        "tile_height": tile[0],
        "tile_width": tile[1],
        "step_y": step[0],
        "step_x": step[1],
        "count_y": count[0],
        "count_x": count[1],
    }

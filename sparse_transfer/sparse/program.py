"""A list of operations for the kernels: buffers, where they lie, and the run.

Operations are grouped in segments. Within a segment an item (as many images as fill the lanes)
goes through all operations before the next one starts, in the arena of the thread that took it;
what passes from segment to segment lies in the arena of the batch.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sparse_transfer.sparse import abi
from sparse_transfer.sparse.abi import Activation, Kind
from sparse_transfer.sparse.layout import LANES, Axis, Layout, halo_moves
from sparse_transfer.sparse.library import Library
from sparse_transfer.sparse.packing import Packed

LINE = 16  # floats of a cache line
HUGE = 2**21  # bytes of a huge page


@dataclass(eq=False)
class Buffer:
    """Planes that operations write and read; `layout` may gain a halo until the program is built.

    Attributes:
        layout: where its pixels lie.
        is_shared: in the arena of the batch.
        uses: numbers of the operations that touch it.
        at: first float in its arena, once it is placed.
        whole, first: the buffer of which these are some channels, and the first of them.
    """

    layout: Layout
    is_shared: bool = False
    uses: list[int] = field(default_factory=list)
    at: int = 0
    whole: Buffer | None = None
    first: int = 0

    def part(self, first: int, channels: int) -> Buffer:
        """Some channels of the buffer, to be read or written by themselves."""
        return Buffer(replace(self.layout, channels=channels), whole=self, first=first)

    def planes(self) -> abi.Planes:
        """For the kernels."""
        if self.whole is not None:
            planes = self.whole.planes()
            planes.at += self.first * planes.size * LANES
            planes.channels = self.layout.channels
            return planes
        return self.layout.planes(self.at, self.layout.floats if self.is_shared else -1)


@dataclass(eq=False)
class _Operation:
    fields: dict[str, Any]
    buffers: dict[str, Buffer]
    arrays: dict[str, np.ndarray | Tensor]
    is_pointwise: bool = False


@final
class Program:
    """Build with the methods named after operations, then `run`.

    Args:
        library: the kernels.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        self._operations: list[_Operation] = []
        self._segments: list[list[int]] = []  # first operation, images of an item
        self._built: tuple[Any, Any, int] | None = None
        self._batch = -1
        self._shared_floats = 0
        self._lock = threading.Lock()  # a run writes strides and places into the operations

    def __len__(self) -> int:
        return len(self._operations)

    def segment(self, images: int) -> None:
        """What follows is done for items of that many images."""
        if not self._segments or self._segments[-1][1] != images:
            self._segments.append([len(self._operations), images])

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
        number = len(self._operations)
        for buffer in buffers.values():
            (buffer.whole or buffer).uses.append(number)
        kept = {name: array for name, array in (arrays or {}).items() if array is not None}
        self._operations.append(
            _Operation({"kind": int(kind), **(window or {}), **fields}, buffers, kept, is_pointwise)
        )
        self._built = None

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
    ) -> None:
        """Adds to `into` (threads, entries) float32 what each thread finds."""
        self.add(
            Kind.GRADIENT,
            buffers={"input": source, "other": gradient},
            arrays={
                "entries": packed.entries,
                "pointers": packed.pointers,
                "channels": channels,
                "gradient": into,
            },
            gradient_stride=into.stride(0),
            n_rows=len(channels),
            blocks=blocks,
            window=_window(tile, step, gradient.layout.block),
        )

    def pool(self, source: Buffer, target: Buffer, axes: tuple[Axis, Axis], is_max: bool) -> None:
        """Maximum or mean of windows; a mean counts the padding."""
        y, x = axes
        self.add(
            Kind.MAX_POOL if is_max else Kind.AVERAGE_POOL,
            buffers={"input": source, "output": target},
            kernel_y=y.kernel,
            kernel_x=x.kernel,
            pad_y=y.before,
            pad_x=x.before,
            window=_window((1, 1), (y.stride, x.stride), target.layout.block),
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
        scale: np.ndarray | None = None,
        bias: np.ndarray | None = None,
        activation: Activation = Activation.NONE,
    ) -> None:
        """activation(source · scale + bias + other), or activation(source · scale + bias) · gate.

        Scale and bias are per channel; a gate has one position.
        """
        self.add(
            Kind.POINTWISE,
            buffers=_with("other", other, input=source, output=target),
            arrays={"scale": scale, "bias": bias},
            activation=int(activation),
            gate=int(is_gate),
        )

    def regrid(self, source: Buffer, target: Buffer) -> None:
        """The same images in other lanes; from another segment the source must be shared."""
        self.add(Kind.REGRID, buffers={"input": source, "output": target})

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

    def floats(self, batch: int, threads: int) -> int:
        """What a run needs of working memory, in floats."""
        _, _, own = self._build()
        self._place_shared(batch)
        return own * threads + self._shared_floats

    def run(self, tensors: Sequence[Tensor], batch: int, threads: int | None = None) -> None:
        """Run all operations.

        Args:
            tensors: float32 CPU tensors (images, channels, height, width), strided as they like;
                what `load` and `store` number. Shapes are the caller's to check.
            batch: images.
            threads: as many as torch uses if None.
        """
        with self._lock:
            self._run(tensors, batch, threads or torch.get_num_threads())

    def _run(self, tensors: Sequence[Tensor], batch: int, threads: int) -> None:
        segments, operations, own = self._build()
        self._place_shared(batch)
        for operation, raw in zip(self._operations, operations, strict=True):
            if operation.fields["kind"] in (Kind.LOAD, Kind.STORE):
                raw.strides[:] = tensors[operation.fields["tensor"]].stride()
        pointers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        arena = _arena(self.library, own * threads + self._shared_floats)
        shared = arena + own * threads * 4
        self.library.handle.sparse_run(
            segments, len(segments), operations, pointers, batch, arena, own, shared, threads
        )

    def _build(self) -> tuple[Any, Any, int]:
        if self._built is not None:
            return self._built
        for operation in self._operations:
            if operation.fields["kind"] == Kind.HALO:
                moves, permutations = halo_moves(operation.buffers["input"].layout)
                aligned = torch.from_numpy(permutations).clone()  # torch aligns to 64 bytes
                operation.arrays |= {"offsets": moves, "permutations": aligned}
                operation.fields["n_moves"] = len(moves)
        buffers = {b for b in self._buffers() if not b.is_shared}
        own = _place(buffers, self._replaced(buffers), self._take_turns())
        operations = (abi.Op * len(self._operations))()
        for operation, raw in zip(self._operations, operations, strict=True):
            for name, value in operation.fields.items():
                setattr(raw, name, value)
            for name, buffer in operation.buffers.items():
                setattr(raw, name, buffer.planes())
            for name, array in operation.arrays.items():
                is_tensor = isinstance(array, Tensor)
                setattr(raw, name, array.data_ptr() if is_tensor else array.ctypes.data)
        ends = [first for first, _ in self._segments[1:]] + [len(self._operations)]
        segments = (abi.Segment * len(self._segments))(
            *(
                (first, end - first, images)
                for (first, images), end in zip(self._segments, ends, strict=True)
            )
        )
        self._built, self._batch = (segments, operations, own), -1
        return self._built

    def _take_turns(self) -> list[int]:
        """Lets 1 × 1 convolutions take turns, row of tiles by row: what one has written and the
        next one reads is in the cache then.

        Returns the first of its group for every operation: all of a group run at the same time.
        """
        begins = {first for first, _ in self._segments}
        groups: list[int] = []
        for number, operation in enumerate(self._operations):
            group = self._operations[groups[-1] if groups else 0 : number + 1]
            follows = (
                number > 0
                and number not in begins
                and all(other.is_pointwise for other in group)
                and len({other.fields["count_y"] for other in group}) == 1
            )
            operation.fields["follows"] = int(follows)
            groups.append(groups[-1] if follows else number)
        return groups

    def _replaced(self, buffers: set[Buffer]) -> dict[Buffer, Buffer]:
        """Outputs that may lie where the value that is added to them lies: nobody reads it after.

        Lines that were just read are in the cache, and less memory is touched.
        """
        found = {}
        for number, operation in enumerate(self._operations):
            other, output = (operation.buffers.get(name) for name in ("other", "output"))
            if (
                operation.fields["kind"] in (Kind.SPARSE, Kind.DENSE)
                and other in buffers
                and output in buffers
                and other is not operation.buffers["input"]
                and other.layout == output.layout
                and (other.uses[-1], output.uses[0]) == (number, number)
            ):
                found[output] = other
        return found

    def _buffers(self) -> Iterator[Buffer]:
        for operation in self._operations:
            for buffer in operation.buffers.values():
                yield buffer.whole or buffer

    def _place_shared(self, batch: int) -> None:
        if batch == self._batch:
            return
        assert self._built is not None
        at = 0
        for buffer in dict.fromkeys(b for b in self._buffers() if b.is_shared):
            buffer.at = at
            at += -(-batch // buffer.layout.grid.images) * buffer.layout.floats
        for operation, raw in zip(self._operations, self._built[1], strict=True):
            for name, buffer in operation.buffers.items():
                if (buffer.whole or buffer).is_shared:
                    setattr(raw, name, buffer.planes())
        self._batch, self._shared_floats = batch, at


def _with(name: str, buffer: Buffer | None, **buffers: Buffer) -> dict[str, Buffer]:
    return buffers if buffer is None else {**buffers, name: buffer}


def _window(tile: tuple[int, int], step: tuple[int, int], count: tuple[int, int]) -> dict[str, int]:
    return {
        "tile_height": tile[0],
        "tile_width": tile[1],
        "step_y": step[0],
        "step_x": step[1],
        "count_y": count[0],
        "count_x": count[1],
    }


def _place(buffers: set[Buffer], replaced: dict[Buffer, Buffer], moments: Sequence[int]) -> int:
    """Give every buffer a place that nobody else uses at the time; returns the floats needed.

    Args:
        replaced: buffers that take the place of another one.
        moments: when each operation runs.
    """
    placed: dict[Buffer, int] = {}  # with the last use of its place
    total = 0
    after = {old: new for new, old in replaced.items()}
    for buffer in sorted(buffers, key=lambda b: (b.uses[0], -b.layout.floats)):
        if buffer in replaced:
            buffer.at = replaced[buffer].at
            continue
        last = buffer
        while last in after:
            last = after[last]
        begin, end = moments[buffer.uses[0]], moments[last.uses[-1]]
        taken = sorted(
            (other.at, other.at + other.layout.floats)
            for other, other_end in placed.items()
            if moments[other.uses[0]] <= end and begin <= other_end
        )
        at = 0
        for low, high in taken:
            if at + buffer.layout.floats <= low:
                break
            at = max(at, high)
        buffer.at = at
        placed[buffer] = end
        total = max(total, at + buffer.layout.floats)
    return -(-total // (LANES * LINE)) * LANES * LINE


class _Arenas(threading.local):
    """Working memory, one block for each Python thread, kept from call to call."""

    memory: Tensor | None = None


_ARENAS = _Arenas()


def _arena(library: Library, floats: int) -> int:
    """The address of that much working memory, at the beginning of a huge page."""
    bytes_ = floats * 4 + HUGE
    if _ARENAS.memory is None or _ARENAS.memory.numel() < bytes_:
        _ARENAS.memory = None  # the old one first
        _ARENAS.memory = torch.empty(bytes_ + HUGE, dtype=torch.uint8)
        start = -(-_ARENAS.memory.data_ptr() // HUGE) * HUGE
        library.handle.sparse_advise(start, bytes_ // HUGE * HUGE)
    return -(-_ARENAS.memory.data_ptr() // HUGE) * HUGE

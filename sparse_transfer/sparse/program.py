"""A list of operations for the kernels, and the run.

Operations are grouped in segments. Within a segment an item (as many images as fill the lanes)
goes through all operations before the next one starts, in the arena of the thread that took it;
what passes from segment to segment lies in the arena of the batch.
"""

from __future__ import annotations

import ctypes
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sparse_transfer.sparse import abi, arena
from sparse_transfer.sparse.abi import Activation, Kind, Turns
from sparse_transfer.sparse.buffers import Buffer, place
from sparse_transfer.sparse.layout import Axis, halo_moves
from sparse_transfer.sparse.library import Library
from sparse_transfer.sparse.packing import Packed, PackedDense

_TILED = (Kind.SPARSE, Kind.DENSE, Kind.GRADIENT)


@dataclass(eq=False)
class _Operation:
    fields: dict[str, Any]
    buffers: dict[str, Buffer]
    arrays: dict[str, np.ndarray | Tensor]
    is_pointwise: bool = False

    @property
    def rows(self) -> int | None:
        """How many are made, from the first to the last; None if in another order."""
        if self.fields["kind"] in _TILED:
            fields = self.fields
            skips = fields.get("out_step_y", 1) > 1 or fields.get("first_y", 0) > 0
            return None if skips else fields["count_y"]
        return next(iter(self.buffers.values())).layout.block[0] if self.is_pointwise else None

    @property
    def channels(self) -> int | None:
        """How many there are; None where an output is not made of the same channel alone."""
        if self.fields["kind"] in (*_TILED, Kind.WRITE_VALUES, Kind.COLLECT_GRADIENT):
            return None
        return next(iter(self.buffers.values())).layout.channels

    def may_follow_by_channels(self, group: Sequence[_Operation]) -> bool:
        """Whether a channel can be made after the same channel of all operations of a group."""
        return self.channels is not None and self.channels == group[0].channels

    def may_follow_by_rows(self, group: Sequence[_Operation]) -> bool:
        """Whether a row can be made after the same row of all operations of a group."""
        if self.rows is None or self.rows != group[0].rows:
            return False
        for before in group:
            # it reads rows that are to come: they must not be written, nor their place taken
            mine = [self.buffers.get(name) for name in ("output", "other")]
            read = [buffer for name, buffer in before.buffers.items() if name != "output"]
            is_apart = self.fields["kind"] not in _TILED and not any(b in mine for b in read)
            if not before.is_pointwise and not is_apart:
                return False
        # what looks ahead may follow those that do not write what it reads so
        made = [before.buffers.get("output") for before in group]
        is_gradient = self.fields["kind"] == Kind.GRADIENT
        return self.is_pointwise or (is_gradient and self.buffers["input"] not in made)


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

    def segment(self, images: int, *, is_new: bool = False) -> None:
        """What follows is done for items of that many images, or once for the batch where it is 0.

        A new segment waits until all items are through the one before it.
        """
        if is_new or not self._segments or self._segments[-1][1] != images:
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

    def change(self, number: int, **fields: int) -> None:
        """Replace numbers of an operation, which may have been built."""
        self._operations[number].fields |= fields
        if self._built is not None:
            for name, value in fields.items():
                setattr(self._built[1][number], name, value)

    def floats(self, batch: int, threads: int) -> int:
        """What a run needs of working memory, in floats."""
        _, _, own = self._build()
        self._place_shared(batch)
        return own * threads + self._shared_floats

    def run(
        self,
        tensors: Sequence[Tensor],
        batch: int,
        threads: int | None = None,
        *,
        saved: Tensor | None = None,
        is_fixed: bool = False,
    ) -> None:
        """Run all operations.

        Args:
            tensors: float32 CPU tensors (images, channels, height, width), strided as they like;
                what `load` and `store` number. Shapes are the caller's to check.
            batch: images.
            threads: as many as torch uses if None.
            saved: float32, where buffers lie that are saved.
            is_fixed: threads take turns, so that their sums are the same in every run.
        """
        with self._lock:
            self._run(tensors, batch, threads or torch.get_num_threads(), saved, is_fixed)

    def _run(
        self,
        tensors: Sequence[Tensor],
        batch: int,
        threads: int,
        saved: Tensor | None,
        is_fixed: bool,
    ) -> None:
        segments, operations, own = self._build()
        self._place_shared(batch)
        for operation, raw in zip(self._operations, operations, strict=True):
            if operation.fields["kind"] in (Kind.LOAD, Kind.STORE):
                raw.strides[:] = tensors[operation.fields["tensor"]].stride()
        pointers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        memory = arena.address(self.library, own * threads + self._shared_floats)
        shared = memory + own * threads * 4
        self.library.handle.sparse_run(
            segments, len(segments), operations, pointers, batch, memory, own, shared,
            None if saved is None else saved.data_ptr(), threads, int(is_fixed),
        )  # fmt: skip

    def _build(self) -> tuple[Any, Any, int]:
        if self._built is not None:
            return self._built
        for operation in self._operations:
            if operation.fields["kind"] == Kind.HALO:
                moves, permutations = halo_moves(operation.buffers["input"].layout)
                aligned = torch.from_numpy(permutations).clone()  # torch aligns to 64 bytes
                operation.arrays |= {"offsets": moves, "permutations": aligned}
                operation.fields["n_moves"] = len(moves)
        mine = dict.fromkeys(b for b in self._buffers() if b.is_own)
        own = self._place_own(mine)
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

    def _place_own(self, buffers: Iterable[Buffer]) -> int:
        """A place in the arena of a thread for each of them; returns the floats needed."""
        moments = self._take_turns()
        return self._place(
            {
                buffer: (moments[buffer.uses[0]], moments[buffer.uses[-1]], buffer.layout.floats)
                for buffer in buffers
            }
        )

    def _place(self, spans: dict[Buffer, tuple[int, int, int]]) -> int:
        """`place`, where some take the place of another one."""
        replaced = self._replaced(set(spans))
        roots: dict[Buffer, Buffer] = {}  # that whose place a buffer has
        together: dict[Buffer, tuple[int, int, int]] = {}
        for buffer, (begin, end, floats) in spans.items():
            root = buffer
            while root in replaced:
                root = replaced[root]
            roots[buffer] = root
            first, last, _ = together.get(root, (begin, end, floats))
            together[root] = (min(begin, first), max(end, last), floats)
        total = place(together)
        for buffer, root in roots.items():
            buffer.at = root.at
        return total

    def _take_turns(self) -> list[int]:
        """Lets 1 × 1 convolutions and what treats every pixel by itself take turns, row of tiles by
        row, and others that treat every channel by itself some channels each: what one has written
        and the next one reads is in the cache then.

        Returns the first of its group for every operation: all of a group run at the same time.
        """
        groups: list[int] = []
        ends = [first for first, _ in self._segments[1:]] + [len(self._operations)]
        for end in ends:
            while len(groups) < end:
                begin = len(groups)
                rest = self._operations[begin:end]
                by_rows = _leading(rest, _Operation.may_follow_by_rows)
                by_channels = _leading(rest, _Operation.may_follow_by_channels)
                turns = Turns.BY_CHANNELS if by_channels > by_rows else Turns.BY_ROWS
                rest[0].fields["follows"] = Turns.NONE
                for operation in rest[1 : max(by_rows, by_channels)]:
                    operation.fields["follows"] = int(turns)
                groups += [begin] * max(by_rows, by_channels)
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
        begins = [first for first, _ in self._segments]
        shared = dict.fromkeys(b for b in self._buffers() if b.is_shared)
        floats = self._place(
            {
                buffer: (
                    bisect_right(begins, buffer.uses[0]),  # items do not pass a segment together
                    bisect_right(begins, buffer.uses[-1]),
                    -(-batch // buffer.layout.grid.images) * buffer.layout.floats,
                )
                for buffer in shared
            }
        )
        for operation, raw in zip(self._operations, self._built[1], strict=True):
            for name, buffer in operation.buffers.items():
                whole = buffer.whole or buffer
                if whole.is_shared or whole.is_saved:
                    setattr(raw, name, buffer.planes())
        self._batch, self._shared_floats = batch, floats


def _leading(
    operations: Sequence[_Operation],
    may_follow: Callable[[_Operation, Sequence[_Operation]], bool],
) -> int:
    """How many operations from the first one on take turns."""
    for number in range(1, len(operations)):
        if not may_follow(operations[number], operations[:number]):
            return number
    return len(operations)


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

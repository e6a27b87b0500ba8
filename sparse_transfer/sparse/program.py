"""A list of operations for the kernels, and the run.

An item goes through a segment in the arena of the thread that took it; what passes from segment to
segment lies in the arena of the batch.
"""

from __future__ import annotations

import ctypes
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor

from sparse_transfer.sparse import abi, arena, scheduling
from sparse_transfer.sparse.abi import Kind
from sparse_transfer.sparse.buffers import Buffer, place
from sparse_transfer.sparse.layout import halo_moves
from sparse_transfer.sparse.library import Library
from sparse_transfer.sparse.operations import Operations


@final
class Program(Operations):
    """Build with the methods of `Operations`, then `run`.

    Args:
        library: the kernels.
    """

    def __init__(self, library: Library) -> None:
        super().__init__()
        self.library = library
        self._built: tuple[Any, Any, int] | None = None
        self._batch = -1
        self._shared_floats = 0
        self._lock = threading.Lock()  # a run writes strides and places into the operations

    def change(self, number: int, **fields: int) -> None:
        """Replace numbers of an operation, which may have been built."""
        self.operations[number].fields |= fields
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
            tensors: float32 CPU tensors (images, channels, height, width), strided as they like
                but for those in which buffers lie; what `load`, `store` and these number. Shapes
                are the caller's to check.
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
        for operation, raw in zip(self.operations, operations, strict=True):
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
        if self._built is not None and len(self._built[1]) == len(self.operations):
            return self._built
        for operation in self.operations:
            if operation.fields["kind"] == Kind.HALO:
                moves, permutations = halo_moves(operation.buffers["input"].layout)
                aligned = torch.from_numpy(permutations).clone()  # torch aligns to 64 bytes
                operation.arrays |= {"offsets": moves, "permutations": aligned}
                operation.fields["n_moves"] = len(moves)
        mine = dict.fromkeys(b for b in self._buffers() if b.is_own)
        own = self._place_own(mine)
        operations = (abi.Op * len(self.operations))()
        for operation, raw in zip(self.operations, operations, strict=True):
            for name, value in operation.fields.items():
                setattr(raw, name, value)
            for name, buffer in operation.buffers.items():
                setattr(raw, name, buffer.planes())
            for name, array in operation.arrays.items():
                is_tensor = isinstance(array, Tensor)
                setattr(raw, name, array.data_ptr() if is_tensor else array.ctypes.data)
        ends = [*self._begins[1:], len(self.operations)]
        segments = (abi.Segment * len(self.segments))(
            *(
                (first, end - first, images)
                for (first, images), end in zip(self.segments, ends, strict=True)
            )
        )
        self._built, self._batch = (segments, operations, own), -1
        return self._built

    def _place_own(self, buffers: Iterable[Buffer]) -> int:
        """A place in the arena of a thread for each of them; returns the floats needed."""
        moments = scheduling.take_turns(self.operations, self._begins)
        return self._place(
            {
                buffer: (moments[buffer.uses[0]], moments[buffer.uses[-1]], buffer.layout.floats)
                for buffer in buffers
            }
        )

    def _place(self, spans: dict[Buffer, tuple[int, int, int]]) -> int:
        """`place`, where some take the place of another one."""
        replaced = scheduling.replaced(self.operations, set(spans))
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

    def _buffers(self) -> Iterator[Buffer]:
        for operation in self.operations:
            for buffer in operation.buffers.values():
                yield buffer.whole or buffer

    def _place_shared(self, batch: int) -> None:
        if batch == self._batch:
            return
        assert self._built is not None
        begins = self._begins
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
        for operation, raw in zip(self.operations, self._built[1], strict=True):
            for name, buffer in operation.buffers.items():
                whole = buffer.whole or buffer
                if whole.is_shared or whole.is_saved:
                    setattr(raw, name, buffer.planes())
        self._batch, self._shared_floats = batch, floats

    @property
    def _begins(self) -> list[int]:
        """The first operation of each segment."""
        return [first for first, _ in self.segments]

"""Planes that operations write and read, and places for them in an arena."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sparse_transfer.sparse import abi
from sparse_transfer.sparse.layout import LINE, Layout


@dataclass(eq=False)
class Buffer:
    """Planes that operations write and read; `layout` may gain a halo until the program is built.

    Attributes:
        layout: where its pixels lie.
        is_shared: in the arena of the batch.
        is_saved: in memory that the caller brings; the caller places it, too.
        tensor: it lies in the caller's tensor of that number, which is contiguous and begins at a
            multiple of 64 bytes, image by image; the layout is `layout.as_tensor`'s.
        uses: numbers of the operations that touch it.
        at: first float in its arena, once it is placed.
        whole, first: the buffer of which these are some channels, and the first of them.
    """

    layout: Layout
    is_shared: bool = False
    is_saved: bool = False
    tensor: int | None = None
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
            planes.at += self.first * planes.size * LINE
            planes.channels = self.layout.channels
            return planes
        planes = self.layout.planes(self.at, -1 if self.is_own else self.layout.floats)
        planes.is_saved = self.is_saved
        if self.tensor is not None:
            planes.tensor = self.tensor
        return planes

    @property
    def is_own(self) -> bool:
        """In the arena of a thread."""
        return not (self.is_shared or self.is_saved) and self.tensor is None


def place(spans: dict[Buffer, tuple[int, int, int]]) -> int:
    """Give every buffer a place that nobody else uses at the time; returns the floats needed.

    Args:
        spans: first and last time of use, and floats.
    """
    placed: list[Buffer] = []
    total = 0
    for buffer, (begin, end, floats) in sorted(
        spans.items(), key=lambda item: (item[1][0], -item[1][2])
    ):
        taken = sorted(
            (other.at, other.at + spans[other][2])
            for other in placed
            if spans[other][0] <= end and begin <= spans[other][1]
        )
        at = 0
        for low, high in taken:
            if at + floats <= low:
                break
            at = max(at, high)
        buffer.at = at
        placed.append(buffer)
        total = max(total, at + floats)
    return -(-total // LINE**2) * LINE**2

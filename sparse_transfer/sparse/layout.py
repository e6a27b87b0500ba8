"""How images lie in the engine: lanes side by side, every one a block of pixels of its own.

An ordinary sparse convolution reads rows that are shifted by a pixel, and every load that crosses
a cache line costs two. Here an image is cut into a grid of blocks, and the pixels that stand at the
same place of every block lie side by side in one 64-byte vector. A shift by a pixel is a shift by a
whole vector, a stride is a step over vectors, and all loads are aligned, whatever the kernel:

    image 8 × 8, four blocks        vector at position (y, x) of the block
    a a a a│b b b b                 ┌───┬───┬───┬───┐
    a a a a│b b b b                 │ a │ b │ c │ d │   + four each of three more images
    ───────┼───────                 └───┴───┴───┴───┘
    c c c c│d d d d
    c c c c│d d d d

A vector has sixteen lanes of float32 or thirty-two of bfloat16. Large images fill the lanes alone,
small ones share them (`Grid`). Around a block lies a
halo, which is copied from the neighbouring lanes (`halo_moves`) before an operation that looks
beyond a pixel.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from sparse_transfer.errors import UserError
from sparse_transfer.sparse import abi

LINE = 16  # floats of a position: a cache line, whatever it holds
LANES = 16  # elements of a position in float32
TOLERATED = 1.1  # cost of a layout that is there already over that of the best one


@dataclass(frozen=True)
class Grid:
    """Lanes = images × rows × columns of blocks, in this order."""

    images: int
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if self.lanes not in (LANES, 2 * LANES):
            raise ValueError(f"{self} does not have {LANES} or {2 * LANES} lanes")

    @property
    def lanes(self) -> int:
        """Elements of a position."""
        return self.images * self.rows * self.columns


@cache
def grids(lanes: int = LANES) -> tuple[Grid, ...]:
    """All ways to share that many lanes."""
    parts = [2**n for n in range(lanes.bit_length())]
    return tuple(
        Grid(lanes // (rows * columns), rows, columns)
        for rows, columns in itertools.product(parts, repeat=2)
        if rows * columns <= lanes
    )


@dataclass(frozen=True)
class Axis:
    """One direction of a convolution or a pool, in pixels.

    Attributes:
        size: of the input.
        before, after: padding.
    """

    size: int
    kernel: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1

    @property
    def output(self) -> int:
        """Pixels of the output."""
        reach = self.dilation * (self.kernel - 1) + 1
        return (self.size + self.before + self.after - reach) // self.stride + 1

    def blocks(self, parts: int) -> tuple[int, int]:
        """Pixels of a block of the input and of the output when both are cut into `parts`.

        A lane finds all inputs of its outputs in its own block and the halo around it.
        """
        if parts == 1:
            return self.size, self.output
        out = max(-(-self.output // parts), -(-self.size // (parts * self.stride)))
        return out * self.stride, out

    def taps(self) -> np.ndarray:
        """(kernel,) int: where each tap reads, from the first input of the output's pixel."""
        return np.arange(self.kernel) * self.dilation - self.before

    def halo(self, parts: int) -> tuple[int, int]:
        """Pixels before and after a block of the input that are read, too."""
        block, out = self.blocks(parts)
        reach = (out - 1) * self.stride + (self.kernel - 1) * self.dilation - self.before
        return max(0, self.before), max(0, reach - (block - 1))

    def phases(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """How inputs depend on outputs: one entry per remainder of the position by the stride.

        Each is (remainder, taps that reach such inputs, output relative to position // stride).
        """
        found = []
        for remainder in range(self.stride):
            distance = remainder - self.taps()
            taps = np.flatnonzero(distance % self.stride == 0)
            found.append((remainder, taps, distance[taps] // self.stride))
        return found

    def backward_halo(self, parts: int) -> tuple[int, int]:
        """Pixels around a block of the output that the gradient of the input reads."""
        block, out = self.blocks(parts)
        before = after = 0
        for remainder, _, shifts in self.phases():
            if len(shifts):
                last = -(-(block - remainder) // self.stride) - 1
                before = max(before, -int(shifts.min()))
                after = max(after, last + int(shifts.max()) - (out - 1))
        return before, after


@dataclass(frozen=True)
class Halo:
    """Pixels around a block."""

    top: int = 0
    left: int = 0
    bottom: int = 0
    right: int = 0

    def __or__(self, other: Halo) -> Halo:
        """Room for both."""
        mine, others = self._sides(), other._sides()
        return Halo(*(max(pair) for pair in zip(mine, others, strict=True)))

    def __bool__(self) -> bool:
        return any(self._sides())

    def _sides(self) -> tuple[int, int, int, int]:
        return self.top, self.left, self.bottom, self.right


@dataclass(frozen=True)
class Layout:
    """A buffer of channels for the images of one item.

    Attributes:
        channels: planes.
        image: (height, width) of a whole image in pixels.
        block: (height, width) of a lane's block; rows × block covers the image.
        grid: how lanes share images.
        halo: pixels around each block.
        is_planar: channel after channel, as in a tensor (`as_tensor`); without a halo.
    """

    channels: int
    image: tuple[int, int]
    block: tuple[int, int]
    grid: Grid
    halo: Halo = Halo()
    is_planar: bool = False

    @property
    def size(self) -> int:
        """Positions from one channel to the next: a row, or the whole of a plane."""
        return math.prod(self._room) if self.is_planar else self._room[1]

    @property
    def pitch(self) -> int:
        """Positions from one row to the next: the rows of all channels lie together, so that what
        a tile reads is one piece of memory, or a few."""
        return self._room[1] if self.is_planar else self.channels * self.size

    @property
    def floats(self) -> int:
        """Memory of the whole buffer, in floats."""
        return self.channels * math.prod(self._room) * LINE

    @property
    def _room(self) -> tuple[int, int]:
        """Height and width of a block with its halo."""
        halo = self.halo
        return halo.top + self.block[0] + halo.bottom, halo.left + self.block[1] + halo.right

    @cached_property
    def is_ragged(self) -> bool:
        """Whether some lanes' blocks stick out of the image."""
        (height, width), (block_y, block_x) = self.image, self.block
        return block_y * self.grid.rows != height or block_x * self.grid.columns != width

    def with_halo(self, halo: Halo) -> Layout:
        """The same with room for that halo."""
        return replace(self, halo=halo)

    def offset(self, channel: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Elements from a position of channel 0 to the one (y, x) further in `channel`; int32.

        Raises:
            UserError: the buffer is too large for 32 bits.
        """
        elements = self.floats // LINE * self.grid.lanes
        if elements >= 2**31:
            raise UserError(
                "The images are too large for the sparse kernels.",
                f"{self.channels} channels of {self.image[0]} × {self.image[1]} pixels need "
                f"{elements} numbers; fewer than {2**31} can be addressed.",
                "Pass fewer or smaller images at a time.",
            )
        return ((channel * self.size + y * self.pitch + x) * self.grid.lanes).astype(np.int32)

    def planes(self, at: int = 0, item: int = -1) -> abi.Planes:
        """For the kernels: at float `at` of the thread's arena, or of the batch's (item ≥ 0)."""
        return abi.Planes(
            at=at,
            item=item,
            channels=self.channels,
            height=self.block[0],
            width=self.block[1],
            top=self.halo.top,
            left=self.halo.left,
            pitch=self.pitch,
            size=self.size,
            image_height=self.image[0],
            image_width=self.image[1],
            images=self.grid.images,
            rows=self.grid.rows,
            columns=self.grid.columns,
            tensor=-1,
        )


def as_tensor(channels: int, size: tuple[int, int], widest: int) -> Layout | None:
    """Images (channels, height, width) of a contiguous float32 tensor as they lie, for what treats
    every pixel by itself: sixteen neighbours share a vector.

    Args:
        widest: positions of a tile, at most.

    Returns:
        None where a vector would end in another channel, or tiles would be narrow.
    """
    positions, rest = divmod(math.prod(size), LANES)
    width = next(w for w in range(widest, 0, -1) if positions % w == 0)
    if rest or 3 * width < widest:
        return None
    rows = positions // width
    grid = Grid(1, 1, LANES)
    return Layout(channels, (rows, LANES * width), (rows, width), grid, is_planar=True)


def forward_halo(axes: tuple[Axis, Axis], grid: Grid) -> Halo:
    """What a convolution or pool reads around a block of its input."""
    (top, bottom), (left, right) = axes[0].halo(grid.rows), axes[1].halo(grid.columns)
    return Halo(top, left, bottom, right)


def can_sample(source: Layout, target: Layout, step: tuple[int, int]) -> bool:
    """Whether every block of the target is made of whole blocks of the source, of fewer images."""
    mine, others = source.grid, target.grid
    reach = target.block[0] * step[0], target.block[1] * step[1]
    return (
        others.images > mine.images
        and reach[0] % source.block[0] == reach[1] % source.block[1] == 0
        and mine.rows == others.rows * reach[0] // source.block[0]
        and mine.columns == others.columns * reach[1] // source.block[1]
    )


def cost(axes: tuple[Axis, Axis], grid: Grid, batch: int) -> float:
    """Time per pixel that exists, about: 1 where no lane is idle and blocks are large.

    A weight is loaded once for a tile, which lies within a block in at most four rows, and costs
    about as much as three positions; pixels outside the image and images that are not there are
    computed, too.
    """
    items = -(-batch // grid.images)
    (_, out_y), (_, out_x) = axes[0].blocks(grid.rows), axes[1].blocks(grid.columns)
    computed = items * grid.lanes * out_y * out_x
    useful = batch * axes[0].output * axes[1].output
    return computed / useful * (1 + 3 / min(16, min(4, out_y) * out_x))


@cache
def grid_for(axes: tuple[Axis, Axis], batch: int, lanes: int = LANES) -> Grid:
    """The grid for that many images: within 5 % of the least cost the one with fewest images (the
    smallest working set), then that with the squarest blocks."""

    def key(grid: Grid) -> tuple[int, float]:
        (_, out_y), (_, out_x) = axes[0].blocks(grid.rows), axes[1].blocks(grid.columns)
        return grid.images, abs(math.log(out_y / out_x))

    least = min(cost(axes, grid, batch) for grid in grids(lanes))
    return min((grid for grid in grids(lanes) if cost(axes, grid, batch) <= 1.05 * least), key=key)


@cache
def halo_moves(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """What fills a halo: moves (m, 3) int32 of from, to, permutation; permutations (p, lanes) of
    integers as wide as an element (int32, or int16 for thirty-two lanes).

    A move takes the vector at one position of a channel, permutes its lanes (−1: the value that
    stands for outside), and writes it at another. The first moves clear what lies in a block but
    outside its image.
    """
    grid, (height, width) = layout.grid, layout.block
    lane = np.arange(grid.lanes)
    row, column = lane // grid.columns % grid.rows, lane % grid.columns
    permutations: dict[tuple[int, ...], int] = {}
    moves: list[tuple[int, int, int]] = []

    def position(y: int, x: int) -> int:
        return (layout.halo.top + y) * layout.pitch + layout.halo.left + x

    def move(source: int, target: int, lanes: np.ndarray) -> None:
        number = permutations.setdefault(tuple(lanes.tolist()), len(permutations))
        moves.append((source, target, number))

    if layout.is_ragged:
        for y, x in itertools.product(range(height), range(width)):
            inside = (row * height + y < layout.image[0]) & (column * width + x < layout.image[1])
            if not inside.all():
                move(position(y, x), position(y, x), np.where(inside, lane, -1))
    halo = layout.halo
    for y in range(-halo.top, height + halo.bottom):
        for x in range(-halo.left, width + halo.right):
            down, across = y // height, x // width
            if down == across == 0:
                continue
            new_row, new_column = row + down, column + across
            exists = (new_row >= 0) & (new_row < grid.rows)
            exists &= (new_column >= 0) & (new_column < grid.columns)
            lanes = np.where(exists, lane + down * grid.columns + across, -1)
            move(position(y % height, x % width), position(y, x), lanes)
    return (
        np.array(moves, dtype=np.int32).reshape(-1, 3),
        np.array(list(permutations), dtype=np.int32 if grid.lanes == LANES else np.int16).reshape(
            -1, grid.lanes
        ),
    )

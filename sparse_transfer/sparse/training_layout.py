"""How the values of a training region lie, and which are kept from forward to backward.

All values of one size of image lie alike. What a convolution or a pool reads in another cut is
copied on the way. Kept are inputs, results of convolutions and of pools, and sums: whatever is
normalised or read twice. Other results of norms are computed again where they are needed, in cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import final

from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.layout import (
    TOLERATED,
    Axis,
    Grid,
    Halo,
    Layout,
    cost,
    forward_halo,
    grid_for,
)
from sparse_transfer.sparse.training_graph import Node, Shape

ALIGNED = 16  # floats between places in saved memory


@final
class Layouts:
    """Lanes for every size of image.

    Args:
        shapes: (channels, height, width) of values, in the order of the network.
        batch: images for which they are chosen; any number can be run.
    """

    def __init__(self, shapes: Sequence[Shape], batch: int) -> None:
        self._grids: dict[tuple[int, int], Grid] = {}
        here: Grid | None = None
        for size in dict.fromkeys((height, width) for _, height, width in shapes):
            axes = (Axis(size[0], 3, 1, 1, 1), Axis(size[1], 3, 1, 1, 1))
            best = grid_for(axes, batch)
            if here is None or cost(axes, here, batch) > TOLERATED * cost(axes, best, batch):
                here = best
            self._grids[size] = here

    def home(self, shape: Shape) -> Layout:
        """Where a value lies, without a halo."""
        channels, *size = shape
        grid = self._grids[size[0], size[1]]
        block = (-(-size[0] // grid.rows), -(-size[1] // grid.columns))
        return Layout(channels, (size[0], size[1]), block, grid)

    def read(self, node: Node, source: Shape) -> Layout:
        """How a convolution or a pool reads its source, without a halo."""
        assert node.axes is not None
        grid = self.home(node.shape).grid
        block = (node.axes[0].blocks(grid.rows)[0], node.axes[1].blocks(grid.columns)[0])
        return Layout(source[0], (source[1], source[2]), block, grid)

    def fits(self, node: Node) -> bool:
        """Whether a node's result lies as all values of its size do."""
        if node.axes is None:
            return True
        home = self.home(node.shape)
        parts = (home.grid.rows, home.grid.columns)
        blocks = tuple(axis.blocks(n)[1] for axis, n in zip(node.axes, parts, strict=True))
        return blocks == home.block


@final
class Values:
    """The values of a region, their layouts with halos, and buffers for those that are kept.

    Args:
        nodes: fused, in order.
        outputs: names of values that leave.
        layouts: of all sizes.
    """

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[str], layouts: Layouts) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.outputs = tuple(outputs)
        self.homes = {node.name: layouts.home(node.shape) for node in nodes}
        self.reads = {
            node.name: layouts.read(node, self.nodes[node.source].shape)
            for node in nodes
            if node.axes is not None
        }
        self._halos: dict[tuple[str, Layout], Halo] = {}
        for name, layout in self.reads.items():
            axes, key = self.nodes[name].axes, (self.nodes[name].source, layout)
            assert axes is not None
            halo = forward_halo(axes, layout.grid)
            self._halos[key] = self._halos.get(key, Halo()) | halo
        kept = self._kept()
        self.saved = {
            name: Buffer(self.around(name, self.homes[name]), is_saved=True) for name in kept
        }

    def around(self, name: str, layout: Layout) -> Layout:
        """With room for the halo of all that read the value so."""
        return layout.with_halo(self._halos.get((name, layout), Halo()))

    def place(self, batch: int) -> int:
        """Give the kept values their places for so many images; returns the floats needed."""
        at = 0
        for buffer in self.saved.values():
            buffer.at = at
            floats = -(-batch // buffer.layout.grid.images) * buffer.layout.floats
            at += -(-floats // ALIGNED) * ALIGNED
        return at

    def _kept(self) -> list[str]:
        readers = Counter(name for node in self.nodes.values() for name in node.reads)
        readers.update(self.outputs)
        normalised = {name for node in self.nodes.values() for _, name in node.norms}
        elsewhere = {
            self.nodes[name].source
            for name, layout in self.reads.items()
            if layout != self.homes[self.nodes[name].source]
        }
        return [
            name
            for name, node in self.nodes.items()
            if node.do != "activate"
            or node.other
            or readers[name] > 1
            or name in normalised
            or name in elsewhere
        ]

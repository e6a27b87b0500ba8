"""The forward program of a training region.

One segment for each batch norm: the norm before it, with sum and activation, is applied to an item
in cache, the convolution makes its result, which is kept, and its sums; then all threads meet and
the norm's average and deviation are known.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

import numpy as np

from sparse_transfer.sparse import emission
from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.layout import Layout
from sparse_transfer.sparse.program import Program
from sparse_transfer.sparse.training_graph import Node, Norm
from sparse_transfer.sparse.training_layout import Values
from sparse_transfer.sparse.training_tables import State, Tables


class Builder:
    """What both directions share: segments, values in the cut that somebody wants, halos."""

    def __init__(self, values: Values, tables: Tables, program: Program) -> None:
        self.values, self.tables, self.program = values, tables, program
        self.filled: dict[Buffer, float] = {}
        self.pending: dict[Norm, Buffer] = {}  # norms whose sums are being taken, and of what
        self._images: int | None = None
        self._local: dict[tuple[str, Layout], Buffer] = {}

    def enter(self, images: int) -> None:
        """What follows is done for items of so many images."""
        if images != self._images:
            self.program.segment(images, is_new=True)
            self._images, self._local = images, {}

    def once(self) -> None:
        """What follows is done once, after all items."""
        self.program.segment(0, is_new=True)
        self._images = None

    def settle(self, norms: Iterable[Norm], *, backward: bool) -> None:
        """Wait for the sums of these norms, and so for all whose sums are being taken."""
        if any(norm in self.pending for norm in norms):
            self.once()
            for norm, source in self.pending.items():
                self.tables.finish(self.program, norm, source, backward=backward)
            self.pending = {}

    def get(self, name: str, layout: Layout | None = None, fill: float | None = None) -> Buffer:
        """A value in that cut, or as it lies, its halo filled; computed again where not kept."""
        home = self.values.homes[name]
        layout = layout or home
        key = (name, layout)
        if layout == home and name in self.values.saved:
            found = self.values.saved[name]
        elif key in self._local:
            found = self._local[key]
        else:
            found = Buffer(self.values.around(name, layout))
            if layout == home:
                self.compute(self.values.nodes[name], found)
            else:
                self.program.regrid(self.values.saved[name], found)
            self._local[key] = found
        if fill is not None:
            self.surround(found, fill)
        return found

    def surround(self, buffer: Buffer, fill: float) -> None:
        """Fill a halo and what lies outside the images, unless it has been."""
        needed = buffer.layout.halo or buffer.layout.is_ragged
        if needed and self.filled.get(buffer) != fill:
            self.program.halo(buffer, fill)
            self.filled[buffer] = fill

    def compute(self, node: Node, target: Buffer) -> None:
        """activation(norm(source) + norm(other))."""
        other = self.get(node.other) if node.other else None
        if other is not None and node.other_norm is not None:
            state = self.tables.norms[node.other_norm]
            normed = Buffer(self.values.homes[node.other])
            self.program.pointwise(other, normed, scale=state[State.SCALE], bias=state[State.SHIFT])
            other = normed
        state = None if node.norm is None else self.tables.norms[node.norm]
        self.program.pointwise(
            self.get(node.source),
            target,
            other=other,
            scale=None if state is None else state[State.SCALE],
            bias=None if state is None else state[State.SHIFT],
            activation=node.activation,
        )


@final
class Forward(Builder):
    """Tensors: inputs, outputs."""

    def build(self) -> dict[Buffer, float]:
        """Append all operations; returns what then fills the halos of kept values."""
        program, values = self.program, self.values
        inputs = [node.name for node in values.nodes.values() if node.do == "input"]
        for node in values.nodes.values():
            if node.name not in values.saved:
                continue
            mine = [norm for norm, _ in node.norms]
            below = [norm for name in node.reads for norm in self._norms_of(name)]
            self.settle([*mine, *below], backward=False)
            self.enter(values.homes[node.name].grid.images)
            target = values.saved[node.name]
            if node.do == "input":
                program.load(inputs.index(node.name), target)
            elif node.do == "activate":
                self.compute(node, target)
            elif node.do == "convolve":
                self._convolve(node, target)
            else:
                assert node.axes is not None
                source = self.get(node.source, values.reads[node.name], -np.inf)
                program.pool(source, target, node.axes, is_max=True)
            for norm in self._applied_to(node.name):
                program.sums(target, self.tables.sums[norm])
                self.pending[norm] = target
        for number, name in enumerate(values.outputs, start=len(inputs)):
            self.settle(self._norms_of(name), backward=False)
            self.enter(values.homes[name].grid.images)
            program.store(self.get(name), number)
        return self.filled

    def _convolve(self, node: Node, target: Buffer) -> None:
        assert node.axes is not None
        reaches = any(axis.kernel > 1 or axis.before or axis.after for axis in node.axes)
        source = self.get(node.source, self.values.reads[node.name], 0.0 if reaches else None)
        weights = self.tables.weights[node.name]
        packed = emission.convolve(
            self.program, weights.pattern, weights.zeros, node.axes, source, target
        )
        self.tables.write(node.name, packed, backward=False)

    def _norms_of(self, name: str) -> list[Norm]:
        """What must be known before a value can be had."""
        if name in self.values.saved:
            return []
        node = self.values.nodes[name]
        below = [norm for source in node.reads for norm in self._norms_of(source)]
        return [*below, *(norm for norm, _ in node.norms)]

    def _applied_to(self, name: str) -> list[Norm]:
        every = (pair for node in self.values.nodes.values() for pair in node.norms)
        return [norm for norm, source in every if source == name]

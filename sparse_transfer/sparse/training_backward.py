"""The backward program of a training region.

The gradient of a norm's source is made in cache, where it feeds the gradient of the non-zeros and
the transposed convolution. What comes out passes the activation below and gives the sums that the
norm below needs, before all threads meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import final

import numpy as np

from sparse_transfer.sparse import emission
from sparse_transfer.sparse.abi import Activation
from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.layout import Layout
from sparse_transfer.sparse.packing import Packed
from sparse_transfer.sparse.program import Program
from sparse_transfer.sparse.training_forward import Builder
from sparse_transfer.sparse.training_graph import Node, Norm
from sparse_transfer.sparse.training_layout import Values
from sparse_transfer.sparse.training_tables import Tables


@final
class Backward(Builder):
    """Tensors: gradients of the outputs, of the wanted inputs, of the convolutions' values.

    Args:
        wanted: names of inputs whose gradient is needed.
        filled: what fills the halos of kept values.
    """

    def __init__(
        self,
        values: Values,
        tables: Tables,
        program: Program,
        wanted: tuple[str, ...],
        filled: dict[Buffer, float],
    ) -> None:
        super().__init__(values, tables, program)
        self.filled = dict(filled)
        self._wanted = wanted
        # a value's gradient is the sum of its parts: a gradient, or that of a norm of the value
        self._parts: dict[str, list[tuple[Buffer, Norm | None]]] = {n: [] for n in values.nodes}
        self._cuts: dict[str, dict[Layout, Buffer]] = {name: {} for name in values.nodes}
        self._readers: Counter[Buffer] = Counter()  # that are still to come
        self._packed: dict[str, Packed] = {}
        self._needed: set[str] = set()
        for node in values.nodes.values():
            is_first = node.name in wanted or node.do == "convolve" or node.norms
            if is_first or self._needed.intersection(node.reads):
                self._needed.add(node.name)

    def build(self) -> None:
        """Append all operations."""
        program, values = self.program, self.values
        visit = {
            "input": self._input,
            "activate": self._activate,
            "convolve": self._convolve,
            "maximum": self._maximum,
        }
        for node in reversed(values.nodes.values()):
            if node.name in values.outputs:
                self.enter(values.homes[node.name].grid.images)
                loaded = self._new(node.name)
                program.load(values.outputs.index(node.name), loaded)
                self._add(node.name, loaded)
            for cut in self._cuts[node.name].values():
                self.enter(values.homes[node.name].grid.images)
                made = self._new(node.name)
                program.regrid(cut, made)
                self._add(node.name, made)
            if self._parts[node.name] and node.name in self._needed:
                above = [norm for _, norm in self._parts[node.name] if norm is not None]
                self.settle(above, backward=True)
                visit[node.do](node)
        self.settle(list(self.pending), backward=True)
        self.once()
        first = len(values.outputs) + len(self._wanted)
        for number, (name, weights) in enumerate(self.tables.weights.items(), start=first):
            program.collect_gradient(number, self._packed[name], weights.gradient)

    def _new(self, name: str) -> Buffer:
        """Room for a value's gradient."""
        return Buffer(self.values.homes[name], is_shared=True)

    def _add(self, name: str, gradient: Buffer, norm: Norm | None = None) -> None:
        if name in self._needed:
            self._parts[name].append((gradient, norm))
            self._readers[gradient] += 1

    def _total(self, name: str) -> tuple[Buffer, bool]:
        """A value's gradient, and whether nobody else will read the buffer."""
        total, is_mine = None, False
        for gradient, norm in self._parts[name]:
            self._readers[gradient] -= 1
            part, is_new = gradient, not self._readers[gradient]
            if norm is not None:
                part, is_new = self._new(name), True
                self.program.norm_gradient(
                    gradient, self.values.saved[name], part, self.tables.norms[norm]
                )
            if total is None:
                total, is_mine = part, is_new
                continue
            sum_ = total if is_mine else self._new(name)
            self.program.pointwise(total, sum_, other=part)
            total, is_mine = sum_, True
        assert total is not None
        self._parts[name] = []
        return total, is_mine

    def _input(self, node: Node) -> None:
        self.enter(self.values.homes[node.name].grid.images)
        total, _ = self._total(node.name)
        self.program.store(total, len(self.values.outputs) + self._wanted.index(node.name))

    def _activate(self, node: Node) -> None:
        self.enter(self.values.homes[node.name].grid.images)
        gradient, is_mine = self._total(node.name)
        is_plain = node.activation == Activation.NONE
        if not is_mine and not (is_plain and not node.norms):
            copy = self._new(node.name)
            self.program.pointwise(gradient, copy)
            gradient = copy
        made = None if is_plain else self.get(node.name)
        if made is not None and not node.norms:
            self.program.gradient_sums(gradient, made=made, activation=node.activation)
        for norm, source in node.norms:
            self.program.gradient_sums(
                gradient,
                source=self.get(source),
                made=made,
                activation=node.activation,
                state=self.tables.norms[norm],
                into=self.tables.sums[norm],
            )
            self.pending[norm] = self.get(source)
            made = None  # it has passed the activation
        self._add(node.source, gradient, node.norm)
        if node.other:
            self._add(node.other, gradient, node.other_norm)

    def _convolve(self, node: Node) -> None:
        values, program = self.values, self.program
        home, axes = values.homes[node.name], node.axes
        assert axes is not None
        self.enter(home.grid.images)
        reaches = any(axis.kernel > 1 or axis.before or axis.after for axis in axes)
        source = self.get(node.source, values.reads[node.name], 0.0 if reaches else None)
        gradient = Buffer(home.with_halo(emission.backward_halo(axes, home.grid)))
        [(above, norm), *more] = self._parts[node.name]
        if norm is not None and not more:
            self._parts[node.name] = []
            self._readers[above] -= 1
            program.norm_gradient(above, values.saved[node.name], gradient, self.tables.norms[norm])
        else:
            total, _ = self._total(node.name)
            program.pointwise(total, gradient)
            self.surround(gradient, 0.0)
        weights = self.tables.weights[node.name]
        self._packed[node.name] = emission.value_gradient(
            program, weights.pattern, weights.zeros, axes, source, gradient, weights.gradient
        )

        def act(target: Buffer, residual: Buffer | None) -> None:
            if gradient.layout.halo:
                self.surround(gradient, 0.0)
            for packed in emission.input_gradient(
                program, weights.pattern, weights.zeros, axes, gradient, target, residual
            ):
                self.tables.write(node.name, packed, backward=True)

        self._to_source(node, act)

    def _maximum(self, node: Node) -> None:
        home, axes = self.values.homes[node.name], node.axes
        assert axes is not None
        self.enter(home.grid.images)
        total, _ = self._total(node.name)
        around = home.with_halo(emission.backward_halo(axes, home.grid))
        gradient, taps = Buffer(around), Buffer(around)
        source = self.get(node.source, self.values.reads[node.name], -np.inf)
        self.program.largest_tap(source, taps, axes)
        self.program.pointwise(total, gradient)
        self.surround(gradient, 0.0)
        self.surround(taps, 0.0)

        def act(target: Buffer, residual: Buffer | None) -> None:
            self.program.pool_gradient(gradient, taps, target, axes)
            if residual is not None:
                self.program.pointwise(target, target, other=residual)

        self._to_source(node, act)

    def _to_source(self, node: Node, act: Callable[[Buffer, Buffer | None], None]) -> None:
        """Have the gradient of a node's source made, in the cut in which it was read.

        What is there already, in the same cut, is added.
        """
        if node.source not in self._needed:
            return
        layout = self.values.reads[node.name]
        if layout != self.values.homes[node.source]:
            cuts = self._cuts[node.source]
            made = Buffer(layout, is_shared=True)
            act(made, cuts.get(layout))
            cuts[layout] = made
            return
        made, parts = self._new(node.source), self._parts[node.source]
        plain = next((part for part in parts if part[1] is None), None)
        if plain is not None:
            parts.remove(plain)
            self._readers[plain[0]] -= 1
        act(made, None if plain is None else plain[0])
        self._add(node.source, made)

"""A region of a network as one program: a layout for every value, halos, segments, operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np

from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.layout import (
    TOLERATED,
    Axis,
    Grid,
    Halo,
    Layout,
    can_sample,
    cost,
    forward_halo,
    grid_for,
)
from sparse_transfer.sparse.lowering import Step
from sparse_transfer.sparse.program import Program
from sparse_transfer.sparse.tuning import Choice, Problem, Tuner, emit


@dataclass(eq=False)
class _Value:
    """A value and the buffers that hold it; the first was written by its step."""

    shape: tuple[int, int, int]
    tensor: int | None = None
    places: list[tuple[int, Buffer]] = field(default_factory=list)  # segment, buffer
    after: list[Callable[[], None]] = field(default_factory=list)  # done as soon as it is written


@dataclass(frozen=True)
class Row:
    """What was chosen for one convolution, for `explain`."""

    layer: str
    weight: tuple[int, ...]
    density: float
    grid: Grid
    choice: Choice
    outputs: int  # channels that are computed


@final
class Planner:
    """Lays out a region.

    Args:
        steps: in order, fused.
        inputs: shape (channels, height, width) by name, in the order of the program's tensors.
        outputs: names of values that leave, numbered after the inputs.
        batch: images for which the layouts are chosen; any number can be run.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        inputs: dict[str, tuple[int, int, int]],
        outputs: Sequence[str],
        batch: int,
        tuner: Tuner,
    ) -> None:
        self._steps, self._batch, self._tuner = steps, batch, tuner
        self._outputs = outputs
        self._values = {
            n: _Value(shape, number) for number, (n, shape) in enumerate(inputs.items())
        }
        self._needed = needed_channels(steps, inputs, outputs)
        self._images: list[int] = []  # of each segment
        self._emit: list[tuple[int, list[Callable[[], None]]]] = []
        self._filled: dict[Buffer, float] = {}
        self.program = Program(tuner.library)
        self.rows: list[Row] = []

    def plan(self) -> Program:
        """Decide on all layouts, then emit: a halo must be known before an offset is computed."""
        for step in self._steps:
            self._lay_out(step)
            self._emit.append((self._images[-1], self._values[step.name].after))
        first = sum(value.tensor is not None for value in self._values.values())
        for number, name in enumerate(self._outputs, start=first):
            _, buffer = self._values[name].places[0]
            self._enter(buffer.layout.grid.images)
            placed = self._get(name, buffer.layout.grid, buffer.layout.block)
            self._later(lambda b=placed, n=number: self.program.store(b, n))
        for images, actions in self._emit:
            self.program.segment(images)
            for action in actions:
                action()
            actions.clear()  # they hold the planner, and so the dense weights
        return self.program

    def _later(self, action: Callable[[], None]) -> None:
        self._emit.append((self._images[-1], [action]))

    def _enter(self, images: int) -> None:
        if not self._images or self._images[-1] != images:
            self._images.append(images)

    def _get(self, name: str, grid: Grid, block: tuple[int, int]) -> Buffer:
        """The value in that layout, for the current segment."""
        value, now = self._values[name], len(self._images) - 1
        for segment, buffer in value.places:
            if buffer.layout.grid == grid and buffer.layout.block == block:
                if segment != now:
                    buffer.is_shared = True
                return buffer
        channels, height, width = value.shape
        made = Buffer(Layout(channels, (height, width), block, grid))
        if value.tensor is not None:
            number = value.tensor
            self._later(lambda: self.program.load(number, made))
        else:
            segment, source = value.places[0]
            if segment != now:
                source.is_shared = True
            self._later(lambda: self.program.regrid(source, made))
        value.places.append((now, made))
        return made

    def _sample(self, step: Step) -> Step:
        """A 1 × 1 convolution of the pixels that a strided one reads, brought together first."""
        assert step.axes is not None
        stride = step.axes[0].stride, step.axes[1].stride
        origin = self._values[step.inputs[0]]
        name = f"{step.inputs[0]}/{stride[0]}/{stride[1]}"
        axes = Axis(step.axes[0].output), Axis(step.axes[1].output)
        if name not in self._values:
            grid, in_block, out_block = self._cut(step)
            self._enter(grid.images)
            now = len(self._images) - 1
            shape = (origin.shape[0], axes[0].size, axes[1].size)
            made = Buffer(Layout(shape[0], shape[1:], out_block, grid))
            self._values[name] = _Value(shape, None, [(now, made)])
            first = origin.places[0][1] if origin.tensor is None else None
            is_here = any(at == now and b.layout.grid == grid for at, b in origin.places)
            if first and not is_here and can_sample(first.layout, made.layout, stride):
                between = Buffer(made.layout, is_shared=True)
                items = made.layout.grid.images // first.layout.grid.images
                origin.after.append(lambda: self.program.sample(first, between, stride))
                self._later(lambda: self.program.join(between, made, items))
            else:
                layouts = {(b.layout.grid, b.layout.block) for _, b in origin.places}
                if first and (grid, in_block) not in layouts:
                    first.is_shared |= origin.places[0][0] != now
                    self._later(lambda: self.program.regrid(first, made, stride))
                else:
                    source, taken = self._get(step.inputs[0], grid, in_block), step.axes
                    self._later(lambda: self.program.pool(source, made, taken, is_max=True))
        return replace(step, inputs=(name,), axes=axes)

    def _new(self, step: Step, grid: Grid, block: tuple[int, int]) -> Buffer:
        channels, height, width = step.shape
        made = Buffer(Layout(channels, (height, width), block, grid))
        self._values[step.name] = _Value(step.shape, None, [(len(self._images) - 1, made)])
        return made

    def _surround(self, buffer: Buffer, halo: Halo, fill: float) -> None:
        """Room for a halo, and what fills it before the next operation."""
        buffer.layout = buffer.layout.with_halo(buffer.layout.halo | halo)

        def act() -> None:
            if self._filled.get(buffer) != fill:
                self._filled[buffer] = fill
                self.program.halo(buffer, fill)

        self._later(act)

    def _current(self, name: str) -> Layout | None:
        places = self._values[name].places
        return places[0][1].layout if places else None

    def _cut(self, step: Step) -> tuple[Grid, tuple[int, int], tuple[int, int]]:
        """Grid, and blocks of input and output."""
        axes = step.axes or tuple(Axis(size) for size in self._values[step.inputs[0]].shape[1:])
        axes = (axes[0], axes[1])
        grid = grid_for(axes, self._batch, self._tuner.library.lanes)
        here = self._current(step.gate or step.inputs[0])
        if here is not None and self._may_stay(step, axes, here, grid):
            grid = here.grid
        source = self._current(step.inputs[0])
        if step.axes is None and source is not None and source.grid == grid:
            return grid, source.block, source.block
        (in_y, out_y), (in_x, out_x) = axes[0].blocks(grid.rows), axes[1].blocks(grid.columns)
        return grid, (in_y, in_x), (out_y, out_x)

    def _may_stay(self, step: Step, axes: tuple[Axis, Axis], here: Layout, best: Grid) -> bool:
        """Whether a step takes its input as it lies."""
        if step.axes is None or here.image == (1, 1):  # a mean lies in all lanes of its image
            return True
        blocks = axes[0].blocks(here.grid.rows)[0], axes[1].blocks(here.grid.columns)[0]
        more = cost(axes, here.grid, self._batch) / cost(axes, best, self._batch)
        return blocks == here.block and more <= TOLERATED

    def _lay_out(self, step: Step) -> None:
        if step.do == "convolve" and _skips_pixels(step):
            step = self._sample(step)
        grid, in_block, out_block = self._cut(step)
        self._enter(grid.images)
        if step.do == "concatenate":
            return self._concatenate(step, grid, in_block)
        source = self._get(step.inputs[0], grid, in_block)
        if step.do in ("convolve", "maximum", "average"):
            assert step.axes is not None
            halo = forward_halo(step.axes, grid)
            reaches = max(axis.kernel for axis in step.axes) > 1
            if halo or (reaches and source.layout.is_ragged):
                self._surround(source, halo, -np.inf if step.do == "maximum" else 0.0)
        if step.do == "mean":
            if source.layout.is_ragged:
                self._surround(source, Halo(), 0.0)
            target = self._new(step, grid, (1, 1))
            return self._later(lambda: self.program.mean(source, target))
        residual = None if step.residual is None else self._get(step.residual, grid, out_block)
        gate = None if step.gate is None else self._get(step.gate, grid, (1, 1))
        target = self._new(step, grid, out_block)
        if step.do == "convolve":
            return self._later(lambda: self._convolve(step, source, target, residual))
        if step.do == "pointwise":
            return self._later(
                lambda: self.program.pointwise(
                    source,
                    target,
                    other=gate or residual,
                    is_gate=gate is not None,
                    scale=step.scale,
                    bias=step.bias,
                    activation=step.activation,
                )
            )
        axes = step.axes
        assert axes is not None
        is_max = step.do == "maximum"
        return self._later(lambda: self.program.pool(source, target, axes, is_max))

    def _concatenate(self, step: Step, grid: Grid, block: tuple[int, int]) -> None:
        parts = [self._get(name, grid, block) for name in step.inputs]
        target = self._new(step, grid, block)

        def act() -> None:
            first = 0
            for part in parts:
                window = target.part(first, part.layout.channels)
                self.program.pointwise(part, window)
                first += part.layout.channels

        self._later(act)

    def _convolve(
        self, step: Step, source: Buffer, target: Buffer, residual: Buffer | None
    ) -> None:
        assert step.weight is not None and step.axes is not None
        rows = np.flatnonzero(self._needed[step.name])
        problem = Problem(
            step.weight, rows, step.groups, step.axes, source.layout, target.layout,
            step.activation, residual is not None,
        )  # fmt: skip
        choice = self._tuner.choose(problem)
        shape, grid = step.weight.shape, target.layout.grid
        self.rows.append(Row(step.layer, shape, problem.density, grid, choice, len(rows)))
        emit(self.program, problem, choice, source, target, residual, step.bias)


def _skips_pixels(step: Step) -> bool:
    """Whether some pixels of the input are not read at all, and no others either."""
    assert step.axes is not None
    return max(axis.stride for axis in step.axes) > 1 and all(
        axis.kernel == 1 and axis.before == axis.after == 0 for axis in step.axes
    )


def needed_channels(
    steps: Sequence[Step], inputs: dict[str, tuple[int, int, int]], outputs: Sequence[str]
) -> dict[str, np.ndarray]:
    """Which channels of every value somebody reads: bool arrays by name.

    A filter whose channel no convolution reads is dead, and so is what only it reads.
    """
    needed: dict[str, np.ndarray] = {}
    channels_of = {name: shape[0] for name, shape in inputs.items()}
    channels_of |= {step.name: step.shape[0] for step in steps}

    def read(name: str, channels: np.ndarray) -> None:
        needed[name] = needed.get(name, np.zeros_like(channels)) | channels

    for step in reversed(steps):
        mine = needed.get(step.name, np.zeros(step.shape[0], dtype=bool))
        if step.name in outputs:
            mine = np.ones(step.shape[0], dtype=bool)
        needed[step.name] = mine
        if step.do == "convolve":
            assert step.weight is not None
            grouped = step.weight.reshape(step.groups, -1, *step.weight.shape[1:])
            used = (grouped != 0).any(axis=(3, 4)) & mine.reshape(step.groups, -1, 1)
            read(step.inputs[0], used.any(axis=1).reshape(-1))
        elif step.do == "concatenate":
            ends = np.cumsum([channels_of[name] for name in step.inputs])
            for name, part in zip(step.inputs, np.split(mine, ends[:-1]), strict=True):
                read(name, part)
        else:
            read(step.inputs[0], mine)
        if step.residual is not None:
            read(step.residual, mine)
        if step.gate is not None:
            read(step.gate, mine)
    return needed

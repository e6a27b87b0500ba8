"""A convolution's operations: forward, gradient to the input, gradient to the non-zeros.

Each appends to a program and returns the matrices in it that hold values.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparse_transfer.sparse import tiling
from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.layout import Axis, Grid, Halo, Layout
from sparse_transfer.sparse.library import Library
from sparse_transfer.sparse.packing import (
    Packed,
    PackedDense,
    Pattern,
    in_type,
    pack_backward,
    pack_forward,
)
from sparse_transfer.sparse.program import Program

CACHE = 48 * 1024  # bytes that a tile may read of a group of channels
ENTRIES = 14  # of a row of a group, on average


def is_pointwise(axes: tuple[Axis, Axis]) -> bool:
    """Whether an output is made of one position of the inputs, the same."""
    return all((axis.kernel, axis.stride, axis.before, axis.after) == (1, 1, 0, 0) for axis in axes)


def convolve(
    program: Program,
    pattern: Pattern,
    values: np.ndarray,
    axes: tuple[Axis, Axis],
    source: Buffer,
    target: Buffer,
) -> Packed | PackedDense:
    """target = weight * source, whose halo has been filled with zeros."""
    rows = program.library.dense_rows
    if pattern.is_dense and pattern.shape[0] % rows == 0 and program.library.dtype == torch.float32:
        dense = PackedDense.of(pattern, values, axes, source.layout, rows)
        tile = tiling.dense_tile(program.library, target.layout.block[1])
        step, reach = (axes[0].stride, axes[1].stride), _reach(axes)
        program.dense(
            dense.weights,
            dense.offsets,
            source,
            target,
            tile=tile,
            blocks=tiling.blocks(source.layout, tile, step, reach),
            step=step,
            is_pointwise=is_pointwise(axes),
        )
        return dense
    tile, blocks = _cut(program.library, pattern, source.layout, target.layout.block, axes)
    packed = pack_forward(pattern, values, axes, source.layout, blocks)
    packed = in_type(packed, program.library.dtype)
    program.sparse(
        packed,
        source,
        target,
        tile=tile,
        blocks=blocks,
        channels=_every(target.layout),
        step=(axes[0].stride, axes[1].stride),
        count=target.layout.block,
        is_pointwise=is_pointwise(axes),
    )
    return packed


def backward_halo(axes: tuple[Axis, Axis], grid: Grid) -> Halo:
    """What `input_gradient` and a pool's gradient read around a block of the output."""
    (top, bottom), (left, right) = (
        axis.backward_halo(parts)
        for axis, parts in zip(axes, (grid.rows, grid.columns), strict=True)
    )
    return Halo(top, left, bottom, right)


def input_gradient(
    program: Program,
    pattern: Pattern,
    values: np.ndarray,
    axes: tuple[Axis, Axis],
    gradient: Buffer,
    target: Buffer,
    residual: Buffer | None = None,
) -> list[Packed]:
    """target = transposed weight * gradient (+ residual); its halo has been filled with zeros.

    One operation for each remainder of the position by the stride.
    """
    y, x = axes
    halo, block = gradient.layout.halo, target.layout.block
    reach = (halo.top + halo.bottom, halo.left + halo.right)
    per_row = len(pattern.out) / (pattern.channels * y.stride * x.stride)
    matrices = []
    for phase_y in y.phases():
        for phase_x in x.phases():
            first = (phase_y[0], phase_x[0])
            count = (-(-(block[0] - first[0]) // y.stride), -(-(block[1] - first[1]) // x.stride))
            if min(count) < 1:
                continue
            tile = tiling.tiles(program.library, count, 1)[0]
            blocks = _blocks(gradient.layout, tile, (1, 1), reach, per_row)
            phases = (phase_y, phase_x)
            matrices.append(pack_backward(pattern, values, phases, gradient.layout, blocks))
            program.sparse(
                matrices[-1],
                gradient,
                target,
                tile=tile,
                blocks=blocks,
                channels=_every(target.layout),
                step=(1, 1),
                count=count,
                first=first,
                out_step=(y.stride, x.stride),
                residual=residual,
                is_pointwise=is_pointwise(axes),
            )
    return matrices


def value_gradient(
    program: Program,
    pattern: Pattern,
    values: np.ndarray,
    axes: tuple[Axis, Axis],
    source: Buffer,
    gradient: Buffer,
    into: Tensor,
) -> Packed:
    """into (threads, at least the non-zeros) += gradient of the values, in the matrix's order."""
    block, library = gradient.layout.block, program.library
    if pattern.is_dense:
        tile, blocks = tiling.dense_gradient_tile(block), 1
    else:
        tile = tiling.tiles(library, block, axes[1].stride, is_gradient=True)[0]
        _, blocks = _cut(library, pattern, source.layout, block, axes, tile)
    packed = pack_forward(pattern, values, axes, source.layout, blocks)
    program.gradient(
        packed,
        source,
        gradient,
        into,
        tile=tile,
        blocks=blocks,
        channels=_every(gradient.layout),
        step=(axes[0].stride, axes[1].stride),
        is_pointwise=is_pointwise(axes),
        is_dense=pattern.is_dense,
    )
    return packed


def _blocks(
    source: Layout,
    tile: tuple[int, int],
    step: tuple[int, int],
    reach: tuple[int, int],
    per_row: float,
) -> int:
    """Groups of input channels: a row of a group has enough entries to be worth its sums' way to
    memory and back, even if what is read then lies in the second level of caches.

    Args:
        per_row: entries of a row of all groups, on average.
    """
    most = round(per_row / ENTRIES)
    return max(1, min(tiling.blocks(source, tile, step, reach, CACHE), most))


def _every(layout: Layout) -> np.ndarray:
    return np.arange(layout.channels, dtype=np.int32)


def _cut(
    library: Library,
    pattern: Pattern,
    source: Layout,
    count: tuple[int, int],
    axes: tuple[Axis, Axis],
    tile: tuple[int, int] | None = None,
) -> tuple[tuple[int, int], int]:
    step = (axes[0].stride, axes[1].stride)
    tile = tile or tiling.tiles(library, count, step[1])[0]
    if pattern.groups == pattern.channels or library.dtype != torch.float32:
        return tile, 1  # every row reads one channel; or sums are not to be kept in 16 bits
    return tile, _blocks(source, tile, step, _reach(axes), len(pattern.out) / pattern.shape[0])


def _reach(axes: tuple[Axis, Axis]) -> tuple[int, int]:
    """Pixels beyond the first that a tap reads, in y and x."""
    y, x = axes
    return y.dilation * (y.kernel - 1), x.dilation * (x.kernel - 1)

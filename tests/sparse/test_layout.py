"""Where pixels lie: pure arithmetic, checked against convolutions counted by hand or by torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_transfer.errors import UserError
from sparse_transfer.sparse.layout import (
    Axis,
    Grid,
    Halo,
    Layout,
    as_tensor,
    grid_for,
    grids,
    halo_moves,
)

axes = st.builds(
    Axis,
    size=st.integers(1, 40),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 3),
    before=st.integers(0, 4),
    after=st.integers(0, 4),
    dilation=st.integers(1, 2),
).filter(lambda axis: axis.output >= 1)


def test_a_buffer_that_cannot_be_addressed_is_refused():
    layout = Layout(2**19, (64, 64), (16, 16), Grid(1, 4, 4))
    with pytest.raises(UserError, match="524288 channels of 64 × 64 pixels"):
        layout.offset(np.array([0]), np.array([0]), np.array([0]))


@given(st.integers(1, 40), st.integers(1, 80), st.integers(1, 80))
def test_a_tensor_is_planes_of_its_pixels_in_their_order(channels: int, height: int, width: int):
    layout = as_tensor(channels, (height, width), 14)
    positions, rest = divmod(height * width, 16)
    if rest or not any(positions % w == 0 for w in range(5, 15)):
        assert layout is None
        return
    assert layout is not None and not layout.is_ragged and layout.block[1] in range(5, 15)
    assert layout.floats == channels * height * width
    c, y, x = np.indices((channels, *layout.block))
    assert (layout.offset(c, y, x).ravel() == 16 * np.arange(layout.floats // 16)).all()


def test_a_grid_has_sixteen_lanes():
    assert len(grids()) == 15 and Grid(1, 4, 4) in grids()
    with pytest.raises(ValueError, match="16 or 32 lanes"):
        Grid(3, 2, 2)


@given(axes)
def test_outputs_are_as_many_as_torch_makes(axis: Axis):
    image = torch.nn.functional.pad(torch.zeros(1, 1, axis.size), (axis.before, axis.after))
    kernel = torch.zeros(1, 1, axis.kernel)
    made = torch.nn.functional.conv1d(image, kernel, stride=axis.stride, dilation=axis.dilation)
    assert axis.output == made.shape[-1]


@given(axes, st.sampled_from([1, 2, 4, 8, 16]))
def test_blocks_cover_and_halos_suffice(axis: Axis, parts: int):
    block, out = axis.blocks(parts)
    before, after = axis.halo(parts)
    assert block * parts >= axis.size and out * parts >= axis.output
    for pixel in range(axis.output):
        part, inside = divmod(pixel, out)
        reads = pixel * axis.stride + axis.taps()
        here = inside * axis.stride + axis.taps()
        assert (reads == part * block + here).all()  # what torch reads, in this part's own block
        assert -before <= here.min() and here.max() < block + after


@given(axes, st.sampled_from([1, 2, 4, 8, 16]))
def test_backward_reaches_every_product_of_forward_once(axis: Axis, parts: int):
    block, out = axis.blocks(parts)
    before, after = axis.backward_halo(parts)
    products = {
        (pixel * axis.stride + int(tap), pixel, k)
        for pixel in range(axis.output)
        for k, tap in enumerate(axis.taps())
    }
    found = []
    for remainder, taps, shifts in axis.phases():
        for part in range(parts):
            for i in range(-(-(block - remainder) // axis.stride)):
                pixel = part * block + i * axis.stride + remainder
                for k, shift in zip(taps, shifts, strict=True):
                    assert -before <= i + shift < out + after
                    found.append((pixel, part * out + i + int(shift), int(k)))
    inside = [f for f in found if 0 <= f[0] < axis.size and 0 <= f[1] < axis.output]
    assert len(inside) == len(set(inside))
    assert set(inside) == {p for p in products if 0 <= p[0] < axis.size}


@settings(deadline=None)
@given(
    st.sampled_from(grids()),
    st.tuples(*[st.integers(1, 20)] * 2),
    st.tuples(*[st.integers(0, 5)] * 4),
)
def test_halo_moves_bring_the_neighbours(grid: Grid, image: tuple[int, int], sides):
    block = (-(-image[0] // grid.rows), -(-image[1] // grid.columns))
    layout = Layout(1, image, block, grid, Halo(*sides))
    pixels = np.arange(1, 1 + grid.images * image[0] * image[1]).reshape(grid.images, *image)

    def pixel(lane: int, y: int, x: int) -> int:
        part = lane % (grid.rows * grid.columns)
        y, x = part // grid.columns * block[0] + y, part % grid.columns * block[1] + x
        inside = 0 <= y < image[0] and 0 <= x < image[1]
        return pixels[lane // (grid.rows * grid.columns), y, x] if inside else -7

    plane = np.full((layout.floats // 16, 16), 99)  # what lies outside an image may be anything
    place = layout.halo.top * layout.pitch + layout.halo.left
    for y in range(block[0]):
        for x in range(block[1]):
            found = [pixel(lane, y, x) for lane in range(16)]
            plane[place + y * layout.pitch + x] = np.where(np.array(found) == -7, 55, found)
    moves, permutations = halo_moves(layout)
    for source, target, number in moves:
        lanes = permutations[number]
        plane[target] = np.where(lanes < 0, -7, plane[source][lanes])
    top, left, bottom, right = sides
    for y in range(-top, block[0] + bottom):
        for x in range(-left, block[1] + right):
            expected = [pixel(lane, y, x) for lane in range(16)]
            assert plane[place + y * layout.pitch + x].tolist() == expected


@pytest.mark.parametrize(
    ("size", "batch", "grid"),
    [
        (56, 16, Grid(1, 4, 4)),  # blocks of 14 × 14, nothing wasted
        (28, 1, Grid(1, 4, 4)),
        (14, 16, Grid(4, 2, 2)),  # blocks of 7 × 7
        (7, 16, Grid(16, 1, 1)),
        (7, 32, Grid(16, 1, 1)),
        (4, 64, Grid(16, 1, 1)),  # blocks of one pixel would load every weight for each
    ],
)
def test_the_grid_wastes_little_and_holds_few_images(size: int, batch: int, grid: Grid):
    assert grid_for((Axis(size), Axis(size)), batch) == grid

"""Operations other than convolutions, each alone between a load and a store, on every level."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sparse_transfer.sparse import library
from sparse_transfer.sparse.abi import Activation
from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.layout import Axis, Grid, Halo, Layout, can_sample, cost, forward_halo
from sparse_transfer.sparse.layout import grids as grids_of
from sparse_transfer.sparse.packing import Pattern, pack_dense, pack_forward
from sparse_transfer.sparse.program import Program

pytestmark = pytest.mark.kernels
LEVELS = [] if library.available() else library.levels()
grids, sides = st.sampled_from(grids_of()), st.integers(1, 19)


def laid(channels: int, size: tuple[int, int], grid: Grid) -> Layout:
    return Layout(channels, size, (-(-size[0] // grid.rows), -(-size[1] // grid.columns)), grid)


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, max_examples=150)
@given(grids, grids, st.integers(1, 40), sides, sides, st.integers(1, 2))
def test_images_pass_from_any_lanes_to_any_others(
    level, first, second, batch, height, width, times
):
    size = (height * times, width * times)  # small blocks that are parts of large ones, and not
    images = torch.randn(batch, 2, *size)
    program, found = Program(library.load(level)), torch.full_like(images, 7.0)
    one = Buffer(laid(2, size, first), is_shared=True)
    two = Buffer(laid(2, size, second))
    program.segment(first.images)
    program.load(0, one)
    program.segment(second.images)
    program.regrid(one, two)
    program.store(two, 1)
    program.run([images, found], batch)
    assert torch.equal(found, images)


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, max_examples=80)
@given(grids, grids, st.integers(1, 20), sides, sides, st.integers(2, 3), st.integers(1, 3))
def test_every_step_th_pixel_passes_from_any_lanes_to_any_others(
    level, first, second, batch, height, width, step_y, step_x
):
    images = torch.randn(batch, 5, height, width)
    expected = images[:, :, ::step_y, ::step_x]
    program, found = Program(library.load(level)), torch.full_like(expected, 7.0)
    one = Buffer(laid(5, (height, width), first), is_shared=True)
    two = Buffer(laid(5, (expected.shape[2], expected.shape[3]), second))
    program.segment(first.images)
    program.load(0, one)
    program.segment(second.images)
    program.regrid(one, two, (step_y, step_x))
    program.store(two, 1)
    for threads in (1, 3):
        program.run([images, found.fill_(7.0)], batch, threads)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("down", [1, 2, 4])
def test_whole_blocks_are_joined_by_vectors(down):
    """The way that large images take on their way to fewer pixels, with a part of a batch."""
    images, first = torch.randn(19, 3, 8, 8), Grid(1, 4, 4)
    second = Grid(down * down, 4 // down, 4 // down)
    program, found = Program(library.current()), torch.zeros(19, 3, 8, 8)
    one, two = Buffer(laid(3, (8, 8), first), is_shared=True), Buffer(laid(3, (8, 8), second))
    program.segment(first.images)
    program.load(0, one)
    program.segment(second.images)
    program.regrid(one, two)
    program.store(two, 1)
    program.run([images, found], 19)
    assert torch.equal(found, images)
    back = torch.zeros(19, 3, 8, 8)
    program = Program(library.current())
    two = Buffer(laid(3, (8, 8), second), is_shared=True)
    three = Buffer(laid(3, (8, 8), first))
    program.segment(second.images)
    program.load(0, two)
    program.segment(first.images, is_new=True)
    program.regrid(two, three)
    program.store(three, 1)
    program.run([images, back], 19)
    assert torch.equal(back, images)


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, max_examples=60)
@given(grids, grids, st.integers(1, 35), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_every_step_th_pixel_of_several_items_is_joined(
    level, first, second, batch, height, width, step
):
    size = height * 4 * first.rows, width * 4 * first.columns
    small = -(-size[0] // step), -(-size[1] // step)
    before = laid(3, size, first)
    between, after = laid(3, small, second), laid(3, small, second).with_halo(Halo(1, 0, 2, 1))
    if not can_sample(before, between, (step, step)):
        return
    images, found = torch.randn(batch, 3, *size), torch.full((batch, 3, *small), 7.0)
    one, two, three = Buffer(before), Buffer(between, is_shared=True), Buffer(after)
    program = Program(library.load(level))
    program.segment(first.images)
    program.load(0, one)
    program.sample(one, two, (step, step))
    program.segment(second.images)
    program.join(two, three, second.images // first.images)
    program.store(three, 1)
    for threads in (1, 3):
        program.run([images, found.fill_(7.0)], batch, threads)
        assert torch.equal(found, images[:, :, ::step, ::step])


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, max_examples=40)
@given(grids, st.integers(1, 18), sides, sides, st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_pools_agree(level, grid, batch, height, width, kernel, stride, is_max):
    pad = kernel // 2
    axes = tuple(Axis(size, kernel, stride, pad, pad) for size in (height, width))
    axes = (axes[0], axes[1])
    if min(axis.output for axis in axes) < 1:
        return
    images = torch.randn(batch, 3, height, width)
    pool = functional.max_pool2d if is_max else functional.avg_pool2d
    expected = pool(images, kernel, stride, pad)
    (in_y, out_y), (in_x, out_x) = axes[0].blocks(grid.rows), axes[1].blocks(grid.columns)
    halo = forward_halo(axes, grid)
    one = Buffer(Layout(3, (height, width), (in_y, in_x), grid, halo))
    two = Buffer(Layout(3, (axes[0].output, axes[1].output), (out_y, out_x), grid))
    program, found = Program(library.load(level)), torch.zeros_like(expected)
    program.segment(grid.images)
    program.load(0, one)
    program.halo(one, -np.inf if is_max else 0.0)
    program.pool(one, two, axes, is_max)
    program.store(two, 1)
    program.run([images, found], batch)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("grid", [Grid(1, 4, 4), Grid(2, 2, 4), Grid(16, 1, 1)])
def test_means_lie_in_all_lanes_of_their_image_and_gate_it(level, grid):
    images = torch.randn(5, 3, 7, 9)
    values = Buffer(laid(3, (7, 9), grid))
    mean, gated = Buffer(Layout(3, (1, 1), (1, 1), grid)), Buffer(laid(3, (7, 9), grid))
    program = Program(library.load(level))
    found, means = torch.zeros(5, 3, 7, 9), torch.zeros(5, 3, 1, 1)
    program.segment(grid.images)
    program.load(0, values)
    program.halo(values)
    program.mean(values, mean)
    program.store(mean, 1)
    program.pointwise(values, gated, other=mean, is_gate=True, activation=Activation.RELU)
    program.store(gated, 2)
    program.run([images, means, found], 5)
    expected = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(means, expected)
    torch.testing.assert_close(found, images.relu() * expected)


FUNCTIONS = {
    Activation.NONE: lambda x: x,
    Activation.RELU: functional.relu,
    Activation.RELU6: functional.relu6,
    Activation.HARD_SWISH: functional.hardswish,
    Activation.HARD_SIGMOID: functional.hardsigmoid,
    Activation.SILU: functional.silu,
    Activation.SIGMOID: torch.sigmoid,
}


def changed(level: str, images: Tensor, **how) -> Tensor:
    """The result of one pointwise operation."""
    layout = laid(images.shape[1], (images.shape[2], images.shape[3]), Grid(4, 2, 2))
    program, found = Program(library.load(level)), torch.empty_like(images)
    one, two, three = Buffer(layout), Buffer(layout), Buffer(layout)
    program.segment(4)
    program.load(0, one)
    program.load(1, two)
    program.pointwise(one, three, other=two, **how)
    program.store(three, 2)
    program.run([images, images.flip(0), found], len(images))
    return found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("activation", Activation)
def test_activations_agree_over_their_whole_range(level, activation):
    images = torch.cat([torch.linspace(-100, 100, 6000), torch.linspace(-9, 9, 6000)])
    images = images.reshape(10, 2, 24, 25)
    scale, bias = np.array([1.0, -0.5], np.float32), np.array([0.0, 2.0], np.float32)
    before = images * torch.tensor([1, -0.5])[:, None, None] + torch.tensor([0, 2.0])[:, None, None]
    found = changed(level, images, scale=scale, bias=bias, activation=activation)
    expected = FUNCTIONS[activation]((before + images.flip(0)).double())
    torch.testing.assert_close(found.double(), expected, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, max_examples=30)
@given(
    grids, st.integers(1, 17), st.integers(1, 6), st.integers(1, 9), sides, st.integers(1, 4),
    st.integers(1, 3), st.integers(1, 3), st.sampled_from(Activation),
)  # fmt: skip
def test_dense_convolutions_agree(
    level, grid, batch, into, out, size, kernel, stride, blocks, activation
):
    kernel = min(kernel, size)
    axis = Axis(size, kernel, stride, kernel // 2, kernel // 2)
    images, bias = torch.randn(batch, into, size, size), torch.randn(out)
    weight = torch.randn(out, into, kernel, kernel)
    plain = functional.conv2d(images.double(), weight.double(), bias.double(), stride, kernel // 2)
    other = torch.randn(plain.shape)
    expected = FUNCTIONS[activation](plain + other)
    (in_y, out_y), (in_x, out_x) = axis.blocks(grid.rows), axis.blocks(grid.columns)
    source = Layout(into, (size, size), (in_y, in_x), grid, forward_halo((axis, axis), grid))
    target = Layout(out, (axis.output, axis.output), (out_y, out_x), grid)
    one, two, three = Buffer(source), Buffer(target), Buffer(target)
    lib = library.load(level)
    program, found = Program(lib), torch.zeros(plain.shape)
    weights, offsets = pack_dense(weight.numpy(), (axis, axis), source, lib.dense_rows)
    program.segment(grid.images)
    program.load(0, one)
    program.load(1, two)
    program.halo(one)
    program.dense(
        weights, offsets, one, three, tile=(1, min(lib.dense_width, out_x)), blocks=blocks,
        step=(stride, stride), bias=bias.numpy(), residual=two, activation=activation,
    )  # fmt: skip
    program.store(three, 2)
    program.run([images, other, found], batch)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_buffers_share_memory_only_when_one_is_no_longer_needed():
    layout = laid(2, (4, 4), Grid(1, 4, 4))
    a, b, c, d = (Buffer(layout) for _ in range(4))
    program = Program(library.current())
    rows = library.current().dense_rows
    weights, offsets = np.zeros((1, 2, rows), np.float32), np.zeros(2, np.int32)
    program.segment(1)
    program.load(0, a)
    program.pointwise(a, b)
    for source, target in ((b, c), (c, d)):  # these take no turns with others
        program.dense(weights, offsets, source, target, tile=(1, 1), blocks=1, step=(1, 1))
    program.pointwise(d, d, other=a)
    program.store(d, 1)
    assert program.floats(1, 1) >= 3 * layout.floats
    spans = {buffer: (buffer.uses[0], buffer.uses[-1]) for buffer in (a, b, c, d)}
    for one, two in itertools.combinations(spans, 2):
        together = spans[one][0] <= spans[two][1] and spans[two][0] <= spans[one][1]
        apart = abs(one.at - two.at) >= layout.floats
        assert apart or not together
    assert b.at == d.at


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize("is_read_later", [False, True])
def test_a_sum_takes_the_place_of_what_nobody_reads_after_it(level, is_read_later, is_shared):
    lib, axes = library.load(level), (Axis(8), Axis(8))
    layout = laid(6, (8, 8), Grid(1, 4, 4))
    weight = torch.randn(6, 6, 1, 1) * (torch.rand(6, 6, 1, 1) < 0.5)
    pattern = Pattern.of(weight.numpy() != 0, 1)
    packed = pack_forward(pattern, weight.numpy()[weight.numpy() != 0], axes, layout, 3)
    images, other = torch.randn(2, 6, 8, 8), torch.randn(2, 6, 8, 8)
    found, kept = torch.zeros(2, 2, 6, 8, 8)
    one, two, three = Buffer(layout), Buffer(layout, is_shared), Buffer(layout, is_shared)
    program = Program(lib)
    program.segment(1)
    program.load(0, one)
    program.load(1, two)
    program.sparse(
        packed, one, three, tile=(1, 2), blocks=3, channels=np.arange(6, dtype=np.int32),
        step=(1, 1), count=(2, 2), residual=two,
    )  # fmt: skip
    program.store(three, 2)
    if is_read_later:
        program.store(two, 3)
    program.run([images, other, found, kept], 2)
    assert (two.at == three.at) is not is_read_later
    torch.testing.assert_close(found, functional.conv2d(images, weight) + other)
    assert torch.equal(kept, other if is_read_later else torch.zeros_like(other))


@pytest.mark.parametrize("level", LEVELS)
def test_pointwise_convolutions_take_turns(level):
    """With tiles of different heights; the second sum takes the first one's place."""
    lib, axes = library.load(level), (Axis(20), Axis(8))
    layout = laid(6, (20, 8), Grid(1, 4, 4))
    weights = [torch.randn(6, 6, 1, 1) * (torch.rand(6, 6, 1, 1) < 0.5) for _ in range(3)]
    images, found = torch.randn(5, 6, 20, 8), torch.zeros(5, 6, 20, 8)
    source, first, second, third = (Buffer(layout) for _ in range(4))
    program = Program(lib)
    program.segment(1)
    program.load(0, source)
    for weight, into, out, residual, tile in (
        (weights[0], source, first, None, (2, 1)),
        (weights[1], source, second, first, (3, 1)),
        (weights[2], second, third, None, (1, 2)),
    ):
        kept = weight.numpy() != 0
        packed = pack_forward(Pattern.of(kept, 1), weight.numpy()[kept], axes, layout, 2)
        program.sparse(
            packed, into, out, tile=tile, blocks=2, channels=np.arange(6, dtype=np.int32),
            step=(1, 1), count=(5, 2), residual=residual, is_pointwise=True,
        )  # fmt: skip
    program.store(third, 1)
    program.run([images, found], 5, 1)
    assert first.at == second.at and len({source.at, first.at, third.at}) == 3
    one, two, three = (functional.conv2d(images, weights[0]), weights[1], weights[2])
    expected = functional.conv2d(functional.conv2d(images, two) + one, three)
    torch.testing.assert_close(found, expected)
    shared = torch.zeros_like(found)
    program.run([images, shared], 5, 3)
    assert torch.equal(shared, found)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("is_read_again", [False, True])
def test_what_treats_pixels_by_themselves_takes_turns(level, is_read_again):
    """After a 3 × 3 convolution, which looks ahead: nobody overwrites what it has yet to read."""
    lib, axes = library.load(level), (Axis(20, 3, 1, 1, 1), Axis(8, 3, 1, 1, 1))
    layout = laid(6, (20, 8), Grid(1, 4, 4))
    around = layout.with_halo(Halo(1, 1, 1, 1))
    weight = torch.randn(6, 6, 3, 3) * (torch.rand(6, 6, 3, 3) < 0.3)
    images, found = torch.randn(5, 6, 20, 8), torch.zeros(5, 6, 20, 8)
    source, first, second, third = Buffer(around), *(Buffer(layout) for _ in range(3))
    sums = torch.zeros(3, 16, dtype=torch.float64)
    target = source if is_read_again else second
    program = Program(lib)
    program.segment(1)
    program.load(0, source)
    program.halo(source)
    kept = weight.numpy() != 0
    packed = pack_forward(Pattern.of(kept, 1), weight.numpy()[kept], axes, around, 2)
    program.sparse(
        packed, source, first, tile=(1, 2), blocks=2, channels=np.arange(6, dtype=np.int32),
        step=(1, 1), count=(5, 2),
    )  # fmt: skip
    program.pointwise(first, target, activation=Activation.RELU)
    program.sums(target, sums)
    program.pointwise(target, third, other=first)
    program.store(third, 1)
    program.run([images, found], 5, 1)
    made = functional.conv2d(images, weight, padding=1)
    torch.testing.assert_close(found, made.relu() + made)
    relu = made.relu().double()
    expected = torch.stack([relu.sum((0, 2, 3)), relu.square().sum((0, 2, 3))], 1)
    torch.testing.assert_close(sums.sum(0)[:12].view(6, 2), expected, rtol=1e-5, atol=1e-4)
    shared = torch.zeros_like(found)
    program.run([images, shared], 5, 3)
    torch.testing.assert_close(shared, found)
    torch.testing.assert_close(sums.sum(0)[:12].view(6, 2), 2 * expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, max_examples=40)
@given(
    grids, st.integers(1, 9), st.integers(1, 19), st.integers(1, 9), sides, sides,
    st.integers(1, 2), st.integers(1, 3), st.booleans(),
)  # fmt: skip
def test_an_item_that_threads_share_is_the_same(
    level, grid, into, middle, out, height, width, stride, blocks, is_max
):
    """Whatever their number, also when some have nothing to do; some rows have no weights."""
    lib, batch = library.load(level), grid.images
    axes = Axis(height, 3, stride, 1, 1), Axis(width, 3, stride, 1, 1)
    pools = Axis(axes[0].output, 3, 1, 1, 1), Axis(axes[1].output, 3, 1, 1, 1)
    (in_y, out_y), (in_x, out_x) = axes[0].blocks(grid.rows), axes[1].blocks(grid.columns)
    size = axes[0].output, axes[1].output
    source = Layout(into, (height, width), (in_y, in_x), grid, forward_halo(axes, grid))
    around = Layout(middle, size, (out_y, out_x), grid, forward_halo(pools, grid))
    one, two = Buffer(source), Buffer(around)
    three, four = (Buffer(Layout(middle, size, (out_y, out_x), grid)) for _ in range(2))
    five = Buffer(Layout(out, size, (out_y, out_x), grid))
    weight = torch.randn(middle, into, 3, 3) * (torch.rand(middle, into, 3, 3) < 0.4)
    weight[1::2] = 0
    kept = weight.numpy() != 0
    packed = pack_forward(Pattern.of(kept, 1), weight.numpy()[kept], axes, source, blocks)
    full = torch.randn(out, middle, 1, 1)
    plain = Axis(size[0]), Axis(size[1])
    weights, offsets = pack_dense(full.numpy(), plain, four.layout, lib.dense_rows)
    images, found = torch.randn(batch, into, height, width), torch.zeros(batch, out, *size)
    program = Program(lib)
    program.segment(grid.images)
    program.load(0, one)
    program.halo(one)
    program.sparse(
        packed, one, two, tile=(1, min(2, out_x)), blocks=blocks, step=(stride, stride),
        channels=np.arange(middle, dtype=np.int32), count=(out_y, out_x),
    )  # fmt: skip
    program.halo(two, -np.inf if is_max else 0.0)
    program.pool(two, three, pools, is_max)
    program.pointwise(three, four, activation=Activation.RELU)
    program.dense(weights, offsets, four, five, tile=(1, 1), blocks=1, step=(1, 1))
    program.store(five, 1)
    program.run([images, found], batch, 1)
    pooled = functional.conv2d(images, weight, stride=stride, padding=1)
    pool = functional.max_pool2d if is_max else functional.avg_pool2d
    expected = functional.conv2d(pool(pooled, 3, 1, 1).relu(), full)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for threads in (2, 3, 7, 24):
        shared = torch.zeros_like(found)
        program.run([images, shared], batch, threads)
        assert torch.equal(shared, found)


@pytest.mark.parametrize("level", LEVELS)
def test_what_treats_channels_by_themselves_takes_turns(level):
    """A maximum pool and its gradient, of more channels than the cache holds at a time."""
    channels, grid = 37, Grid(1, 4, 4)
    axes = (Axis(81, 3, 2, 1, 1), Axis(72, 3, 2, 1, 1))
    size, small = (81, 72), (axes[0].output, axes[1].output)
    images, upper = torch.randn(3, channels, *size), torch.randn(3, channels, *small)
    scale = torch.randn(channels)
    (in_y, out_y), (in_x, out_x) = axes[0].blocks(4), axes[1].blocks(4)
    large = Layout(channels, size, (in_y, in_x), grid)
    plain = Layout(channels, small, (out_y, out_x), grid)
    around = plain.with_halo(
        Halo(*(axis.backward_halo(4)[side] for side in (0, 1) for axis in axes))
    )
    source, scaled, back = (Buffer(large.with_halo(forward_halo(axes, grid))) for _ in range(3))
    pooled, gradient, taps = Buffer(plain), Buffer(around), Buffer(around)
    program = Program(library.load(level))
    program.segment(1)
    program.load(0, source)
    program.pointwise(source, scaled, scale=scale)
    program.halo(scaled, -np.inf)
    program.pool(scaled, pooled, axes, is_max=True)
    program.largest_tap(scaled, taps, axes)
    program.load(1, gradient)
    program.halo(gradient, 0.0)
    program.halo(taps, 0.0)
    program.pool_gradient(gradient, taps, back, axes)
    program.store(pooled, 2)
    program.store(back, 3)
    leaf = (images * scale[:, None, None]).requires_grad_()
    expected = functional.max_pool2d(leaf, 3, 2, 1)
    expected.backward(upper)
    for threads in (1, 2):  # of three items, so one of them is shared
        found, below = torch.zeros_like(upper), torch.zeros_like(images)
        program.run([images, upper, found, below], 3, threads)
        assert torch.equal(found, expected)
        torch.testing.assert_close(below, leaf.grad)
    places = {buffer.at for buffer in (source, scaled, back, pooled, gradient, taps)}
    assert len(places) == 6  # all are in use at the same time


def test_costs_follow_idle_lanes_and_small_blocks():
    seven = (Axis(7), Axis(7))
    assert cost(seven, Grid(16, 1, 1), 16) == pytest.approx(1 + 3 / 16)
    assert cost(seven, Grid(16, 1, 1), 1) == pytest.approx(16 * (1 + 3 / 16))
    assert cost(seven, Grid(1, 4, 4), 1) == pytest.approx(64 / 49 * (1 + 3 / 4))

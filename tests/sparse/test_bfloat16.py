"""Kernels, layers and networks in 16 bits: what float32 promises, to within 1e-2."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sparse_transfer import models, sparse  # noqa: F401 - registers the small variants
from sparse_transfer.bfloat16 import InBfloat16
from sparse_transfer.errors import UserError
from sparse_transfer.sparse import abi, engine, library, tuning
from sparse_transfer.sparse.abi import Activation
from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.layer import SparseConvolution, SparseLinear
from sparse_transfer.sparse.layout import (
    Axis,
    Grid,
    Halo,
    Layout,
    can_sample,
    forward_halo,
    grid_for,
    grids,
)
from sparse_transfer.sparse.packing import ENTRY, PAIR, Pattern, pack_forward, pairs, rounded
from sparse_transfer.sparse.program import Program
from tests.sparse.test_engine import Awkward, lively, regions
from tests.sparse.test_layer import cases, relative
from tests.sparse.test_layer import sparse as with_zeros
from tests.sparse.test_program import FUNCTIONS, laid

REASON = library.available(torch.bfloat16)
needs_bfloat16 = pytest.mark.skipif(REASON is not None, reason=f"no bfloat16 kernels: {REASON}")
pytestmark = pytest.mark.kernels


def where_there_are(level: str):
    """A level as a parameter, skipped with the reason where it is not."""
    reason = library.available(library.HALVES[level])
    return pytest.param(level, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))


every_level = pytest.mark.parametrize("level", [where_there_are(level) for level in library.HALVES])
lanes, sides = st.sampled_from(grids(32)), st.integers(1, 19)
TOLERANCE = 1e-2


def exact(*shape: int) -> Tensor:
    """Random numbers that rounding to either type does not change."""
    return torch.randint(-128, 129, shape) / 32


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_weights_are_rounded_as_by_pytorch(numbers):
    values = torch.tensor(numbers)
    expected = values.bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert rounded(values.numpy()).tolist() == expected.tolist()


def test_non_zeros_are_paired_row_by_row():
    weight = np.array([[1, 2, 3], [0, 0, 0], [0, 4, 0], [5, 0, 6]], np.float32)[:, :, None, None]
    axes, pattern = (Axis(1), Axis(1)), Pattern.of(weight != 0, 1)
    source = Layout(3, (1, 1), (1, 1), Grid(32, 1, 1))
    packed = pairs(pack_forward(pattern, weight[weight != 0], axes, source, 1))
    assert packed.entries.dtype == PAIR and packed.pointers.tolist() == [0, 2, 2, 3, 4]
    one, two, three, four, five, six = rounded(np.arange(1, 7)).tolist()
    assert packed.entries["values"].tolist() == [[one, two], [three, 0], [four, 0], [five, six]]
    assert packed.entries["offsets"].tolist() == [[0, 32], [64, 64], [32, 32], [0, 64]]


@every_level
@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 2**31))
def test_convolutions_agree_with_float64(level, case, density, seed):
    groups, (out, into), kernel, stride, padding, dilation, size, batch = case
    torch.manual_seed(seed)
    weight = with_zeros((out * groups, into, *kernel), density)
    weight[torch.rand(len(weight)) < 0.2] = 0
    layer = SparseConvolution(
        weight, stride=stride, padding=padding, dilation=dilation, groups=groups, level=level
    )
    images = torch.randn(batch, into * groups, *size)
    expected, squares = (
        functional.conv2d(x, w, None, stride, padding, dilation, groups)
        for x, w in (
            (images.double(), weight.double()),
            (images.double() ** 2, weight.double() ** 2),
        )
    )
    found = layer.forward(images)
    assert found.dtype == torch.float32 and relative(found, expected, squares) <= TOLERANCE


@every_level
def test_sums_are_not_rounded_on_the_way(level):
    """In bfloat16 256 + 1 is 256: two thousand ones would never pass it."""
    layer = SparseConvolution(torch.ones(1, 2049, 1, 1), level=level)
    assert layer.forward(torch.ones(1, 2049, 1, 1)).item() == 2048
    assert SparseLinear(torch.ones(1, 300), level=level).forward(torch.ones(2, 300)).tolist() == [
        [300.0],
        [300.0],
    ]


@every_level
@pytest.mark.parametrize("batch", [1, 17, 33])
def test_odd_batches_and_other_values(level, batch):
    weight, images = with_zeros((24, 16, 3, 3), 0.2), torch.randn(batch, 16, 11, 13)
    layer = SparseConvolution(weight, padding=(1, 1), level=level)
    layer.forward(images)
    layer.update(-layer.values)
    expected = functional.conv2d(images.double(), -weight.double(), padding=1)
    assert relative(layer.forward(images), expected, torch.zeros(1)) <= TOLERANCE


@every_level
@settings(deadline=None, max_examples=100)
@given(lanes, lanes, st.integers(1, 40), sides, sides, st.integers(1, 2))
def test_images_pass_from_any_lanes_to_any_others(
    level, first, second, batch, height, width, times
):
    size = (height * times, width * times)
    images = exact(batch, 2, *size)
    program, found = Program(library.load(level)), torch.full_like(images, 7.0)
    one, two = Buffer(laid(2, size, first), is_shared=True), Buffer(laid(2, size, second))
    program.segment(first.images)
    program.load(0, one)
    program.segment(second.images)
    program.regrid(one, two)
    program.store(two, 1)
    program.run([images, found], batch)
    assert torch.equal(found, images)


@every_level
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Grid(1, 4, 8), Grid(2, 4, 4)),
        (Grid(2, 4, 4), Grid(8, 2, 2)),
        (Grid(1, 4, 8), Grid(32, 1, 1)),
        (Grid(8, 2, 2), Grid(32, 1, 1)),
    ],
)
def test_every_step_th_pixel_of_several_items_is_joined(level, first, second, step):
    images, small = exact(35, 3, 32, 64), (32 // step, 64 // step)
    one, two = Buffer(laid(3, (32, 64), first)), Buffer(laid(3, small, second), is_shared=True)
    three = Buffer(two.layout.with_halo(Halo(1, 0, 2, 1)))
    assert can_sample(one.layout, two.layout, (step, step))
    program, found = Program(library.load(level)), torch.empty(35, 3, *small)
    program.segment(first.images)
    program.load(0, one)
    program.sample(one, two, (step, step))
    program.segment(second.images)
    program.join(two, three, second.images // first.images)
    program.store(three, 1)
    for batch in (5, 35):
        for threads in (1, 3):
            program.run([images[:batch], found.fill_(7.0)[:batch]], batch, threads)
            assert torch.equal(found[:batch], images[:batch, :, ::step, ::step])


@every_level
@settings(deadline=None, max_examples=40)
@given(lanes, st.integers(1, 35), sides, sides, st.integers(1, 4), st.integers(1, 3), st.booleans())
def test_pools_agree(level, grid, batch, height, width, kernel, stride, is_max):
    pad = kernel // 2
    axes = (Axis(height, kernel, stride, pad, pad), Axis(width, kernel, stride, pad, pad))
    if min(axis.output for axis in axes) < 1:
        return
    images = exact(batch, 3, height, width)
    pool = functional.max_pool2d if is_max else functional.avg_pool2d
    expected = pool(images, kernel, stride, pad)
    (in_y, out_y), (in_x, out_x) = axes[0].blocks(grid.rows), axes[1].blocks(grid.columns)
    one = Buffer(Layout(3, (height, width), (in_y, in_x), grid, forward_halo(axes, grid)))
    two = Buffer(Layout(3, (axes[0].output, axes[1].output), (out_y, out_x), grid))
    program, found = Program(library.load(level)), torch.zeros_like(expected)
    program.segment(grid.images)
    program.load(0, one)
    program.halo(one, -np.inf if is_max else 0.0)
    program.pool(one, two, axes, is_max)
    program.store(two, 1)
    program.run([images, found], batch)
    torch.testing.assert_close(found, expected, rtol=0 if is_max else 2**-8, atol=1e-6)


@every_level
@pytest.mark.parametrize("grid", [Grid(1, 4, 8), Grid(2, 4, 4), Grid(32, 1, 1)])
def test_means_lie_in_all_lanes_of_their_image_and_gate_it(level, grid):
    images = exact(5, 3, 7, 9)
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
    torch.testing.assert_close(means, expected, rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(found, images.relu() * means, rtol=2**-8, atol=0)


@every_level
@settings(deadline=None, max_examples=30)
@given(
    lanes, st.integers(1, 35), st.integers(1, 12), st.integers(1, 9), sides, st.integers(1, 3),
    st.integers(1, 3), st.sampled_from(Activation), st.booleans(),
)  # fmt: skip
def test_whole_layers_agree(
    level, grid, batch, into, out, size, kernel, stride, activation, is_dense
):
    """Bias, residual and activation, by the sparse and the dense kernel, in short and long rows."""
    kernel = min(kernel, size)
    axis = Axis(size, kernel, stride, kernel // 2, kernel // 2)
    weight, bias = torch.randn(out, into, kernel, kernel), torch.randn(out)
    images = exact(batch, into, size, size)
    plain = functional.conv2d(images.double(), weight.double(), bias.double(), stride, kernel // 2)
    other = torch.randn(plain.shape)
    expected = FUNCTIONS[activation](plain + other)
    (in_y, out_y), (in_x, out_x) = axis.blocks(grid.rows), axis.blocks(grid.columns)
    source = Layout(into, (size, size), (in_y, in_x), grid, forward_halo((axis, axis), grid))
    target = Layout(out, (axis.output, axis.output), (out_y, out_x), grid)
    one, two, three = Buffer(source), Buffer(target), Buffer(target)
    lib = library.load(level)
    program, found = Program(lib), torch.zeros(plain.shape)
    problem = tuning.Problem(
        weight.numpy(), np.arange(out), 1, (axis, axis), source, target, activation, True
    )
    kind = "dense" if is_dense else "sparse"
    width = lib.dense_width if is_dense else lib.max_width
    choice = tuning.Choice(kind, (1, min(width, out_x)), 1)
    program.segment(grid.images)
    program.load(0, one)
    program.load(1, two)
    program.halo(one)
    tuning.emit(program, problem, choice, one, three, two, bias.numpy())
    program.store(three, 2)
    program.run([images, other, found], batch)
    scale = (plain.abs() + other.abs()).square().sum()
    assert relative(found, expected, scale) <= TOLERANCE


@every_level
@pytest.mark.parametrize("activation", Activation)
def test_activations_agree_over_their_whole_range(level, activation):
    images = torch.cat([torch.linspace(-90, 90, 6400), torch.linspace(-9, 9, 6400)])
    images = (images * 8).round().div(8).reshape(10, 2, 20, 32)
    layout = laid(2, (20, 32), Grid(4, 2, 4))
    program, found = Program(library.load(level)), torch.empty_like(images)
    one, two = Buffer(layout), Buffer(layout)
    program.segment(4)
    program.load(0, one)
    program.pointwise(one, two, activation=activation)
    program.store(two, 1)
    program.run([images, found], 10)
    expected = FUNCTIONS[activation](images.double())
    torch.testing.assert_close(found.double(), expected, rtol=2**-8 + 1e-5, atol=1e-6)


def compiled_in(level: str, model: torch.nn.Module, images: Tensor) -> sparse.Compiled:
    """The engine in that type, whatever would be faster."""
    dtype = library.HALVES[level]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engine.TYPES, torch.bfloat16, (dtype,))
        compiled = sparse.compile(model, images, tune=False, dtype=torch.bfloat16)
    assert compiled.engine == "sparse", compiled.reason
    assert compiled.dtype == dtype and f"in {str(dtype)[6:]}" in compiled.explain()
    return compiled


@pytest.fixture
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path))
    torch.manual_seed(0)


def off(found: Tensor, model: torch.nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return relative(found, model(images).double(), torch.zeros(1))


@every_level
@pytest.mark.parametrize(
    ("name", "pixels", "batch", "kwargs"),
    [
        ("resnet18_cifar", 32, 33, {"channels": [8, 16, 24, 40]}),
        ("resnet50", 64, 1, {"channels": [32, 32, 64, 128]}),
        ("resnet20_cifar", 33, 17, {}),  # its shortcut pads channels: two regions and more
        ("vgg19_cifar", 32, 5, {"channels": [8, 8, 16, 16, 16]}),
        ("mobilenetv2_050", 75, 3, {}),
        ("mobilenetv3_small_050", 64, 3, {}),
        ("densenet121", 64, 1, {}),
    ],
)
def test_networks_agree_with_pytorch(level, name, pixels, batch, kwargs, _own_cache):
    model = lively(timm.create_model(name, **kwargs))
    images = torch.randn(batch, 3, pixels, pixels)
    compiled = compiled_in(level, model, images)
    for others in (images, torch.randn(batch + 3, 3, pixels, pixels)):
        found, pytorch = compiled(others), InBfloat16(model)(others)
        allowed = max(TOLERANCE, 1.5 * off(pytorch, model, others))  # random MobileNets magnify
        assert found.dtype == torch.float32 and off(found, model, others) <= allowed


@every_level
@pytest.mark.parametrize(("batch", "pixels"), [(1, 20), (17, 13), (33, 6)])
def test_awkward_graphs_agree(level, batch, pixels, _own_cache):
    model, images = lively(Awkward(), 0.3), torch.randn(batch, 6, pixels, pixels)
    compiled = compiled_in(level, model, images)
    assert off(compiled(images), model, images) <= TOLERANCE and len(regions(compiled)) == 2


@every_level
def test_threads_change_nothing(level, _own_cache):
    model = lively(timm.create_model("resnet18", channels=[16, 24, 32, 48]))
    before = torch.get_num_threads()
    try:
        for batch in (1, 5):
            images = torch.randn(batch, 3, 64, 64)
            compiled = compiled_in(level, model, images)
            (region,) = regions(compiled)
            torch.set_num_threads(1)
            (alone,) = region(images)
            torch.set_num_threads(3)
            assert torch.equal(region(images)[0], alone)
    finally:
        torch.set_num_threads(before)


@needs_bfloat16
@pytest.mark.parametrize(
    ("seconds", "chosen", "dtype"),
    [
        ((1.0, 2.0, 3.0), "sparse", torch.bfloat16),
        ((2.0, 1.0, 3.0), "sparse", torch.float16),
        ((2.0, 9.0, 1.0), "sparse", torch.float32),
        ((9.0, 7.0, 5.0), "dense", torch.bfloat16),
    ],
)
def test_the_fastest_type_is_taken(seconds, chosen, dtype, monkeypatch, _own_cache):
    """PyTorch in bfloat16 takes 4 s, the engine in bfloat16, float16, float32 what is given."""
    monkeypatch.setattr(library, "levels", lambda _: ["any"])
    monkeypatch.setattr(library, "current", lambda _: library.load("portable"))
    model, images = lively(timm.create_model("resnet20_cifar"), 0.05), torch.randn(2, 3, 32, 32)
    given = iter(seconds)
    timings = lambda *_: tuning.Timing(4.0, next(given))  # noqa: E731
    monkeypatch.setattr(tuning.Tuner, "compare", timings)
    compiled = sparse.compile(model, images, dtype=torch.bfloat16)
    assert (compiled.engine, compiled.dtype) == (chosen, dtype)
    assert f"in {str(dtype)[6:]}" in compiled.explain().splitlines()[0]
    assert f"{4 / min(seconds):.2f} times" in compiled.reason
    assert bool(regions(compiled)) == (chosen == "sparse")
    assert compiled(images).dtype == torch.float32
    assert off(compiled(images), model, images) <= TOLERANCE


@pytest.mark.parametrize("level", [where_there_are(library.FP16)])
def test_where_numbers_outgrow_float16_pytorch_is_called(level, _own_cache):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        net[0].weight[:, 1:] = 0
        net[0].weight[:, 0] = 1000
        net[1].weight[0], net[1].weight[1] = 1e-3, 0
    images = torch.rand(2, 3, 8, 8)
    compiled = compiled_in(level, net, images)
    assert off(compiled(images), net, images) <= TOLERANCE
    large = images * 1000  # a million between the layers
    assert not compiled.module(large).isfinite().all()
    assert off(compiled(large), net, large) <= TOLERANCE


@needs_bfloat16
def test_what_bfloat16_cannot_do_is_refused(monkeypatch):
    layer, images = (
        SparseConvolution(torch.eye(3)[:, :, None, None], level=library.BF16),
        torch.ones(1, 3, 4, 4),
    )
    for call in (
        lambda: layer.input_gradient(images, (4, 4)),
        lambda: layer.value_gradient(images, images),
    ):
        with pytest.raises(UserError, match="has no gradients"):
            call()
    with pytest.raises(UserError, match=r"They are torch.bfloat16"):
        layer.forward(images.bfloat16())
    model = torch.nn.Conv2d(3, 4, 3)
    with pytest.raises(UserError, match=r"compiled for torch.float16"):
        sparse.compile(model, images, dtype=torch.float16)
    monkeypatch.setenv(library.CHOICE, "avx2")
    with pytest.raises(UserError, match="asks for a level that has only float32"):
        sparse.compile(model, images, dtype=torch.bfloat16)


def test_a_cpu_without_bfloat16_is_named(monkeypatch):
    class Lesser:
        @staticmethod
        def sparse_cpu_level() -> int:
            return len(library.LEVELS) - 1

    monkeypatch.setattr(library, "_open", lambda level: Lesser)
    assert library.levels(torch.bfloat16) == []
    assert "no instructions for torch.bfloat16" in (library.available(torch.bfloat16) or "")
    with pytest.raises(UserError, match="no instructions for torch.bfloat16"):
        sparse.compile(torch.nn.Conv2d(3, 4, 3), torch.ones(1, 3, 8, 8), dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"cannot compute in torch\.bfloat16"):
        library.current(torch.bfloat16)


def test_thirty_two_lanes_hold_more_images():
    seven = (Axis(7), Axis(7))
    assert grid_for(seven, 64) == Grid(16, 1, 1) and grid_for(seven, 64, 32) == Grid(32, 1, 1)
    # not (8, 1, 4): tiles of a block would be two wide and four high
    assert grid_for(seven, 16, 32) == Grid(8, 4, 1)
    assert len(grids(32)) == 21 and all(grid.lanes == 32 for grid in grids(32))


def test_packed_weights_are_the_structures_of_the_kernels():
    for packed, structure in ((ENTRY, abi.Entry), (PAIR, abi.Pair)):
        assert packed.itemsize == np.dtype(structure).itemsize
        assert [field[1] for field in packed.fields.values()] == [
            field[1] for field in np.dtype(structure).fields.values()
        ]

"""Single layers against float64, over random shapes and every instruction level."""

from __future__ import annotations

import os
import threading
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sparse_transfer.errors import UserError
from sparse_transfer.sparse import library
from sparse_transfer.sparse.layer import SparseConvolution, SparseLinear
from sparse_transfer.sparse.layout import as_tensor

pytestmark = pytest.mark.kernels
LEVELS = [] if library.available() else library.levels()
pairs = st.tuples


def in_float64(apply, inputs: Tensor, weight: Tensor, gradient: Tensor) -> list[Tensor]:
    """What a layer gives, and its gradients to the inputs and the weight, by autograd."""
    inputs, weight = inputs.double().requires_grad_(), weight.double().requires_grad_()
    given = apply(inputs, weight)
    return [given.detach(), *torch.autograd.grad(given, (inputs, weight), gradient.double())]


def relative(found: Tensor, expected: Tensor, squares: Tensor) -> float:
    """The norm of the difference over the norm of what is expected, or of its terms if greater.

    Where few sums are compared their terms may cancel, and rounding is then large beside the sum
    in any order of addition. `squares` are the same sums of squared terms: the expected square of
    the norm, if signs were random.
    """
    scale = max(float(expected.norm()), float(squares.sum().sqrt()))
    return float((found.double() - expected).norm()) / (scale or 1.0)


def sparse(shape: tuple[int, ...], density: float) -> Tensor:
    return torch.randn(shape) * (torch.rand(shape) < density)


@st.composite
def cases(draw):
    """A convolution that exists: kernel 1–7, stride 1–3, padding, dilation, groups, odd sizes."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3, 8]))
    depthwise = draw(st.booleans())
    per_group = (1, 1) if depthwise else draw(pairs(st.integers(1, 6), st.integers(1, 6)))
    kernel = draw(pairs(st.integers(1, 7), st.integers(1, 7)))
    stride = draw(pairs(st.integers(1, 3), st.integers(1, 3)))
    padding = draw(pairs(st.integers(0, 4), st.integers(0, 4)))
    dilation = draw(pairs(st.integers(1, 3), st.integers(1, 3)))
    least = [
        max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)
    ]
    size = tuple(draw(st.integers(low, low + 30)) for low in least)
    batch = draw(st.sampled_from([1, 2, 3, 7, 16, 17, 65]))
    return (
        groups,
        per_group,
        kernel,
        stride,
        padding,
        dilation,
        size,
        min(batch, 4000 // (size[0] * size[1]) + 1),
    )


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 2**31))
def test_convolutions_agree_with_float64(level, case, density, seed):
    groups, (out, into), kernel, stride, padding, dilation, size, batch = case
    torch.manual_seed(seed)
    weight = sparse((out * groups, into, *kernel), density)
    weight[torch.rand(len(weight)) < 0.2] = 0  # empty rows
    layer = SparseConvolution(
        weight, stride=stride, padding=padding, dilation=dilation, groups=groups, level=level
    )

    def apply(inputs: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(inputs, weight, None, stride, padding, dilation, groups)

    check_against_float64(layer, apply, weight, torch.randn(batch, into * groups, *size))


def check_against_float64(layer: SparseConvolution, apply, weight: Tensor, images: Tensor) -> None:
    gradient = torch.randn(apply(images, weight).shape)
    outputs, inputs, values = zip(
        in_float64(apply, images, weight, gradient),
        in_float64(apply, images**2, weight**2, gradient**2),
        strict=True,
    )
    kept, size = weight != 0, (images.shape[2], images.shape[3])
    assert relative(layer.forward(images), *outputs) <= 1e-6
    assert relative(layer.input_gradient(gradient, size), *inputs) <= 1e-6
    found = layer.value_gradient(images, gradient)
    assert relative(found, *(each[kept] for each in values)) <= 1e-5


@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 65),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.integers(0, 2**31),
)
def test_linear_layers_agree_with_float64(level, batch, into, out, density, seed):
    torch.manual_seed(seed)
    weight, examples = sparse((out, into), density), torch.randn(batch, into)
    layer = SparseLinear(weight, level=level)
    gradient, kept = torch.randn(batch, out), weight != 0
    outputs, inputs, values = zip(
        in_float64(functional.linear, examples, weight, gradient),
        in_float64(functional.linear, examples**2, weight**2, gradient**2),
        strict=True,
    )
    assert relative(layer.forward(examples), *outputs) <= 1e-6
    assert relative(layer.input_gradient(gradient), *inputs) <= 1e-6
    found = layer.value_gradient(examples, gradient)
    assert relative(found, *(each[kept] for each in values)) <= 1e-5


def test_a_linear_layer_takes_tokens():
    layer, tokens = SparseLinear(sparse((5, 6), 0.5)), torch.randn(2, 3, 6)
    assert torch.equal(layer.forward(tokens).reshape(6, 5), layer.forward(tokens.reshape(6, 6)))


def test_values_are_those_of_the_weight_in_its_order_and_can_be_replaced():
    weight = torch.tensor([[0.0, 2.0], [3.0, 0.0]])[:, :, None, None]
    layer, images = SparseConvolution(weight), torch.tensor([[1.0, 10.0]])[:, :, None, None]
    assert layer.values.tolist() == [2, 3]
    assert layer.forward(images).flatten().tolist() == [20, 3]
    layer.update(torch.tensor([5.0, 7.0]))
    assert layer.forward(images).flatten().tolist() == [50, 7]
    assert layer.input_gradient(images, (1, 1)).flatten().tolist() == [70, 5]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("out", "into", "kernel"), [(4, 3, 7), (8, 5, 3), (5, 3, 3), (12, 150, 1)])
def test_layers_without_zeros_agree_with_float64(level, stride, out, into, kernel):
    torch.manual_seed(0)
    weight, pad = torch.randn(out, into, kernel, kernel), kernel // 2
    layer = SparseConvolution(weight, stride=(stride,) * 2, padding=(pad,) * 2, level=level)
    for batch, size in ((1, 23), (5, 12)):
        apply = partial(functional.conv2d, stride=stride, padding=pad)
        check_against_float64(layer, apply, weight, torch.randn(batch, into, size, size))


def test_values_of_a_dense_matrix_can_be_replaced_too():
    weight, images = torch.randn(8, 3, 3, 3), torch.randn(2, 3, 9, 9)
    layer = SparseConvolution(torch.ones_like(weight))
    layer.forward(images)
    layer.update(weight.flatten())
    torch.testing.assert_close(layer.forward(images), functional.conv2d(images, weight))


def test_a_kept_zero_has_a_gradient():
    kept = torch.tensor([[True, False]])[:, :, None, None]
    layer = SparseConvolution(torch.zeros(1, 2, 1, 1), kept=kept)
    ones = torch.ones(1, 2, 3, 3)
    assert layer.value_gradient(ones, ones[:, :1]).tolist() == [9]


def test_images_of_any_strides_are_read_as_they_lie():
    layer, images = SparseConvolution(sparse((4, 3, 3, 3), 0.5)), torch.randn(3, 3, 20, 18)
    expected = layer.forward(images)
    for same in (
        images.to(memory_format=torch.channels_last),
        images.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([images, images], dim=3)[..., :18],
    ):
        assert not same.is_contiguous() and torch.equal(layer.forward(same), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("size", [(8, 8), (28, 28), (56, 56), (3, 112), (16, 17)])
@pytest.mark.parametrize(("batch", "out", "groups", "density"), [
    (1, 9, 1, 0.3), (5, 9, 1, 0.3), (2, 9, 3, 0.3), (2, 8, 1, 1.0), (3, 9, 1, 1.0),
])  # fmt: skip
def test_pointwise_layers_work_on_tensors_as_they_lie(level, size, batch, out, groups, density):
    torch.manual_seed(0)
    weight = sparse((out, 18 // groups, 1, 1), density)
    layer = SparseConvolution(weight, groups=groups, level=level)
    images = torch.randn(batch, 18, *size)
    calls = spied(layer)
    check_against_float64(layer, partial(functional.conv2d, groups=groups), weight, images)
    is_in_place = as_tensor(1, size, layer.library.max_width) is not None
    assert calls == ([1, 1, 1] if is_in_place else [3, 3, 3])  # operations of a plan
    expected, moved = layer.forward(images), torch.empty(images.numel() + 1)[1:].view_as(images)
    assert torch.equal(layer.forward(moved.copy_(images)), expected)  # not aligned: copied
    other = images.to(memory_format=torch.channels_last)  # not contiguous: another plan
    torch.testing.assert_close(layer.forward(other), expected)


def spied(layer: SparseConvolution) -> list[int]:
    """Filled with the number of operations of every plan that the layer makes."""
    lengths: list[int] = []
    for name in ("_forward_plan", "_input_plan", "_value_plan"):

        def made(*arguments, make=getattr(layer, name)):
            plan = make(*arguments)
            lengths.append(len(plan.program))
            return plan

        setattr(layer, name, made)
    return lengths


def test_no_images_are_no_outputs():
    layer = SparseConvolution(sparse((4, 3, 3, 3), 0.5))
    none = torch.randn(0, 3, 8, 8)
    assert layer.forward(none).shape == (0, 4, 6, 6)
    assert not layer.value_gradient(none, torch.randn(0, 4, 6, 6)).any()


def test_not_a_number_passes_and_stays_where_it_belongs():
    layer, images = SparseConvolution(torch.eye(3)[:, :, None, None]), torch.zeros(2, 3, 9, 9)
    images[1, 2, 4, 5] = torch.nan
    found = layer.forward(images).isnan()
    assert found.sum() == 1 and found[1, 2, 4, 5]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads):
    weight = sparse((40, 30, 3, 3), 0.2)
    images, gradient = torch.randn(5, 30, 28, 28), torch.randn(5, 40, 26, 26)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, threads):
            torch.set_num_threads(count)
            layer = SparseConvolution(weight)
            results.append(
                (
                    layer.forward(images),
                    layer.input_gradient(gradient, (28, 28)),
                    layer.value_gradient(images, gradient),
                )
            )
            assert layer.library.handle.sparse_team(count) == count
    finally:
        torch.set_num_threads(before)
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-4)


def test_python_threads_share_a_layer():
    layer, images = SparseConvolution(sparse((8, 8, 3, 3), 0.3)), torch.randn(6, 8, 30, 30)
    expected, found = layer.forward(images), []

    def work() -> None:
        found.extend(layer.forward(images) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80 and all(torch.equal(f, expected) for f in found)


class Computed(torch.utils.data.Dataset):
    """Every example is a convolution by the kernels."""

    def __init__(self) -> None:
        self.layer, self.images = (
            SparseConvolution(sparse((8, 8, 3, 3), 0.3)),
            torch.randn(4, 8, 9, 9),
        )

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return self.layer.forward(self.images[index : index + 1])


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_workers_of_a_loader_compute_after_the_parent_did(two_threads):
    dataset = Computed()
    expected = dataset.layer.forward(dataset.images)  # starts the threads that a fork loses
    loader = torch.utils.data.DataLoader(
        dataset, num_workers=2, timeout=60, multiprocessing_context="fork"
    )
    assert torch.equal(torch.cat([batch[0] for batch in loader]), expected)


def test_a_forked_child_does_not_wait_for_threads_it_has_not(two_threads):
    layer, images = SparseConvolution(sparse((8, 8, 3, 3), 0.3)), torch.randn(4, 8, 30, 30)
    expected = layer.forward(images)
    child = os.fork()
    if child == 0:
        same = torch.get_num_threads() == 2 and torch.equal(layer.forward(images), expected)
        os._exit(0 if same and layer.library.handle.sparse_team(2) == 1 else 1)
    timer = threading.Timer(60, os.kill, (child, 9))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    assert status == 0
    assert layer.library.handle.sparse_team(2) == 2


IMAGES = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (IMAGES.double(), "torch.float64"),
        (IMAGES.bfloat16(), "torch.bfloat16"),
        (IMAGES.to("meta"), "lie on meta"),
        (IMAGES.to_sparse(), "torch.sparse_coo"),
        (IMAGES.to_mkldnn(), "layout is"),
        (IMAGES[0], r"\(3, 8, 8\); it must be \(any, 3, any, any\)"),
        (IMAGES[:, :2], r"\(2, 2, 8, 8\); it must be"),
        (IMAGES.numpy(), "ndarray"),
    ],
)
def test_what_cannot_be_read_is_refused(images, words):
    layer = SparseConvolution(sparse((4, 3, 3, 3), 0.5))
    with pytest.raises(UserError, match=words):
        layer.forward(images)
    with pytest.raises(UserError, match=words):
        layer.value_gradient(images, torch.zeros(2, 4, 6, 6))


def test_what_does_not_belong_together_is_refused():
    layer = SparseConvolution(sparse((4, 3, 3, 3), 0.5))
    with pytest.raises(UserError, match="does not fit into images of 2 × 2"):
        layer.forward(torch.zeros(1, 3, 2, 2))
    with pytest.raises(UserError, match=r"must be \(any, 4, 6, 6\)"):
        layer.input_gradient(torch.zeros(1, 4, 5, 6), (8, 8))
    with pytest.raises(UserError, match="2 images and 1 gradients"):
        layer.value_gradient(IMAGES, torch.zeros(1, 4, 6, 6))
    with pytest.raises(UserError, match="these values"):
        layer.update(torch.zeros(len(layer.values) + 1))
    with pytest.raises(UserError, match="stride"):
        SparseConvolution(torch.zeros(4, 3, 3, 3), stride=(0, 1))
    with pytest.raises(UserError, match="3 groups"):
        SparseConvolution(torch.zeros(4, 3, 3, 3), groups=3)
    with pytest.raises(UserError, match="mask does not fit"):
        SparseConvolution(torch.zeros(4, 3, 3, 3), kept=torch.ones(4, 3, 3, dtype=torch.bool))

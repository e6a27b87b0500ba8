"""Trainable convolutions of non-zeros, against the dense convolution with its mask."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparse_transfer.errors import UserError
from sparse_transfer.sparse.drop_in import SparseConv2d, obstacle

pytestmark = pytest.mark.kernels


def pruned(density: float = 0.3, **settings) -> tuple[nn.Conv2d, Tensor]:
    """A convolution with zeros, and its mask."""
    torch.manual_seed(3)
    conv = nn.Conv2d(6, 8, 3, **{"padding": 1, **settings})
    kept = torch.rand(conv.weight.shape) < density
    with torch.no_grad():
        conv.weight.mul_(kept)
    return conv, kept


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected).norm() / expected.detach().norm())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"groups": 2},
        {"stride": (2, 1), "padding": (0, 2)},
    ],
)
def test_outputs_and_gradients_are_those_of_the_masked_convolution_in_float64(settings, bias):
    conv, kept = pruned(bias=bias, **settings)
    layer = SparseConv2d.from_dense(conv, kept)
    images = torch.randn(5, 6, 11, 9, requires_grad=True)
    exact, exact_images = copy.deepcopy(conv).double(), images.detach().double().requires_grad_()
    expected, found = exact(exact_images), layer(images)
    assert relative(found, expected) <= 1e-6
    expected.sin().sum().backward()
    found.sin().sum().backward()
    assert relative(images.grad, exact_images.grad) <= 1e-6
    assert relative(layer.values.grad, exact.weight.grad[kept]) <= 1e-5
    if bias:
        assert relative(layer.bias.grad, exact.bias.grad) <= 1e-6


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_the_weight_comes_back_bit_for_bit(density):
    conv, kept = pruned(density)
    layer = SparseConv2d.from_dense(conv, kept)
    assert layer.values.shape == (int(kept.sum()),)
    assert torch.equal(layer.dense_weight(), conv.weight)
    again = layer.to_dense()
    assert torch.equal(again.weight, conv.weight)
    assert repr(again) == repr(conv)
    images = torch.randn(2, 6, 8, 8)
    layer(images).sum().backward()
    assert layer.values.grad.shape == layer.values.shape
    torch.testing.assert_close(layer(images), conv(images), atol=1e-5, rtol=1e-5)


def test_a_step_of_the_optimizer_is_seen_and_its_state_is_of_the_non_zeros():
    conv, kept = pruned()
    layer, images = SparseConv2d.from_dense(conv, kept), torch.randn(2, 6, 8, 8)
    before = layer(images)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
    before.square().sum().backward()
    optimizer.step()
    state = optimizer.state[layer.values]["momentum_buffer"]
    assert state.shape == layer.values.shape
    after = layer(images)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, layer.to_dense()(images), atol=1e-4, rtol=1e-5)
    assert not layer.to_dense().weight[~kept].any()


def test_gradients_belong_to_the_values_of_their_own_forward():
    conv, kept = pruned(bias=False)
    layer, images = SparseConv2d.from_dense(conv, kept), torch.randn(2, 6, 8, 8).requires_grad_()
    first = layer(images)
    twice = torch.func.functional_call(layer, {"values": layer.values * 2}, (images,))
    (gradient,) = torch.autograd.grad(first.sum(), images)
    (doubled,) = torch.autograd.grad(twice.sum(), images)
    torch.testing.assert_close(doubled, 2 * gradient)
    output = layer(images)
    with torch.no_grad():
        layer.values.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_copies_and_states_are_independent():
    conv, kept = pruned()
    layer, images = SparseConv2d.from_dense(conv, kept), torch.randn(2, 6, 8, 8)
    expected = layer(images)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.values.zero_()
    assert not torch.allclose(other(images), expected)
    assert torch.equal(layer(images), expected)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(images), expected)
    assert list(layer.state_dict()) == ["values", "bias", "kept"]


def test_a_frozen_layer_passes_the_gradient_on():
    conv, kept = pruned()
    conv.requires_grad_(False)
    layer = SparseConv2d.from_dense(conv, kept)
    images = torch.randn(2, 6, 8, 8, requires_grad=True)
    layer(images).sum().backward()
    assert layer.values.grad is None
    assert images.grad is not None


def test_gradients_cannot_be_differentiated_again():
    conv, kept = pruned()
    images = torch.randn(2, 6, 8, 8, requires_grad=True)
    output = SparseConv2d.from_dense(conv, kept)(images)
    (gradient,) = torch.autograd.grad(output.square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_what_the_kernels_do_not_compute_is_refused_with_the_reason():
    conv, kept = pruned(padding_mode="circular")
    with pytest.raises(UserError, match="circular"):
        SparseConv2d.from_dense(conv, kept)
    plain, kept = pruned()
    with pytest.raises(UserError, match="mask does not fit"):
        SparseConv2d.from_dense(plain, kept[:4])
    with pytest.raises(UserError, match="float64"):
        SparseConv2d.from_dense(plain, kept)(torch.randn(1, 6, 8, 8, dtype=torch.float64))
    assert "bfloat16" in (obstacle(pruned()[0].bfloat16()) or "")
    assert "differs between the sides" in (obstacle(nn.Conv2d(2, 2, 2, padding="same")) or "")

    class Same(nn.Conv2d):
        """As timm has one, which pads by itself."""

    assert "Same" in (obstacle(Same(2, 2, 3)) or "")
    hooked = pruned()[0]
    hooked.register_forward_hook(lambda *_: None)
    assert "hooks" in (obstacle(hooked) or "")

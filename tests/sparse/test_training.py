"""Training on the non-zeros alone, against the dense training with its mask."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from sparse_transfer import sparse
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.sparse import library
from sparse_transfer.sparse.drop_in import SparseConv2d

pytestmark = pytest.mark.kernels


def pruned(density: float = 0.2, name: str = "resnet10t", **settings) -> tuple[nn.Module, Masks]:
    """A network and masks on all convolutions and its classifier: one layer dead, one without
    zeros, one about half zero."""
    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=4, **settings)
    shapes = {n: p.shape for n, p in model.named_parameters() if p.ndim in (2, 4)}
    kept = {name: torch.rand(shape) < density for name, shape in shapes.items()}
    first, second, third, *_ = [n for n in kept if "layer2" in n and kept[n].ndim == 4]
    kept[first].zero_()
    kept[second].fill_(True)
    kept[third] = torch.rand(kept[third].shape) < 0.6
    masks = Masks(kept)
    masks.apply(model.named_parameters())
    return model, masks


def smooth(model: nn.Module) -> nn.Module:
    """Without kinks, at which rounding is no longer small."""
    for path, module in list(model.named_modules()):
        parent, _, child = path.rpartition(".")
        if isinstance(module, nn.ReLU):
            setattr(model.get_submodule(parent), child, nn.SiLU())
        elif isinstance(module, nn.MaxPool2d):
            pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            setattr(model.get_submodule(parent), child, pool)
    return model


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def dense_gradients(model: sparse.TrainingModel) -> dict[str, Tensor]:
    """Gradients by the names of the plain network, zero where there is no weight."""
    found = {}
    for name, parameter in model.network.named_parameters():
        name = name.replace(".values", ".weight")
        name = name.replace(".parametrizations.weight.original", ".weight")
        assert parameter.grad is not None
        if name in model.masks and parameter.ndim == 1:
            whole = torch.zeros(model.masks[name].shape)
            found[name] = whole.masked_scatter(model.masks[name], parameter.grad)
        else:
            found[name] = parameter.grad
    return found


def test_gradients_and_running_statistics_are_those_of_the_dense_network_in_float64():
    model, masks = pruned()
    smooth(model).train()
    exact = copy.deepcopy(model).double()
    images = torch.randn(5, 3, 48, 48)
    converted = sparse.convert_for_training(model, masks, images)
    expected, found = exact(images.double()), converted(images)
    assert relative(found, expected) <= 1e-5
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = dense_gradients(converted)
    assert set(gradients) == {name for name, _ in exact.named_parameters()}
    errors = {}
    for name, parameter in exact.named_parameters():
        wanted = parameter.grad * masks[name] if name in masks else parameter.grad
        if wanted.any():
            errors[name] = relative(gradients[name], wanted)
        else:
            assert not gradients[name].any()
    # a dead layer makes the batch norm behind it divide by almost nothing; the rest is smooth
    assert max(errors.values()) <= 1e-4
    buffers = dict(exact.named_buffers())
    for name, buffer in converted.to_dense().named_buffers():
        torch.testing.assert_close(buffer, buffers[name].to(buffer.dtype), rtol=1e-5, atol=1e-6)


def test_the_plain_network_comes_back_exactly():
    model, masks = pruned()
    model.eval()
    model.get_submodule("layer1").train()
    model.get_parameter("layer3.0.conv1.weight").requires_grad_(False)
    model.get_parameter("layer2.0.conv1.weight").requires_grad_(False)
    model.get_parameter("fc.weight").requires_grad_(False)
    converted = sparse.convert_for_training(model, masks)
    plain = converted.to_dense()
    assert repr(plain) == repr(model)
    named = dict(plain.named_parameters())
    assert list(named) == [name for name, _ in model.named_parameters()]
    assert list(plain.state_dict()) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor), name
    for name, parameter in model.named_parameters():
        assert named[name].requires_grad == parameter.requires_grad, name
    modes = {name: module.training for name, module in plain.named_modules()}
    assert modes == {name: module.training for name, module in model.named_modules()}
    shared = {p.data_ptr() for p in converted.parameters() if p.numel()}
    assert not shared & {p.data_ptr() for p in plain.parameters()}


def test_the_network_itself_is_left_alone():
    model, masks = pruned()
    before = copy.deepcopy(model.state_dict())
    converted = sparse.convert_for_training(model, masks)
    with torch.no_grad():
        for parameter in converted.parameters():
            parameter.add_(1)
    assert not any(isinstance(module, SparseConv2d) for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def step_bytes(density: float | None) -> tuple[int, int]:
    """Bytes of parameters, gradients and momentum after a step, and the number of parameters."""
    model, masks = pruned()
    if density is not None:
        shapes = {name: model.get_parameter(name).shape for name in masks}
        masks = Masks({name: torch.rand(shape) < density for name, shape in shapes.items()})
        masks.apply(model.named_parameters())
        model = sparse.convert_for_training(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    parameters = list(model.parameters())
    momenta = [optimizer.state[p]["momentum_buffer"] for p in parameters]
    tensors = [*parameters, *(p.grad for p in parameters), *momenta]
    return sum(t.numel() * t.element_size() for t in tensors), sum(p.numel() for p in parameters)


def test_memory_of_parameters_gradients_and_momentum_shrinks_with_the_density():
    dense, parameters = step_bytes(None)
    for density in (0.2, 0.05):
        found, count = step_bytes(density)
        assert found == 12 * count
        masked = sum(mask.numel() for mask in pruned()[1].values())
        expected = 12 * (parameters - masked + density * masked)
        assert abs(found - expected) < 0.01 * dense
        assert found < 1.1 * density * dense + 12 * (parameters - masked)


def trained(model: nn.Module, masks: Masks | None, steps: int, keep=None) -> list[float]:
    """Losses of some steps with momentum and decay; `keep` holds the masks of a dense network."""
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9, weight_decay=5e-4)
    losses = []
    model.train()
    for _ in range(steps):
        images = torch.randn(8, 3, 32, 32, generator=generator)
        labels = (images[:, 0].mean((1, 2)) > 0).long()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        if keep is not None:
            for name, mask in keep.items():
                model.get_parameter(name).grad.mul_(mask)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_some_steps_agree_with_the_masked_network_and_keep_every_zero():
    model, masks = pruned()
    converted = sparse.convert_for_training(smooth(model), masks)
    found = trained(converted, None, 8)
    expected = trained(model, None, 8, keep=masks)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    plain = converted.to_dense()
    for name, mask in masks.items():
        weight = plain.get_parameter(name)
        assert not weight[~mask].any()
        if name in ("layer3.0.conv1.weight", "fc.weight"):
            assert relative(weight, model.get_parameter(name)) <= 1e-3


def test_the_state_is_saved_and_goes_on_bit_for_bit():
    model, masks = pruned()
    one, other = (sparse.convert_for_training(model, masks) for _ in range(2))
    trained(one, None, 2)
    other.load_state_dict(one.state_dict())
    assert list(other.state_dict()) == list(one.state_dict())
    assert trained(one, None, 2) == trained(other, None, 2)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_copy_and_another_memory_format_train_alike():
    model, masks = pruned()
    one = sparse.convert_for_training(model, masks)
    other = copy.deepcopy(one)
    expected = trained(one, None, 2)
    assert trained(other, None, 2) == expected
    last = sparse.convert_for_training(model, masks).to(memory_format=torch.channels_last)
    torch.testing.assert_close(trained(last, None, 2), expected, rtol=1e-4, atol=1e-4)


def test_parameters_are_the_non_zeros_and_unknown_layers_stay():
    model, masks = pruned()
    network = sparse.convert_for_training(model, masks).network
    convolutions = {n: m for n, m in network.named_modules() if isinstance(m, SparseConv2d)}
    assert "layer3.0.conv1" in convolutions
    counts = masks.counts()
    for name, layer in convolutions.items():
        assert layer.values.numel() == counts[f"{name}.weight"] <= 0.5 * layer.kept.numel()
    held = network.get_parameter("fc.parametrizations.weight.original")
    assert held.shape == (counts["fc.weight"],)
    full = [n.removesuffix(".weight") for n, m in masks.items() if m.all()]
    assert full and all(type(network.get_submodule(n)) is nn.Conv2d for n in full)


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "vit_tiny_patch16_224", "tf_mobilenetv3_small_075"]
)
def test_other_networks_train_too(name):
    settings = {"img_size": 32} if name.startswith("vit") else {}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, **settings)
    masks = Masks({n: torch.rand(p.shape) < 0.2 for n, p in model.named_parameters() if p.ndim > 1})
    masks.apply(model.named_parameters())
    converted, images = sparse.convert_for_training(model, masks), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(converted.eval()(images), model.eval()(images), rtol=1e-3, atol=1e-4)
    before = converted.to_dense().state_dict()
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    trained(converted, None, 1)
    after = converted.to_dense().state_dict()
    assert all(not after[name][~mask].any() for name, mask in masks.items())
    assert any(not torch.equal(after[name], before[name]) for name in masks)


def test_what_does_not_fit_is_refused_with_what_is_wrong(monkeypatch):
    model, masks = pruned()

    def refused(words: str, model=model, masks=masks, **settings):
        with pytest.raises(UserError, match=words):
            sparse.convert_for_training(model, masks, **settings)

    name = "layer3.0.conv1.weight"
    refused("no parameter of that name", masks={"layer9.weight": masks[name]})
    refused("does not fit", masks={name: masks[name][:3]})
    refused("does not fit", masks={name: masks[name].float()})
    refused("are not zero", masks={name: torch.zeros_like(masks[name])})
    refused("float64", model=copy.deepcopy(model).double())
    refused("meta", model=copy.deepcopy(model).to("meta"))
    refused("cannot use these images", example=torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    tied = copy.deepcopy(model)
    tied.register_parameter("again", tied.get_parameter(name))
    refused("one tensor", model=tied)
    shared = nn.Sequential(conv := nn.Conv2d(3, 3, 3), conv)
    refused("one tensor", model=shared, masks={"0.weight": torch.ones(3, 3, 3, 3) > 0})
    again = sparse.convert_for_training(model, masks).network
    refused("parametrization", model=again, masks={})
    monkeypatch.setattr(library, "available", lambda: "no kernels")
    refused("no kernels")


def test_a_first_call_in_inference_mode_does_no_harm():
    model, masks = pruned()
    images = torch.randn(4, 3, 32, 32)
    first, second = (sparse.convert_for_training(model.train(), masks) for _ in range(2))
    with torch.inference_mode():
        first(images)
    expected = trained(second, None, 2)[0]  # its lanes are laid out for other batches
    assert trained(first, None, 2)[0] == pytest.approx(expected, rel=1e-5)


def test_a_hook_that_comes_later_is_called():
    model, masks = pruned()
    images = torch.randn(2, 3, 32, 32)
    converted = sparse.convert_for_training(model.train(), masks, images)
    converted(images)
    seen = []
    handle = converted.network.get_submodule("layer1").register_forward_hook(
        lambda module, inputs, output: seen.append(output.shape)
    )
    converted.prepare(images)
    seen.clear()  # the shapes of a network are found by running it
    converted(images)
    assert len(seen) == 1
    handle.remove()
    converted(images)
    assert len(seen) == 1


def test_a_network_without_regions_says_why():
    class Iterating(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack(list(x))

    model, masks = pruned()
    images = torch.randn(2, 3, 32, 32)
    assert sparse.convert_for_training(model, masks, images).note is None
    model.act1 = Iterating()
    note = sparse.convert_for_training(model, masks, images).note
    assert note is not None and "cannot trace" in note

"""What every backend must do: be available or say why, agree with the model, leave it alone."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from sparse_transfer import models, plugins  # noqa: F401 - registers the small variants
from sparse_transfer.backends import device, needs_images, tolerance
from sparse_transfer.latency import agreement

BACKENDS = plugins.names("backend")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A small net with lively batch norms and 90 % zeros, in train mode."""
    generator = torch.Generator().manual_seed(0)
    net = timm.create_model("resnet20_cifar", channels=[8, 8, 16])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        elif isinstance(module, nn.Conv2d):
            keep = torch.rand(module.weight.shape, generator=generator) < 0.1
            module.weight.data.mul_(keep)
    return net.train()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def backend(name: str):
    made = plugins.load("backend", name)()
    reason = made.available()
    if reason is not None:
        pytest.skip(reason)
    return made


@pytest.mark.parametrize("name", BACKENDS)
def test_it_says_its_name_and_what_zeros_are_to_it(name):
    made = plugins.load("backend", name)()
    assert made.name == name
    assert made.uses_zeros in ("does not use zeros", "uses zeros")
    assert plugins.summary("backend", name).endswith(".")


@pytest.mark.parametrize("name", BACKENDS)
def test_it_is_available_or_says_why_not(name):
    reason = plugins.load("backend", name)().available()
    assert reason is None or len(reason) > 10


@pytest.mark.parametrize("name", BACKENDS)
def test_it_agrees_with_the_model_and_leaves_it_alone(name, model, images):
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    made = backend(name)
    there = images.to(device(made))
    run = made.prepare(model, there, *([images] if needs_images(made) else []))
    output = run(there)
    assert model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    model.eval()
    with torch.no_grad():
        expected, others = model(images), model(-images)
    model.train()
    assert output.shape == expected.shape and output.dtype == torch.float32
    agreement(name, output, expected, tolerance(made))
    agreement(name, run(-there), others, tolerance(made))
    assert run.note

"""What the tests of structured pruning share: a pruner, a whole run, and narrow networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

import sparse_transfer.models  # noqa: F401 - registers our small networks with timm
from sparse_transfer import plugins
from sparse_transfer.pruning.structured.driver import StructuredPruner
from tests.pruning.training import CLASSES, OPTIMIZERS, batch, small_cnn, tiny_mobilenet, train

METHODS = ("progressive", "slimming", "structured")
# narrow networks: a method's defaults would keep 8 channels of each layer
OPTIONS: dict[str, dict[str, Any]] = {
    "progressive": {"min_channels": 1, "updates": 8},
    "slimming": {},
    "structured": {},
}


def _timm(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=CLASSES, **kwargs)

    return make


# name → (maker, image size)
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "small_cnn": (small_cnn, 8),
    "tiny_mobilenet": (tiny_mobilenet, 16),
    "resnet18_cifar": (_timm("resnet18_cifar", channels=[6, 8, 10, 12]), 32),
    "test_resnet": (_timm("test_resnet"), 32),
    "mobilenetv2_035": (_timm("mobilenetv2_035"), 32),
    "vgg19_cifar": (_timm("vgg19_cifar", channels=[6, 6, 8, 8, 10]), 32),
    "resnet20_cifar": (_timm("resnet20_cifar", channels=[4, 8, 16]), 32),
    "test_vit": (_timm("test_vit", img_size=32), 32),
}


def model_of(name: str) -> tuple[nn.Module, int]:
    """A network with distinct batch-norm statistics, and its image size."""
    make, size = MODELS[name]
    model = make()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    assert tensor is not None
                    tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    assert tensor is not None
                    tensor.normal_(0.0, 0.3, generator=generator)
    return model, size


def make_pruner(
    model: nn.Module,
    name: str,
    sparsity: float,
    steps: int,
    *,
    size: int = 8,
    keep_dense: tuple[str, ...] = (),
    seed: int = 0,
    **options: Any,
) -> StructuredPruner:
    """The driver with a method of the given name."""
    method = plugins.load("pruner", name)
    return StructuredPruner(
        model,
        method=method(method.Options(**(OPTIONS[name] | options))),
        sparsity=sparsity,
        keep_dense=keep_dense,
        image_size=size,
        total_steps=steps,
        steps_per_epoch=5,
        seed=seed,
        examples=lambda step, number, count: batch(step, number, size),
        learning_rate=lambda step: 0.1,
    )


def prune(
    model: nn.Module,
    name: str,
    sparsity: float,
    steps: int,
    *,
    optimizer: str = "sgd",
    size: int = 8,
    after_step: Callable[[int], None] = lambda step: None,
    **pruner_options: Any,
) -> StructuredPruner:
    """A whole pruning run with default training; returns the finished pruner."""
    pruner = make_pruner(model, name, sparsity, steps, size=size, **pruner_options)
    bound = OPTIMIZERS[optimizer](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, steps + 1), size=size, after_step=after_step)  # type: ignore[arg-type]
    pruner.finish()
    return pruner

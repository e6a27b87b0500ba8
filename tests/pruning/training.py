"""Small models, optimizers and a training loop for the tests of pruning.

The loop does what the real one does around a pruner and nothing else; its data are a function of
the step, so that a resumed run sees what the uninterrupted one saw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparse_transfer import plugins
from sparse_transfer.pruning.driver import FixedMask, Pruner
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks

CLASSES = 5


def small_cnn(seed: int = 0) -> nn.Module:
    """Two convolutions with batch norm and a classifier, 3x8x8 images."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(108, CLASSES),
    )


def tiny_mobilenet(seed: int = 0) -> nn.Module:
    """A stem and two inverted-residual blocks without the shortcut, as in MobileNetV2."""
    torch.manual_seed(seed)

    def block(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(
        stem, nn.BatchNorm2d(8), block(8, 16, 8), block(8, 16, 12), pool, nn.Linear(12, CLASSES)
    )


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=1e-1),
}


def make_pruner(
    model: nn.Module,
    name: str,
    sparsity: float,
    steps: int,
    *,
    keep_dense: tuple[str, ...] = (),
    seed: int = 0,
    masks: Masks | None = None,
    size: int = 8,
    **options: Any,
) -> Pruner:
    """The driver with a method of the given name; images of `size` pixels are there to look at."""
    method = plugins.load("pruner", name)
    return Pruner(
        model,
        method=method(method.Options(**options)),
        sparsity=sparsity,
        layers=prunable(model, keep_dense),
        total_steps=steps,
        steps_per_epoch=5,
        seed=seed,
        masks=masks,
        examples=lambda step, number, count: examples(step, number, count, size),
        image_size=size,
    )


def examples(step: int, number: int, count: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """`count` random images and labels, a function of the arguments."""
    generator = torch.Generator().manual_seed(10**6 + 1000 * step + number)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def batch(step: int, part: int, size: int) -> tuple[Tensor, Tensor]:
    """Four random images and labels, a function of the arguments."""
    generator = torch.Generator().manual_seed(1000 * step + part)
    images = torch.randn(4, 3, size, size, generator=generator)
    return images, torch.randint(CLASSES, (4,), generator=generator)


def train(
    model: nn.Module,
    pruner: Pruner | FixedMask | None,
    optimizer: torch.optim.Optimizer,
    steps: range,
    *,
    size: int = 8,
    clip: float | None = None,
    accumulation: int = 1,
    bf16: bool = False,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Optimizer steps `steps` (from 1); with no pruner it is plain training."""
    model.train()
    for step in steps:
        optimizer.zero_grad()
        for part in range(accumulation):
            images, labels = batch(step, part, size)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = nn.functional.cross_entropy(model(images), labels)
            is_last = part == accumulation - 1
            penalty = pruner.penalty() if pruner is not None and is_last else None
            (loss if penalty is None else loss + penalty).backward()
        if pruner is not None:
            pruner.after_backward(step)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if pruner is None or not pruner.skips_optimizer(step):
            optimizer.step()
        if pruner is not None:
            pruner.after_step(step)
        after_step(step)
    if pruner is not None:
        pruner.end_epoch()


def prune(
    model: nn.Module,
    name: str,
    sparsity: float,
    steps: int,
    *,
    optimizer: str = "sgd",
    **pruner_options: Any,
) -> Pruner:
    """A whole pruning run with default training; returns the finished pruner."""
    pruner = make_pruner(model, name, sparsity, steps, **pruner_options)
    bound = OPTIMIZERS[optimizer](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, steps + 1))
    pruner.finish()
    return pruner


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two copies agree in every bit."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)

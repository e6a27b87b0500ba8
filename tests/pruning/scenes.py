"""What an event sees, made by hand: for tests that call a method without the driver."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Change, Scene, Target
from tests.pruning.training import batch

Examples = Callable[[int, int], tuple[Tensor, Tensor]]


def no_images(number: int, count: int) -> tuple[Tensor, Tensor]:
    raise AssertionError("this method asked for images")


def examples_of(size: int, dtype: torch.dtype = torch.float32) -> Examples:
    """`count` (a multiple of four) or fewer random images, a function of the number."""

    def examples(number: int, count: int) -> tuple[Tensor, Tensor]:
        parts = [batch(number, part, size) for part in range(-(-count // 4))]
        images, labels = (torch.cat(tensors)[:count] for tensors in zip(*parts, strict=True))
        return images.to(dtype), labels

    return examples


def scene_of(
    model: nn.Module,
    examples: Examples = no_images,
    *,
    masks: Masks | None = None,
    image_size: int | None = None,
) -> Scene:
    """The model as it is (in eval mode), every layer prunable."""
    model.eval()
    layers = prunable(model)
    return Scene(
        weights=layers,
        masks=masks or Masks.ones(layers),
        gradients={},
        forward_weights={},
        generator=torch.Generator().manual_seed(0),
        memory={},
        model=model,
        examples=examples,
        image_size=image_size,
    )


def target_of(scene: Scene, sparsity: float, total_steps: int = 0) -> Target:
    """The target that goes with a scene."""
    return Target(
        sparsity=sparsity,
        active=scene.masks.kept(),
        total_steps=total_steps,
        shapes={name: tuple(mask.shape) for name, mask in scene.masks.items()},
    )


def one_shot(method: AbstractMethod, scene: Scene, sparsity: float) -> Change:
    """What the method's only event, before training, does."""
    ((step, event),) = method.schedule(target_of(scene, sparsity)).items()
    assert step == 0 and event.sparsity == sparsity and "model" in event.needs
    chosen = event.choose(scene)
    return chosen if isinstance(chosen, Change) else Change(chosen)

"""Make the driver of a pruning run: of masks, or of channels that are removed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sparse_transfer import inputs, loop, plan
from sparse_transfer.pruning.driver import Pruner, StepExamples
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod
from sparse_transfer.pruning.structured.driver import StructuredPruner, check_unmasked
from sparse_transfer.pruning.structured.method import AbstractStructuredMethod
from sparse_transfer.stages.context import Context


def make(
    method: AbstractMethod[Any] | AbstractStructuredMethod[Any],
    spec: plan.PruneSpec,
    model: nn.Module,
    given: Masks | None,
    images: inputs.AugmentedImages | None,
    total_steps: int,
    steps_per_epoch: int,
    context: Context,
) -> Pruner | StructuredPruner:
    """The driver of `method`, holding the mask that the model came with.

    Args:
        given: that mask; None for a dense model.
        images: what methods may look at; None without images.

    Raises:
        UserError: the method cannot prune this model in this training.
    """
    examples = _examples(images, context.accelerator.device) if images is not None else None
    recipe = spec.recipe
    if isinstance(method, AbstractStructuredMethod):
        check_unmasked(method.name, given is not None)
        return StructuredPruner(
            model,
            method=method,
            sparsity=spec.sparsity,
            keep_dense=recipe.keep_dense,
            image_size=spec.preprocess.image_size,
            total_steps=total_steps,
            steps_per_epoch=steps_per_epoch,
            seed=spec.seed,
            examples=examples,
            learning_rate=lambda step: loop.learning_rate(
                step, total_steps, steps_per_epoch, recipe
            ),
        )
    layers = (
        prunable(model, recipe.keep_dense)
        if given is None
        else {name: model.get_parameter(name) for name in given}
    )
    return Pruner(
        model,
        method=method,
        sparsity=spec.sparsity,
        layers=layers,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        seed=spec.seed,
        masks=given,
        examples=examples,
        image_size=spec.preprocess.image_size,
    )


def _examples(images: inputs.AugmentedImages, device: torch.device) -> StepExamples:
    def examples(step: int, number: int, count: int) -> tuple[Tensor, Tensor]:
        shown, labels = images.examples(step, number, count)
        return shown.to(device), labels.to(device)

    return examples

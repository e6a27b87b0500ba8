"""Batch-norm statistics recomputed on training images, as after a large one-shot pruning.

A pruned network's activations have other means and variances than the ones that its batch norms
remember. The cumulative average over a few hundred images restores them without any training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from sparse_transfer.errors import UserError
from sparse_transfer.images import Images, batch

if TYPE_CHECKING:
    from accelerate import Accelerator

_BATCH = 50  # statistics are averaged over batches, each weighted alike, so equal batches matter


def has_statistics(model: nn.Module) -> bool:
    """Whether any batch norm of the model keeps running statistics."""
    return any(True for _ in _norms(model))


def recalibrate(
    model: nn.Module,
    calibration: Images,
    *,
    count: int,
    seed: int,
    accelerator: Accelerator,
) -> None:
    """Replace all running means and variances by those of `count` training images.

    Every process computes the same statistics on the same images. The images are a random subset
    drawn from `seed`, used without augmentation; all weights stay as they are.

    Raises:
        UserError: there are fewer images than asked for.
    """
    if count > len(calibration):
        raise UserError(
            f"Batch-norm recalibration asks for {count} images.",
            f"The training part has {len(calibration)}.",
            f"Set recalibrate_bn.images to at most {len(calibration)}.",
        )
    chosen = (
        torch.randperm(len(calibration), generator=torch.Generator().manual_seed(seed))[:count]
        .sort()
        .values
    )
    norms = list(_norms(model))
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.no_grad():
        for rows in chosen.tensor_split(max(1, count // _BATCH)):
            images = batch(calibration, rows.numpy())
            model(images.to(accelerator.device, memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)


def _norms(model: nn.Module):  # noqa: ANN202 - batch norms with running statistics
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            yield module

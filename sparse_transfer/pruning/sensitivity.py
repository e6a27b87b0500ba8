"""What methods that prune from data share: gradients at chosen weights, and removal in rounds.

The gradients are taken through a functional call, so that the network, its gradients and its
running statistics stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import Allocation
from sparse_transfer.pruning.criteria import Scores, Stage, remove
from sparse_transfer.pruning.masks import Masks, diverged

Statistics = Literal["batch", "running"]


def leaves(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same memory, as tensors that gradients can be asked for, frozen layers included."""
    return {name: weight.detach().requires_grad_() for name, weight in weights.items()}


def loss_of(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    statistics: Statistics = "running",
    temperature: float = 1.0,
) -> Tensor:
    """Mean cross-entropy of the model with `weights` in the place of its own.

    Args:
        model: in eval mode.
        weights: by parameter name; what is not named is the model's.
        images: (b, 3, h, w).
        labels: (b,) int.
        statistics: whether batch norm normalises by the batch, as in training (the running
            statistics do not move), or by the running statistics.
        temperature: divides the logits.
    """
    given = dict(weights)
    if statistics == "batch":
        given |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    with _batch_statistics(model) if statistics == "batch" else nullcontext():
        logits = functional_call(model, given, (images,))
    return nn.functional.cross_entropy(logits / temperature, labels)


def gradients_of(
    value: Tensor, weights: Mapping[str, Tensor], *, create_graph: bool = False
) -> dict[str, Tensor]:
    """Gradients of a scalar by name.

    Raises:
        UserError: the value does not depend on one of the weights.
    """
    found = torch.autograd.grad(
        value, list(weights.values()), create_graph=create_graph, allow_unused=True
    )
    gradients: dict[str, Tensor] = {}
    for name, gradient in zip(weights, found, strict=True):
        if gradient is None:
            raise UserError(
                f"The gradient of '{name}' is needed, and there is none.",
                "The layer takes no part in the output.",
                "Add it to `keep_dense`, or use a method without gradients, such as gmp.",
            )
        gradients[name] = gradient
    return gradients


def hessian_product(
    value: Tensor, weights: Mapping[str, Tensor], vector: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The Hessian of a scalar with respect to the weights, times a vector, by name.

    A second backward pass, through the inner product of the gradient and the vector.
    """
    gradients = gradients_of(value, weights, create_graph=True)
    products = [(vector[name] * gradient).sum() for name, gradient in gradients.items()]
    return gradients_of(torch.stack(products).sum(), weights)


def remove_in_rounds(
    masks: Masks,
    sparsity: float,
    rounds: int,
    allocation: Allocation,
    score: Callable[[Masks, int], Scores],
) -> Masks:
    """Remove the same share of the active weights in each round, scoring them anew.

    After round k of n the density is d0 (d / d0)^(k / n); the last one is exactly the target.

    Args:
        rounds: n, at least 1.
        score: (masks, round from 0) → scores of the network under these masks.

    Raises:
        UserError: a score is not finite.
    """
    start, end = 1.0 - masks.sparsity(), 1.0 - sparsity
    for k in range(1, rounds + 1):
        scores = score(masks, k - 1)
        check_finite(scores)
        level = sparsity if k == rounds else 1.0 - start * (end / start) ** (k / rounds)
        masks = remove(masks, [Stage(scores)], level, allocation)
    return masks


def check_finite(values: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        UserError: names the first layer that holds one.
    """
    for name, value in values.items():
        if not bool(torch.isfinite(value).all()):
            raise diverged(name)


@contextmanager
def _batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm alone in training mode, for the time being."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [norm.training for norm in norms]
    try:
        for norm in norms:
            norm.training = True
        yield
    finally:
        for norm, was in zip(norms, before, strict=True):
            norm.training = was

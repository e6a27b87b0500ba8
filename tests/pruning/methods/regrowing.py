"""A training whose every step is written down, for the tests of methods that regrow weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparse_transfer import plugins
from sparse_transfer.pruning.driver import Pruner
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import Target
from tests.pruning.training import OPTIMIZERS, make_pruner, small_cnn, train

# ERK at sparsity 0.8: 324 weights shared as 17 : 26 : 113, the sums of dimensions
ERK_COUNTS = {"0.weight": 35, "3.weight": 54, "7.weight": 235}
SHAPES = {"0.weight": (8, 3, 3, 3), "3.weight": (12, 8, 3, 3), "7.weight": (5, 108)}


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Args:
        before: masks before the event of the step.
        after: masks after it.
        forward: parameters that the gradients belong to.
        trained: parameters when the event came (after the optimizer step, where there was one).
        left: parameters after the event.
        gradients: dense gradients by parameter name.
        state: optimizer state after the event, per-weight tensors by parameter name.
    """

    before: Masks
    after: Masks
    forward: dict[str, Tensor]
    trained: dict[str, Tensor]
    left: dict[str, Tensor]
    gradients: dict[str, Tensor]
    state: dict[str, list[Tensor]]


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def watched(
    name: str, sparsity: float, steps: int, *, optimizer: str = "nesterov", **options: Any
) -> tuple[Pruner, nn.Module, dict[int, Step]]:
    """A whole training of `small_cnn`: the finished pruner, the model, and its steps from 1."""
    model = small_cnn()
    pruner = make_pruner(model, name, sparsity, steps, **options)
    bound = OPTIMIZERS[optimizer](model.parameters())
    pruner.bind(bound)
    pruner.start()
    seen: dict[int, Step] = {}
    forward: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    after_backward, after_step = pruner.after_backward, pruner.after_step

    def masks() -> Masks:
        ones = Masks.ones({name: model.get_parameter(name) for name in SHAPES})
        return pruner.masks or ones

    def watch_backward(step: int) -> None:
        forward.update(parameters(model))
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradients[name] = parameter.grad.clone()
        after_backward(step)

    def watch_step(step: int) -> None:
        before, trained = masks(), parameters(model)
        after_step(step)
        state = {
            name: [
                value.clone()
                for value in bound.state[parameter].values()
                if torch.is_tensor(value) and value.shape == parameter.shape
            ]
            for name, parameter in model.named_parameters()
        }
        left = parameters(model)
        seen[step] = Step(before, masks(), dict(forward), trained, left, dict(gradients), state)

    pruner.after_backward = watch_backward  # type: ignore[method-assign]
    pruner.after_step = watch_step  # type: ignore[method-assign]
    train(model, pruner, bound, range(1, steps + 1))
    pruner.finish()
    return pruner, model, seen


def updates(pruner: Pruner, kind: str) -> list[int]:
    """The steps of the events of a kind."""
    return [event["step"] for event in pruner.summary()["events"] if event["kind"] == kind]


def rates(name: str, sparsity: float, steps: int, **options: Any) -> dict[int, float]:
    """The share replaced by step, as scheduled for `small_cnn`."""
    method = plugins.load("pruner", name)
    target = Target(sparsity=sparsity, active=1620, shapes=SHAPES, total_steps=steps)
    found: dict[int, float] = {}
    for step, event in method(method.Options(**options)).schedule(target).items():
        if isinstance(event.choose, partial):
            found[step] = event.choose.keywords["rate"]
    return found


def reference(mask: Tensor, weight: Tensor, growth: Tensor, count: int) -> Tensor:
    """One layer by two sorts: `count` smallest |weight| go, as many largest |growth| come.

    Of equal ones (weights grown at a zero gradient) the first stay and come.
    """
    kept, size, score = (t.flatten().tolist() for t in (mask, weight.abs(), growth.abs()))
    active = [i for i, is_kept in enumerate(kept) if is_kept]
    stay = set(sorted(active, key=lambda i: -size[i])[: len(active) - count])
    free = [i for i in range(len(kept)) if i not in stay]
    stay |= set(sorted(free, key=lambda i: -score[i])[:count])
    return torch.tensor([i in stay for i in range(len(kept))]).reshape(mask.shape)

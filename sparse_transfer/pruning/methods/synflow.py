"""SynFlow: before training and without data, keep the weights that carry the most synaptic flow.

With every weight replaced by its absolute value, normalisation, biases and activations left out and
an image of ones as input, R is the sum of the outputs and the score of a weight is w dR/dw. In
a chain of layers these scores sum to R in each layer, so that no layer starves as long as the
removal is spread over many `iterations` with scores computed anew (one removal would lose that).

Family: pruning at initialisation, without data.
Schedule: one event before training.
Cost: `iterations` gradients of one image in float64, once.
Source: Tanaka et al. 2020, arXiv 2006.05467, with its 100 iterations of equal shares.
Deviations: batch norm is bypassed instead of run on its initial statistics, and so are other
normalisations; activations too (the identity on positive numbers, for ReLU exactly), so that
the bounds of ReLU6 do not cut the flow; attention is an equal mean of the values, since the softmax
of a flow that grows with depth is noise. Query and key weights therefore carry no flow, like those
of squeeze-and-excite gates, which are wide open: they are the first to go, unless `keep_dense`
names them. At least one weight stays in each layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from sparse_transfer.config import Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import Allocation, check_allocation
from sparse_transfer.pruning.criteria import Scores
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target
from sparse_transfer.pruning.sensitivity import leaves, remove_in_rounds

BYPASSED = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
)
SOFTMAX = (torch.softmax, Tensor.softmax, functional.softmax)


class SynflowOptions(Frozen):
    """`iterations`: rounds of removal; few of them let layers collapse."""

    allocation: Allocation = "global"
    iterations: int = Field(100, ge=1)


@final
class Method(AbstractMethod[SynflowOptions]):
    """One event at step 0."""

    name = "synflow"
    version = 1
    Options = SynflowOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """The whole target at once."""
        options = self.options
        check_allocation(options.allocation, target)

        def choose(scene: Scene) -> Masks:
            if scene.image_size is None:
                raise UserError(
                    "synflow needs to know the size of the images.",
                    "Its input is an image of ones, and no size was given.",
                    "Prune inside a run with data, or use `magnitude`.",
                )
            positive = linearised(scene.model)
            size = scene.image_size

            def score(masks: Masks, round_: int) -> Scores:
                return flow(positive, masks, size)

            return remove_in_rounds(
                scene.masks, target.sparsity, options.iterations, options.allocation, score
            )

        return {0: Event("prune", target.sparsity, choose, needs=frozenset({"model"}))}


def linearised(model: nn.Module) -> nn.Module:
    """A copy in float64: absolute weights, no biases, no normalisation, no activations."""
    positive = copy.deepcopy(model).double().eval()
    for path, module in list(positive.named_modules()):
        if path and isinstance(module, BYPASSED):
            parent, _, child = path.rpartition(".")
            setattr(positive.get_submodule(parent), child, nn.Identity())
    with torch.no_grad():
        for parameter in positive.parameters():
            parameter.abs_()
        for module in positive.modules():
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and module.bias is not None:
                module.bias.zero_()
    return positive


def flow(positive: nn.Module, masks: Masks, image_size: int) -> dict[str, Tensor]:
    """The share of each weight in the flow R, float32: w dR/dw / R, and zero if nothing flows.

    Args:
        positive: what `linearised` made.
        image_size: side of the input in pixels.

    Raises:
        UserError: the flow overflows float64, or a weight is not finite.
    """
    plain = {name: positive.get_parameter(name).detach() for name in masks}
    weights = leaves({name: w * masks.factor(name, w) for name, w in plain.items()})
    first = next(iter(weights.values()))
    ones = first.new_ones(1, 3, image_size, image_size)
    with _EqualAttention():
        total = functional_call(positive, weights, (ones,)).sum()
    if not bool(torch.isfinite(total)):
        raise UserError(
            "synflow's flow through the network is not a finite number.",
            "A weight is NaN or infinite, or the network is too deep for float64.",
            "Use another method, such as snip or magnitude.",
        )
    # Shares, since a flow of 1e200 (hundreds of layers) has no place in float32.
    scale = 1.0 / total.detach().clamp(min=torch.finfo(torch.float64).tiny)
    gradients = torch.autograd.grad(total, list(weights.values()), materialize_grads=True)
    return {
        name: (w.detach() * gradient * scale).float()
        for (name, w), gradient in zip(weights.items(), gradients, strict=True)
    }


class _EqualAttention(TorchFunctionMode):
    """Attention gives every token the mean of the values, whatever the queries and keys."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.scaled_dot_product_attention:
            query, _, value = args[:3]
            return value.mean(-2, keepdim=True).expand(*query.shape[:-1], value.shape[-1])
        result = func(*args, **(kwargs or {}))
        if func in SOFTMAX:
            dim = (kwargs or {}).get("dim", args[1] if len(args) > 1 else -1)
            return torch.full_like(result, 1.0 / result.shape[dim])
        return result

"""Reordering of channels so that an N:M pattern keeps more, without changing the function.

The input channels of a layer may be reordered if the output channels of the layer before it, and
everything with a value for each channel between the two, are reordered with them. Where that is so
is read from the traced graph: two convolutions, or two linear layers, with nothing but batch norms,
depthwise convolutions, pooling and elementwise functions between them, each result used once. A
residual stream, a concatenation, a gate or a flattening ends a chain.

Source: the idea of Pool & Yu 2021 (NeurIPS, "Channel permutations for N:M sparsity"). Deviations:
the search is a hill climb by swaps between pairs of groups that are drawn at random, from the
better of the order as it is and strong channels dealt out over the groups; chains, where they
reorder layers of a residual stream together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from sparse_transfer.errors import UserError

ROUNDS = 20  # of the search; every group meets one other in each

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Identity, nn.Dropout),
)
_POOLING = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_FUNCTIONS = (functional.relu, torch.relu, functional.gelu, functional.silu)


@dataclass(frozen=True)
class Chain:
    """Modules by path whose channels can only be reordered together.

    Args:
        producer: its output channels.
        between: one value, or one filter, for each channel.
        consumer: its input channels.
    """

    producer: str
    between: tuple[str, ...]
    consumer: str


def reordered(
    model: nn.Module,
    layers: Collection[str],
    pattern: tuple[int, int],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """New values of parameters and buffers, by name, under which the model computes the same.

    Args:
        layers: weights that get the pattern; only their input channels are searched.
        pattern: (N, M), M a divisor of their input channels.
        generator: of the search.

    Raises:
        UserError: the model cannot be traced, or no layer is in a chain.
    """
    found = [chain for chain in chains(model) if f"{chain.consumer}.weight" in layers]
    if not found:
        raise UserError(
            "There are no channels that can be reordered.",
            "No pruned layer gets its channels from one other layer alone.",
            "Leave `permute` out.",
        )
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    values: dict[str, Tensor] = {}
    for chain in found:
        weight = f"{chain.consumer}.weight"
        order = search(tensors[weight], pattern, generator).to(tensors[weight].device)
        current = values if weight in values else tensors
        values[weight] = current[weight][:, order]
        for path in (chain.producer, *chain.between):
            for name, _ in _per_channel(model.get_submodule(path)):
                full = f"{path}.{name}"
                current = values if full in values else tensors
                values[full] = current[full][order]
    return values


def kept_magnitude(weight: Tensor, pattern: tuple[int, int]) -> float:
    """Sum of |w| that the pattern keeps of an (out, in, *kernel) weight."""
    return float(_kept(_groups(_columns(weight), pattern[1]), pattern[0]).double().sum())


def search(weight: Tensor, pattern: tuple[int, int], generator: torch.Generator) -> Tensor:
    """An order of the input channels (in,) under which the pattern keeps no less than as it is.

    Args:
        weight: (out, in, *kernel).
    """
    n, m = pattern
    columns = _columns(weight)
    groups = len(columns) // m
    as_it_is = torch.arange(len(columns))
    if groups < 2 or n == m:
        return as_it_is
    dealt = columns.sum(1).cpu().argsort(descending=True, stable=True).reshape(m, groups)
    starts = (as_it_is, dealt.T.reshape(-1))
    order = max(starts, key=lambda start: kept_magnitude(weight[:, start], pattern))
    members = order.reshape(groups, m)
    for _ in range(ROUNDS):
        pairs = torch.randperm(groups, generator=generator)[: groups // 2 * 2].reshape(-1, 2)
        members[pairs] = _better_swaps(columns, members[pairs], n)
    return members.reshape(-1)


def chains(model: nn.Module) -> list[Chain]:
    """Every chain of the model, in the order of its layers.

    Raises:
        UserError: the model cannot be traced.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # the model's own code runs on symbols: any error can come
        raise UserError(
            "The channels of this model cannot be reordered.",
            f"Its graph cannot be traced: {error}",
            "Leave `permute` out.",
        ) from error
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    once = {
        path: model.get_submodule(path)
        for path, number in calls.items()
        if number == 1 and all(owners[id(p)] == 1 for p in model.get_submodule(path).parameters())
    }
    starts = [node for node in graph.nodes if node.op == "call_module" and node.target in once]
    found = [_follow(node, once) for node in starts if _mixes(once[str(node.target)])]
    return [chain for chain in found if chain is not None]


class _Tracer(fx.Tracer):
    """Batch norms of every library are one step of the graph, with what they activate."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _BATCH_NORM) or super().is_leaf_module(m, module_qualified_name)


def _follow(start: fx.Node, modules: dict[str, nn.Module]) -> Chain | None:
    """The chain that begins at a layer, if one does."""
    producer = modules[str(start.target)]
    between: list[str] = []
    node = start
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node.op == "call_function" and node.target in _FUNCTIONS:
            continue
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if module is None:
            return None
        if _mixes(module):
            alike = isinstance(producer, nn.Linear) == isinstance(module, nn.Linear)
            return Chain(str(start.target), tuple(between), str(node.target)) if alike else None
        if not _keeps_channels_apart(module, linear=isinstance(producer, nn.Linear)):
            return None
        if _per_channel(module):
            between.append(str(node.target))
    return None


def _mixes(module: nn.Module) -> bool:
    """Whether every output channel is made from all input channels."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, _CONVOLUTIONS) and module.groups == 1
    )


def _keeps_channels_apart(module: nn.Module, linear: bool) -> bool:
    """Whether each output channel is made from the same input channel, all in the same way."""
    if isinstance(module, _ELEMENTWISE):
        return True
    if linear:  # channels are the last dimension, which these do not mean
        return False
    if isinstance(module, _BATCH_NORM):  # timm's hold an activation too
        return all(isinstance(child, _ELEMENTWISE) for child in module.children())
    if isinstance(module, _CONVOLUTIONS):
        return module.groups == module.in_channels == module.out_channels
    return isinstance(module, _POOLING)


def _per_channel(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The module's own tensors that have the output channels as first dimension."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [(name, tensor) for name, tensor in own if tensor.dim() > 0]


def _columns(weight: Tensor) -> Tensor:
    """|w| by input channel: (in, out * kernel)."""
    return weight.detach().abs().float().movedim(1, 0).flatten(1)


def _groups(columns: Tensor, m: int) -> Tensor:
    """(groups, M, rows) of consecutive channels."""
    return columns.reshape(-1, m, columns.shape[1])


def _kept(groups: Tensor, n: int) -> Tensor:
    """Sum of the N largest in every group (groups, M, rows), over rows: (groups,)."""
    return groups.topk(n, dim=1).values.sum((1, 2))


def _better_swaps(columns: Tensor, members: Tensor, n: int) -> Tensor:
    """Pairs of groups of channel numbers (pairs, 2, M), each after its best swap of two."""
    m = members.shape[2]
    left, right = columns[members[:, 0]], columns[members[:, 1]]
    before = _kept(left, n) + _kept(right, n)
    best = before * (1 + 1e-6)  # a gain of rounding alone is none
    result = members.clone()
    for i in range(m):
        for j in range(m):
            swapped_left, swapped_right = left.clone(), right.clone()
            swapped_left[:, i], swapped_right[:, j] = right[:, j], left[:, i]
            kept = _kept(swapped_left, n) + _kept(swapped_right, n)
            better = (kept > best).cpu()
            best = torch.maximum(best, kept)
            swapped = members.clone()
            swapped[:, 0, i], swapped[:, 1, j] = members[:, 1, j], members[:, 0, i]
            result[better] = swapped[better]
    return result

"""What a network costs: multiply-accumulates with zeros skipped, bytes, and dead filters.

MACs are counted by `torch.utils.flop_counter` (which counts two FLOPs for one) on the meta device:
convolutions, linear layers and attention products, no activations or normalisation. "Zeros skipped"
is what an engine would need that skipped every zero weight and nothing else; it is a bound, not a
time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from sparse_transfer.pruning.masks import Masks


@dataclass(frozen=True)
class LayerCost:
    """MACs of one layer for one image: all of them, and those with a weight that is kept."""

    dense: int
    sparse: int


@dataclass(frozen=True)
class Cost:
    """MACs of one image through a network.

    Attributes:
        dense: as if no weight were zero.
        sparse: with the products of masked weights skipped.
        layers: by parameter name; products without a weight (attention) are in the totals only.
    """

    dense: int
    sparse: int
    layers: dict[str, LayerCost]

    @property
    def ratio(self) -> float:
        """Sparse MACs over dense MACs, in (0, 1]; its inverse is the theoretical speedup."""
        return self.sparse / self.dense


@dataclass(frozen=True)
class Sizes:
    """Bytes of all parameters and buffers.

    Attributes:
        dense: every value stored.
        packed: masked layers as one bit per weight and the kept values, the rest as it is.
    """

    dense: int
    packed: int


@dataclass(frozen=True)
class DeadChannels:
    """Output channels whose whole filter is zero, by convolution: name → (dead, all, weights)."""

    layers: dict[str, tuple[int, int, int]]

    @property
    def fraction(self) -> float | None:
        """Dead channels over all output channels; None for a network without convolutions."""
        return _share((dead, channels) for dead, channels, _ in self.layers.values())

    @property
    def layer_mean(self) -> float | None:
        """The fraction averaged over layers, each counting the same."""
        return _share((dead / channels, 1) for dead, channels, _ in self.layers.values())

    @property
    def weighted_mean(self) -> float | None:
        """The fraction averaged over layers, each counting by its number of weights."""
        return _share((dead / channels * n, n) for dead, channels, n in self.layers.values())


def macs(model: nn.Module, image_size: int, masks: Masks | None = None) -> Cost:
    """Count the multiply-accumulates of one image.

    The model is left as it is; it may lie on the meta device.

    Args:
        model: the network, called with (1, channels, image_size, image_size).
        image_size: pixels of the square input.
        masks: which weights are kept; None counts a dense network.
    """
    counter = FlopCounterMode(display=False)
    tensors = {name: _meta(p) for name, p in model.named_parameters()}
    tensors |= {name: _meta(b) for name, b in model.named_buffers()}
    dtype = next(model.parameters()).dtype
    channels = getattr(model, "in_chans", 3)
    image = torch.empty(1, channels, image_size, image_size, device="meta", dtype=dtype)
    with evaluating(model), torch.no_grad(), counter:
        functional_call(model, tensors, (image,))
    # keys are "Class.path.of.module"; the class name itself is the whole network
    flops = {
        name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()
    }
    counts = masks.counts() if masks is not None else {}
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and name in flops:
            weight, dense = f"{name}.weight", flops[name] // 2
            kept = counts.get(weight, module.weight.numel())
            layers[weight] = LayerCost(dense, dense * kept // module.weight.numel())
    total = counter.get_total_flops() // 2
    skipped = sum(layer.dense - layer.sparse for layer in layers.values())
    return Cost(total, total - skipped, layers)


def sizes(model: nn.Module, masks: Masks | None = None) -> Sizes:
    """Bytes of a network as it is, and with masked layers as bitmask and kept values."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    dense = sum(tensor.numel() * tensor.element_size() for _, tensor in tensors)
    counts: Mapping[str, int] = masks.counts() if masks is not None else {}
    saved = 0
    for name, tensor in tensors:
        if name in counts:
            packed = -(-tensor.numel() // 8) + counts[name] * tensor.element_size()
            saved += tensor.numel() * tensor.element_size() - packed
    return Sizes(dense, dense - saved)


def channels(module: nn.Conv1d | nn.Conv2d | nn.Linear) -> tuple[int, int, int, int]:
    """(outputs, dead outputs, inputs, dead inputs) of a layer.

    An output is dead where all weights of its filter are zero; an input where no filter of its
    group has a weight for it.
    """
    groups = getattr(module, "groups", 1)
    alive = module.weight.detach().ne(0).flatten(2) if module.weight.ndim > 2 else None
    alive = alive.any(2) if alive is not None else module.weight.detach().ne(0)  # (out, in/groups)
    by_group = alive.reshape(groups, -1, alive.shape[1])
    outputs, inputs = alive.shape[0], groups * alive.shape[1]
    dead_outputs = outputs - int(alive.any(1).sum())
    return outputs, dead_outputs, inputs, inputs - int(by_group.any(1).sum())


def dead_channels(model: nn.Module) -> DeadChannels:
    """Filters that are entirely zero, over all convolutions; a classifier that is linear is not.

    The published measure does not say how it averages, so three averages are offered.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            outputs, dead, *_ = channels(module)
            found[f"{name}.weight"] = (dead, outputs, module.weight.numel())
    return DeadChannels(found)


def layer_facts(model: nn.Module, masks: Masks | None) -> list[dict[str, JsonValue]]:
    """One JSON-able row per masked layer, in module order; none for a dense model.

    Each has `layer`, `weights`, `density` (share kept), and for convolutions `channels` and
    `dead_channels`.
    """
    if masks is None:
        return []
    dead = dead_channels(model).layers
    rows: list[dict[str, JsonValue]] = []
    for name, kept in masks.counts().items():
        size = masks[name].numel()
        row: dict[str, JsonValue] = {"layer": name.removesuffix(".weight"), "weights": size}
        row["density"] = kept / size
        if name in dead:
            row["dead_channels"], row["channels"], _ = dead[name]
        rows.append(row)
    return rows


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode; afterwards every module is in the mode it was in."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _share(pairs: Iterable[tuple[float, int]]) -> float | None:
    parts, wholes = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())
    return sum(parts) / sum(wholes) if wholes else None


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")

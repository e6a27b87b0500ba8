"""Linear layers between regions: those of transformers and heads, sparse where that was faster.

A linear layer by itself pays for the way into the layout and back, which costs about as much as
its products where it is narrow. So narrow ones are left alone, and each of the others is measured
beside PyTorch's on inputs of its own shape. (At 90 % sparsity, one thread of an AVX-512 CPU, layers
of 192 features took 1.2 times as long as PyTorch's, those of 384 about as long, and those of 768
half as long to nine tenths.)
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from sparse_transfer import latency
from sparse_transfer.sparse.layer import SparseConvolution
from sparse_transfer.sparse.tuning import Timing, Tuner

DENSEST = 0.3  # above this density it is not tried
GAIN = 1.1  # what it must be faster by
ROUNDS = 3
LEAST_FEATURES = 384  # in and out


@final
class SparseLinearModule(nn.Module):
    """What an `nn.Linear` computes, its zeros skipped; float32 on the CPU, without gradients."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._product = SparseConvolution(layer.weight.detach()[:, :, None, None])
        self.bias = layer.bias
        self.out_features = layer.out_features

    def forward(self, rows: Tensor) -> Tensor:
        """(…, in) → (…, out); where there are more than two dimensions, the first are images."""
        shape = rows.shape
        rows = rows.reshape(1 if rows.dim() < 3 else shape[0], -1, shape[-1])
        made = self._product.forward(rows.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2)
        result = torch.empty(made.shape)
        if self.bias is None:
            result.copy_(made)
        else:
            torch.add(made, self.bias, out=result)
        return result.reshape(*shape[:-1], self.out_features)


def faster(
    graph: fx.GraphModule, batch: int, tuner: Tuner, taken: set[fx.Node]
) -> dict[fx.Node, SparseLinearModule]:
    """The linear layers of a graph that are worth it for `batch` images.

    Args:
        graph: with shapes for any number of images in its metadata.
        taken: nodes that have another place already.
    """
    if not tuner.measures:
        return {}
    modules: dict[Any, nn.Module] = dict(graph.named_modules())
    found = {}
    images = next(node for node in graph.graph.nodes if node.op == "placeholder")
    shown = images.meta["tensor_meta"].shape[0]
    for node in graph.graph.nodes:
        layer = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(layer, nn.Linear) or node in taken or len(node.args) != 1:
            continue
        density = float((layer.weight != 0).float().mean())
        if density > DENSEST or min(layer.in_features, layer.out_features) < LEAST_FEATURES:
            continue
        first, *rest = node.args[0].meta["tensor_meta"].shape
        shape = (first * batch // shown, *rest)
        made = SparseLinearModule(layer)
        step = round(math.log(max(density, 1e-4)) / math.log(1.15))  # as for convolutions
        key = [shape, layer.out_features, step, torch.get_num_threads()]
        timing = tuner.timed("linear", key, partial(_measure, layer, made, shape))
        if timing.dense >= GAIN * timing.sparse:
            found[node] = made
    return found


def _measure(layer: nn.Module, made: nn.Module, shape: tuple[int, ...]) -> Timing:
    """Median seconds of both, interleaved."""
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = latency.medians({"dense": layer, "sparse": made}, rows, repeats=ROUNDS)
    return Timing(found["dense"], found["sparse"])

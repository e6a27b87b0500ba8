"""From a traced model to what training regions know: convolutions, norms with what follows, pools.

A node stands for one value. An activation and a sum go into the norm before them where nobody else
reads its result, so that a node is

    activation(norm(source) + norm(other)),

each of whose parts but the source may be absent.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn import functional

from sparse_transfer.fusion import has_hooks, is_in_place
from sparse_transfer.sparse.abi import Activation
from sparse_transfer.sparse.drop_in import SparseConv2d, obstacle
from sparse_transfer.sparse.layout import Axis

Shape = tuple[int, int, int]

ACTIVATIONS: dict[Any, Activation] = {
    nn.Identity: Activation.NONE,
    nn.ReLU: Activation.RELU,
    nn.ReLU6: Activation.RELU6,
    functional.relu: Activation.RELU,
    functional.relu6: Activation.RELU6,
    torch.relu: Activation.RELU,
    "relu": Activation.RELU,
    "relu_": Activation.RELU,
}


Convolution = SparseConv2d | nn.Conv2d
FEW = (
    4  # channels of images; a convolution of so few is as fast in a region, where nothing is copied
)


@final
@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm, or the bias of a convolution: a frozen norm of average 0 and variance 1.

    Attributes:
        layer: where the parameters are.
        channels: how many.
        pixels: of the image that it is applied to.
    """

    layer: nn.BatchNorm2d | Convolution
    channels: int
    pixels: int

    @property
    def weight(self) -> Tensor | None:
        """(channels,), or None for ones."""
        return self.layer.weight if isinstance(self.layer, nn.BatchNorm2d) else None

    @property
    def bias(self) -> Tensor | None:
        """(channels,), or None for zeros."""
        return self.layer.bias

    @property
    def running(self) -> nn.BatchNorm2d | None:
        """The layer, where it keeps running statistics."""
        layer = self.layer
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            return layer
        return None

    @property
    def average(self) -> Tensor | None:
        """(channels,) of a frozen norm, or None for zeros."""
        return None if self.running is None else self.running.running_mean

    @property
    def variance(self) -> Tensor | None:
        """(channels,) of a frozen norm, or None for ones."""
        return None if self.running is None else self.running.running_var

    @property
    def epsilon(self) -> float:
        """Added to the variance."""
        return self.layer.eps if isinstance(self.layer, nn.BatchNorm2d) else 0.0

    @property
    def is_frozen(self) -> bool:
        """Whether average and variance are given, not those of the batch."""
        if not isinstance(self.layer, nn.BatchNorm2d):
            return True
        return self.running is not None and not self.layer.training


@final
@dataclass(frozen=True, eq=False)
class Node:
    """How one value of a region is made.

    Attributes:
        name: of the value.
        do: what is done.
        shape: (channels, height, width) of the value.
        source: the value that is convolved, pooled or normalised; absent for an input.
        layer: of a convolution.
        axes: of a convolution or a pool.
        norm: of the source.
        other, other_norm: the value that is added, and its norm.
        activation: applied last.
    """

    name: str
    do: Literal["input", "convolve", "activate", "maximum"]
    shape: Shape
    source: str = ""
    layer: Convolution | None = None
    axes: tuple[Axis, Axis] | None = None
    norm: Norm | None = None
    other: str = ""
    other_norm: Norm | None = None
    activation: Activation = Activation.NONE

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the values that are needed."""
        return tuple(name for name in (self.source, self.other) if name)

    @property
    def norms(self) -> tuple[tuple[Norm, str], ...]:
        """The norms, and the value that each is applied to."""
        pairs = ((self.norm, self.source), (self.other_norm, self.other))
        return tuple((norm, name) for norm, name in pairs if norm is not None)


def weight_of(layer: Convolution) -> Tensor:
    """The parameter that holds a convolution's weights: its non-zeros, or all."""
    return layer.values if isinstance(layer, SparseConv2d) else layer.weight


def kept_of(layer: Convolution) -> Tensor:
    """Bool of the weight's shape."""
    if isinstance(layer, SparseConv2d):
        return layer.kept
    return torch.ones(layer.weight.shape, dtype=torch.bool)


def nodes_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> list[Node]:
    """What a traced node does, alone; nothing where a region cannot do it.

    The last of them has its name. Shapes must be in `meta["shape"]`. What is done in place is a
    new value in a region: nobody else may see what was written over.
    """
    if is_in_place(node) and not _is_alone(node.args[0], modules):
        return []
    shape = shape_of(node)
    sources = [n for n in node.args if isinstance(n, fx.Node)]
    if shape is None or any(shape_of(n) is None for n in node.all_input_nodes):
        return []
    if node.op == "call_module":
        size = shape_of(sources[0]) if len(node.args) == 1 and not node.kwargs and sources else None
        if size is None or has_hooks(modules[str(node.target)]):
            return []
        return _of_module(node.name, modules[str(node.target)], sources[0].name, size, shape)
    if node.op not in ("call_function", "call_method"):
        return []
    if node.target in ACTIVATIONS and len(sources) == 1 == len(node.args):
        if node.kwargs.keys() - {"inplace"}:
            return []
        return [_activate(node.name, shape, sources[0].name, activation=ACTIVATIONS[node.target])]
    is_sum = node.target in (operator.add, operator.iadd, torch.add) and not node.kwargs
    is_sum = is_sum and len(sources) == 2 == len(node.args)
    if is_sum and all(shape_of(n) == shape for n in sources):
        return [_activate(node.name, shape, sources[0].name, other=sources[1].name)]
    return []


def _is_alone(value: Any, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a value has one reader and memory of its own, which a view has not."""
    if not isinstance(value, fx.Node) or len(value.users) != 1:
        return False
    if value.op == "call_module":
        module = modules[str(value.target)]
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear) and not has_hooks(module):
            return True
    return bool(nodes_of(value, modules))


def shape_of(node: fx.Node) -> Shape | None:
    """Of a float32 batch of images; None for any other value."""
    shape = node.meta.get("shape")
    return None if shape is None or len(shape) != 4 else (shape[1], shape[2], shape[3])


def fuse(nodes: Sequence[Node], outputs: set[str]) -> list[Node]:
    """Put sums and activations into the node before them where nobody else reads it.

    Args:
        nodes: in order.
        outputs: names of values that must stay.
    """
    readers: dict[str, int] = {}
    for node in nodes:
        for name in node.reads:
            readers[name] = readers.get(name, 0) + 1
    done: dict[str, Node] = {}

    def free(name: str) -> Node | None:
        """What may be changed: read once, nothing after its norm."""
        found = done.get(name)
        if found is None or found.do != "activate" or readers[name] != 1 or name in outputs:
            return None
        return found if found.activation == Activation.NONE else None

    for node in nodes:
        before = free(node.source) if node.do == "activate" and node.norm is None else None
        if before is not None and not node.other:
            del done[node.source]
            node = replace(before, name=node.name, activation=node.activation)
        elif node.do == "activate" and node.other and node.source != node.other:
            node = _with_parts(node, free, done)
        done[node.name] = node
    return list(done.values())


def _with_parts(node: Node, free: Any, done: dict[str, Node]) -> Node:
    """A sum of two values, with what is normalised normalised in it."""
    for part in ("source", "other"):
        name = getattr(node, part)
        before = free(name)
        if before is not None and not before.other:
            del done[name]
            norm = {"source": "norm", "other": "other_norm"}[part]
            node = replace(node, **{part: before.source, norm: before.norm})
    return node


def _activate(name: str, shape: Shape, source: str, **more: Any) -> Node:
    return Node(name, "activate", shape, source, **more)


def _of_module(name: str, module: nn.Module, source: str, size: Shape, shape: Shape) -> list[Node]:
    if isinstance(module, SparseConv2d) or _is_welcome(module):
        assert isinstance(module, SparseConv2d | nn.Conv2d) and not isinstance(module.padding, str)
        kernel = (
            weight_of(module).shape[2:] if isinstance(module, nn.Conv2d) else module.kept.shape[2:]
        )
        numbers = zip(size[1:], kernel, module.stride, module.padding, module.dilation, strict=True)
        y, x = (Axis(n, k, stride, pad, pad, dilation) for n, k, stride, pad, dilation in numbers)
        make = {"do": "convolve", "shape": shape, "source": source, "layer": module, "axes": (y, x)}
        if module.bias is None:
            return [Node(name, **make)]
        bias = Norm(module, shape[0], shape[1] * shape[2])
        return [Node(f"{name}:plain", **make), _activate(name, shape, f"{name}:plain", norm=bias)]
    if isinstance(module, nn.BatchNorm2d):
        after = _after(module)
        if after is None or (module.momentum is None and module.track_running_stats):
            return []
        norm = Norm(module, shape[0], shape[1] * shape[2])
        return [_activate(name, shape, source, norm=norm, activation=after)]
    if type(module) in ACTIVATIONS:
        return [_activate(name, shape, source, activation=ACTIVATIONS[type(module)])]
    if isinstance(module, nn.MaxPool2d):
        axes = _pool_axes(module, size, shape)
        return [] if axes is None else [Node(name, "maximum", shape, source, axes=axes)]
    return []


def _is_welcome(module: nn.Module) -> bool:
    """Whether a dense convolution costs less in a region than leaving it and coming back.

    Those of images and of single channels, and the shortcuts between stages.
    """
    if not isinstance(module, nn.Conv2d) or obstacle(module) is not None:
        return False
    if isinstance(module.padding, str):
        return False
    is_shortcut = module.kernel_size == (1, 1) and module.stride != (1, 1)
    return module.in_channels <= FEW or module.groups == module.in_channels or is_shortcut


def _after(norm: nn.BatchNorm2d) -> Activation | None:
    """The activation within a norm; None where it is not known."""
    if type(norm) is nn.BatchNorm2d:
        return Activation.NONE
    if type(norm) is BatchNormAct2d and type(norm.drop) is nn.Identity:
        return ACTIVATIONS.get(type(norm.act))
    return None


def _pool_axes(pool: nn.MaxPool2d, size: Shape, shape: Shape) -> tuple[Axis, Axis] | None:
    pairs = [
        (value, value) if isinstance(value, int) else tuple(value)
        for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    ]
    axes = [
        Axis(size[1 + i], kernel, stride, pad, pad, dilation)
        for i, (kernel, stride, pad, dilation) in enumerate(zip(*pairs, strict=True))
    ]
    fits = tuple(axis.output for axis in axes) == shape[1:]  # not so with `ceil_mode`
    if not fits or pool.return_indices or any(axis.dilation > 1 for axis in axes):
        return None
    return axes[0], axes[1]

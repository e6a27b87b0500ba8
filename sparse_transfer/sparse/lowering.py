"""From a traced model to steps that the kernels know: convolutions with what follows them, pools …

A step stands for one value. Activations and residual additions are absorbed by the convolution
before them where nobody else reads its result. What has no step stays with PyTorch.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata
from torch.nn import functional

from sparse_transfer.sparse.abi import Activation
from sparse_transfer.sparse.layout import Axis

Do = Literal["convolve", "maximum", "average", "mean", "pointwise", "concatenate"]

ACTIVATIONS: dict[Any, Activation] = {
    nn.Identity: Activation.NONE,
    nn.Dropout: Activation.NONE,
    nn.ReLU: Activation.RELU,
    nn.ReLU6: Activation.RELU6,
    nn.Hardswish: Activation.HARD_SWISH,
    nn.Hardsigmoid: Activation.HARD_SIGMOID,
    nn.SiLU: Activation.SILU,
    nn.Sigmoid: Activation.SIGMOID,
    functional.relu: Activation.RELU,
    functional.relu6: Activation.RELU6,
    functional.hardswish: Activation.HARD_SWISH,
    functional.hardsigmoid: Activation.HARD_SIGMOID,
    functional.silu: Activation.SILU,
    torch.relu: Activation.RELU,
    torch.sigmoid: Activation.SIGMOID,
    "relu": Activation.RELU,
    "relu_": Activation.RELU,
    "sigmoid": Activation.SIGMOID,
}


@dataclass(frozen=True)
class Step:
    """How one value is made.

    Attributes:
        name: of the node that it stands for; a key of the program's values.
        do: what is done.
        inputs: names of values: what is convolved, pooled or changed; all parts of a concatenation.
        shape: (channels, height, width) of the result.
        axes: of a convolution or pool.
        layer: the module's name, for people.
        weight, groups: of a convolution, (out, in / groups, height, width) float32.
        scale, bias: per channel, or None.
        residual: the value added before the activation.
        gate: the value of 1 × 1 pixels that multiplies last.
        activation: applied after bias and residual.
    """

    name: str
    do: Do
    inputs: tuple[str, ...]
    shape: tuple[int, int, int]
    axes: tuple[Axis, Axis] | None = None
    layer: str = ""
    weight: np.ndarray | None = field(default=None, repr=False)
    groups: int = 1
    scale: np.ndarray | None = field(default=None, repr=False)
    bias: np.ndarray | None = field(default=None, repr=False)
    residual: str | None = None
    gate: str | None = None
    activation: Activation = Activation.NONE

    @property
    def reads(self) -> tuple[str, ...]:
        """All values that are needed."""
        return (*self.inputs, *(v for v in (self.residual, self.gate) if v is not None))


def steps_of(graph: fx.GraphModule) -> dict[str, Step]:
    """A step for every node that the kernels can do; shapes must have been propagated."""
    modules = dict(graph.named_modules())
    found = {}
    for node in graph.graph.nodes:
        shape = _shape(node)
        if shape is None or any(_shape(n) is None for n in node.all_input_nodes):
            continue
        step = None
        if node.op == "call_module":
            step = _of_module(node, modules[str(node.target)], shape)
        elif node.op in ("call_function", "call_method"):
            step = _of_function(node, shape)
        if step is not None:
            found[node.name] = step
    return found


def fuse(steps: list[Step], outside: set[str]) -> list[Step]:
    """Absorb activations and additions into what comes before them.

    Args:
        steps: in order of execution.
        outside: names of values that somebody else reads, which must stay.
    """
    readers: Counter[str] = Counter(name for step in steps for name in step.reads)
    done: dict[str, Step] = {}
    renamed: dict[str, str] = {}

    def absorb(before: str, name: str, **changes: Any) -> None:
        done[name] = replace(done.pop(before), name=name, **changes)

    for original in steps:
        step = replace(
            original,
            inputs=tuple(renamed.get(name, name) for name in original.inputs),
            residual=renamed.get(original.residual or "", original.residual),
            gate=renamed.get(original.gate or "", original.gate),
        )
        source = step.inputs[0]
        is_plain = step.do == "pointwise" and step.scale is None and step.gate is None
        # those that nobody else reads, and that nothing was done to yet
        free = {
            name
            for name in step.reads
            if name in done
            and name not in outside
            and readers[name] == 1
            and done[name].activation == Activation.NONE
            and done[name].gate is None
        }
        if is_plain and step.residual is None:
            if step.activation == Activation.NONE and step.name not in outside:
                renamed[step.name] = source  # nothing is done
                readers[source] += readers[step.name] - 1
                continue
            if source in free and done[source].do in ("convolve", "pointwise"):
                absorb(source, name=step.name, activation=step.activation)
                continue
        if is_plain and step.residual is not None:
            # the later of the two: when it is computed the other is there to be added
            order = {name: number for number, name in enumerate(done)}
            other, last = sorted((source, step.residual), key=lambda name: order.get(name, -1))
            if last in free and done[last].do == "convolve" and done[last].residual is None:
                absorb(last, name=step.name, residual=other, activation=step.activation)
                continue
        done[step.name] = step
    return list(done.values())


def _shape(node: fx.Node) -> tuple[int, int, int] | None:
    """Channels, height, width of a float32 batch of images; None for any other value."""
    meta = node.meta.get("tensor_meta")
    if not isinstance(meta, TensorMetadata) or len(meta.shape) != 4:
        return None
    _, channels, height, width = meta.shape
    return (channels, height, width) if meta.dtype == torch.float32 else None


def _of_module(node: fx.Node, module: nn.Module, shape: tuple[int, int, int]) -> Step | None:
    if len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    size = _shape(source)
    assert size is not None
    make: Callable[..., Step] = lambda do, **more: Step(  # noqa: E731
        node.name, do, (source.name,), shape, layer=str(node.target), **more
    )
    if isinstance(module, nn.Conv2d):
        axes = _conv_axes(module, size)
        if axes is None or (axes[0].output, axes[1].output) != shape[1:]:
            return None
        return make(
            "convolve",
            axes=axes,
            weight=_numbers(module.weight),
            groups=module.groups,
            bias=None if module.bias is None else _numbers(module.bias),
        )
    if isinstance(module, nn.BatchNorm2d):
        return _norm(module, make)
    kind = _single(module)
    if kind is not None:
        return make("pointwise", activation=kind)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return _pool(module, size, shape, make)
    if isinstance(module, nn.AdaptiveAvgPool2d) and shape[1:] == (1, 1) and size[1:] != (1, 1):
        return make("mean")
    return None


def _of_function(node: fx.Node, shape: tuple[int, int, int]) -> Step | None:
    sources = [n.name for n in node.all_input_nodes]
    tensors = [a for a in node.args if isinstance(a, fx.Node)]
    target = node.target
    if target in ACTIVATIONS and len(sources) == 1 and len(node.args) == 1:
        return Step(node.name, "pointwise", (sources[0],), shape, activation=ACTIVATIONS[target])
    if target in (operator.add, operator.iadd, torch.add) and len(tensors) == 2 and not node.kwargs:
        first, second = (n.name for n in tensors)
        if all(_shape(n) == shape for n in tensors):
            return Step(node.name, "pointwise", (first,), shape, residual=second)
    if target in (operator.mul, operator.imul, torch.mul) and len(tensors) == 2:
        for value, gate in (tensors, tensors[::-1]):
            if _shape(value) == shape != _shape(gate) == (shape[0], 1, 1):
                return Step(node.name, "pointwise", (value.name,), shape, gate=gate.name)
    first = node.args[0] if node.args else None
    if target is torch.cat and isinstance(first, list | tuple):
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        parts = tuple(n.name for n in first if isinstance(n, fx.Node))
        if dim in (1, -3) and len(parts) == len(first):
            return Step(node.name, "concatenate", parts, shape)
    if target == "mean" and len(tensors) == 1:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        size = _shape(tensors[0])
        if keeps and dims in ((2, 3), [2, 3], (-2, -1), [-2, -1]) and size and size[1:] != (1, 1):
            return Step(node.name, "mean", (sources[0],), shape)
    return None


def _single(module: nn.Module) -> Activation | None:
    """The activation that a module is, looking into sequences of nothing and one activation."""
    if isinstance(module, nn.Sequential):
        kinds = [_single(part) for part in module]
        known = [kind for kind in kinds if kind is not None]
        active = [kind for kind in known if kind != Activation.NONE]
        if len(known) < len(kinds) or len(active) > 1:
            return None
        return active[0] if active else Activation.NONE
    return ACTIVATIONS.get(type(module))


def _norm(norm: nn.BatchNorm2d, make: Callable[..., Step]) -> Step | None:
    """A batch norm that nothing could be folded into, with timm's activation."""
    after = nn.Sequential(*(getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)))
    activation = _single(after)
    if activation is None or norm.running_mean is None or norm.running_var is None:
        return None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    numbers = {"scale": _numbers(scale.float()), "bias": _numbers(bias.float())}
    return make("pointwise", activation=activation, **numbers)


def _conv_axes(conv: nn.Conv2d, size: tuple[int, int, int]) -> tuple[Axis, Axis] | None:
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    axes = []
    for i in range(2):
        kernel, stride, dilation = conv.kernel_size[i], conv.stride[i], conv.dilation[i]
        before = after = int(conv.padding[i])
        if type(conv) is Conv2dSame:
            total = int(get_same_padding(size[1 + i], kernel, stride, dilation))
            before, after = total // 2, total - total // 2
        elif type(conv) is not nn.Conv2d:
            return None
        axes.append(Axis(size[1 + i], kernel, stride, before, after, dilation))
    return axes[0], axes[1]


def _pool(
    pool: nn.MaxPool2d | nn.AvgPool2d,
    size: tuple[int, int, int],
    shape: tuple[int, int, int],
    make: Callable[..., Step],
) -> Step | None:
    axes = []
    for i in range(2):
        kernel, stride, pad, dilation = (
            value if isinstance(value, int) else value[i]
            for value in (
                pool.kernel_size, pool.stride, pool.padding, getattr(pool, "dilation", 1),
            )
        )  # fmt: skip
        # what `ceil_mode` adds lies outside the image like any padding
        after = (shape[1 + i] - 1) * stride + dilation * (kernel - 1) + 1 - size[1 + i] - pad
        axes.append(Axis(size[1 + i], kernel, stride, pad, max(pad, after), dilation))
    if any(axis.dilation > 1 for axis in axes):
        return None
    if isinstance(pool, nn.MaxPool2d):
        return None if pool.return_indices else make("maximum", axes=tuple(axes))
    inside = all(axis.before == 0 and axis.after == 0 for axis in axes)
    counts_all = pool.count_include_pad and not pool.ceil_mode and pool.divisor_override is None
    is_same = inside and pool.divisor_override is None
    return make("average", axes=tuple(axes)) if counts_all or is_same else None


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().contiguous().numpy()

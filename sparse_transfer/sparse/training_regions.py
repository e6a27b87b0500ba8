"""Training with sparse convolutions: runs of layers as one autograd node, in the kernels' layout.

`fuse` takes a network in which convolutions are `SparseConv2d` and puts a `Region` in the place of
every run of layers that the kernels know: sparse convolutions, batch norms, ReLU and ReLU6, sums,
maximum pools. Inside nothing is in PyTorch's layout. What it does not know runs in PyTorch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from sparse_transfer.errors import UserError
from sparse_transfer.fusion import has_hooks, trace
from sparse_transfer.sparse import library
from sparse_transfer.sparse.drop_in import SparseConv2d
from sparse_transfer.sparse.layer import check
from sparse_transfer.sparse.saved_memory import SavedMemory
from sparse_transfer.sparse.splitting import Run, runs_of, with_regions
from sparse_transfer.sparse.training_graph import Node, Shape, nodes_of, shape_of, weight_of
from sparse_transfer.sparse.training_graph import fuse as fuse_nodes
from sparse_transfer.sparse.training_layout import Layouts, Values
from sparse_transfer.sparse.training_plan import TrainingPlan


@final
class Region(nn.Module):
    """Consecutive layers as one autograd node; it has no parameters of its own.

    Called with its inputs it returns its outputs, for any number of images. Gradients cannot be
    differentiated again.

    Args:
        nodes: fused, in order, inputs first.
        outputs: names of the values that leave.
        layouts: of all sizes.
    """

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[str], layouts: Layouts) -> None:
        super().__init__()
        self._nodes, self._outputs, self._layouts = tuple(nodes), tuple(outputs), layouts
        self._plan: TrainingPlan | None = None
        self._memory: SavedMemory | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What is computed."""
        return self._nodes

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """(n, *shape) float32 tensors → as many as the region has outputs.

        Raises:
            UserError: they have another shape or type than the region was made for.
        """
        expected = [node.shape for node in self._nodes if node.do == "input"]
        for tensor, shape in zip(inputs, expected, strict=True):
            check(tensor, "images", (len(inputs[0]), *shape))
        if not len(inputs[0]):
            raise UserError("A training region was called without images.", "The batch is empty.")
        plan, memory = self._ready(inputs)
        weights = [weight_of(node.layer) for node in self._nodes if node.layer is not None]
        norms = [
            parameter
            for norm in plan.norms
            for parameter in (norm.weight, norm.bias)
            if parameter is not None
        ]
        made = _Run.apply(self, plan, memory, len(inputs), *inputs, *weights, *norms)
        assert isinstance(made, tuple)
        return made

    def shapes(self, batch: int) -> list[tuple[int, ...]]:
        """Of the outputs."""
        of = {node.name: node.shape for node in self._nodes}
        return [(batch, *of[name]) for name in self._outputs]

    def _ready(self, inputs: Sequence[Tensor]) -> tuple[TrainingPlan, SavedMemory]:
        names = [node.name for node in self._nodes if node.do == "input"]
        wanted = [name for name, x in zip(names, inputs, strict=True) if x.requires_grad]
        threads = torch.get_num_threads()
        plan = self._plan
        if plan is None or plan.threads < threads or not set(wanted) <= set(plan.wanted):
            wanted = [n for n in names if n in wanted or (plan is not None and n in plan.wanted)]
            kernels = library.current()
            values = Values(self._nodes, self._outputs, self._layouts)
            with torch.inference_mode(False):  # tables of that mode could not be written later
                self._plan = plan = TrainingPlan(kernels, values, wanted, threads)
            self._memory = self._memory or SavedMemory(kernels)
        assert self._memory is not None
        return plan, self._memory

    def __getstate__(self) -> dict[str, Any]:
        """Without programs and memory, which a copy makes anew."""
        return {**self.__dict__, "_plan": None, "_memory": None}


@final
class _Run(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, region: Region, plan: TrainingPlan, memory: SavedMemory, n: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        inputs, weights = tensors[:n], tensors[n : n + len(plan.weights)]
        batch = len(inputs[0])
        made = [inputs[0].new_empty(shape) for shape in region.shapes(batch)]
        saved = memory.take(plan.floats(batch))
        values = [weight.contiguous() for weight in weights]
        state, frozen = plan.forward([x.detach() for x in inputs], made, values, saved)
        ctx.save_for_backward(saved, state, *weights)
        ctx.plan, ctx.frozen, ctx.inputs = plan, frozen, [x.shape for x in inputs]
        ctx.names = [node.name for node in region.nodes if node.do == "input"]
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():
            raise UserError(
                "Gradients of a sparse training region cannot be differentiated again.",
                "They were asked for with create_graph=True.",
                "Train the dense model where second derivatives are needed.",
            )
        plan: TrainingPlan = ctx.plan
        saved, state, *weights = ctx.saved_tensors
        for gradient in gradients:
            check(gradient, "gradients", tuple(gradient.shape))
        into = dict(zip(ctx.names, ctx.inputs, strict=True))
        inputs = {name: saved.new_empty(into[name]) for name in plan.wanted}
        values = [weight.contiguous() for weight in weights]
        found = [torch.empty_like(value) for value in values]
        norms = plan.backward(
            gradients, list(inputs.values()), values, found, saved, state, ctx.frozen
        )
        affine = [
            gradient
            for norm in plan.norms
            for parameter, gradient in zip((norm.weight, norm.bias), norms[norm], strict=True)
            if parameter is not None
        ]
        return (None, None, None, None, *(inputs.get(n) for n in ctx.names), *found, *affine)


def fuse(module: nn.Module, example: Tensor) -> tuple[nn.Module, str | None]:
    """A network with regions in the place of layers; its parameters and buffers are the module's.

    Names in the state dict do not change. Where no region can be made, or torch.fx cannot trace the
    module, the module itself is returned, and why.

    Args:
        module: with `SparseConv2d` in the place of convolutions.
        example: (n, channels, height, width) float32 images as they will come. Any number can be
            run, but layouts are chosen for this one; the size of the image must stay.
    """
    if has_hooks(module):
        return module, "the network itself has hooks"
    try:
        graph = trace(module, (SparseConv2d,), exact=True)
    except Exception as error:  # tracing runs the model's own code on symbols: anything may happen
        reason = str(error).partition("\n")[0] or type(error).__name__
        return module, f"torch.fx cannot trace the network ({reason})"
    _remove_identities(graph)
    _propagate(module, graph, example[:1])
    modules = dict(graph.named_modules())
    uses = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")
    known: dict[fx.Node, list[Node]] = {}
    for node in graph.graph.nodes:
        if uses[str(node.target)] <= 1 or not list(modules[str(node.target)].parameters()):
            known[node] = nodes_of(node, modules)
    shapes = [shape for node in graph.graph.nodes if (shape := shape_of(node)) is not None]
    layouts = Layouts(shapes, len(example))
    for node, made in known.items():
        if not all(layouts.fits(part) for part in made):
            known[node] = []
    runs = runs_of(
        graph,
        lambda node, _: bool(known.get(node)),
        lambda node: any(isinstance(part.layer, SparseConv2d) for part in known[node]),
    )
    if not runs:
        return module, "no sparse convolution can be in a region"
    return _with_regions(module, graph, runs, known, layouts), None


def _remove_identities(graph: fx.GraphModule) -> None:
    """Two names of one value would be two values in a region, also where one is written over."""
    for node in graph.graph.nodes:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            continue
        module = graph.get_submodule(str(node.target))
        if type(module) is nn.Identity and not has_hooks(module):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _with_regions(
    module: nn.Module,
    graph: fx.GraphModule,
    runs: Sequence[Run],
    known: dict[fx.Node, list[Node]],
    layouts: Layouts,
) -> nn.Module:
    def region(run: Run, sources: list[fx.Node], leaving: list[fx.Node]) -> Region:
        outputs = [n.name for n in leaving]
        inputs = [Node(n.name, "input", _image(n)) for n in sources]
        parts = fuse_nodes([part for n in run for part in known[n]], set(outputs))
        return Region([*inputs, *parts], outputs, layouts)

    fused = with_regions(module, graph, runs, region)
    for name, child in module.named_children():  # those in regions, which the graph does not call
        setattr(fused, name, child)
    return fused


def _image(node: fx.Node) -> Shape:
    shape = shape_of(node)
    assert shape is not None
    return shape


def _propagate(module: nn.Module, graph: fx.GraphModule, images: Tensor) -> None:
    """Note the shape of every float32 tensor that has a row for every image.

    Two images show what has one row for all, as a learned map has. Nothing in the module changes.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()  # running statistics stay
    try:
        with torch.no_grad():
            _Shapes(graph).propagate(torch.cat([images, images]))
    finally:
        for part, training in modes:
            part.training = training
    for node in graph.graph.nodes:
        found = node.meta.get("tensor_meta")
        if not isinstance(found, TensorMetadata) or found.dtype != torch.float32:
            continue
        if node.op != "get_attr" and found.shape[:1] == (2 * len(images),):
            node.meta["shape"] = tuple(found.shape)


class _Shapes(ShapeProp):
    """Without computing what a sparse convolution would."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        layer = self.fetch_attr(target)
        if not isinstance(layer, SparseConv2d):
            return super().call_module(target, args, kwargs)
        images: Tensor = args[0]
        size = [
            (n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for n, kernel, stride, pad, dilation in zip(
                images.shape[2:], layer.kept.shape[2:], layer.stride, layer.padding,
                layer.dilation, strict=True,
            )
        ]  # fmt: skip
        return images.new_zeros(len(images), layer.kept.shape[0], *size)

"""Which channels must go together: coupled groups, found by tracing and verified by removing them.

An addition ties the channels of its operands, batch norm and depthwise convolutions tie their
input to their output, and whoever reads a channel loses a column with it. Torch-Pruning finds
these groups (DepGraph, Fang et al., arXiv 2301.12900); this is the only file that knows it, and
what it returns is plain indices. Every group is then put to the test on a copy with made-up
weights: without a channel the network must run, and compute what it computes with the channel at
zero. A group that fails is left whole: the stream of a transformer (layer norm mixes the
channels), padded shortcuts, grouped convolutions, attention.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.structured.importance import Role, Slice
from sparse_transfer.pruning.structured.shrink import Cut, ShrinkPlan

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the largest output; a wrong index costs about one over the channels
Kind = Role | Literal["shift"]  # a bias or shift, zeroed with its channel


@dataclass(frozen=True)
class End:
    """One dimension of one parameter or buffer that shrinks with a group.

    Args:
        tensor: its name in the model.
        channels: (n,) long, numbers of the group's channels …
        places: (n,) long, … and the index of each along `dim`, in the full-size tensor.
    """

    tensor: str
    dim: int
    kind: Kind
    channels: Tensor
    places: Tensor


@dataclass(frozen=True)
class Group:
    """Channels that can only go together; `name` is the path of the first layer that makes them."""

    name: str
    channels: int
    ends: tuple[End, ...]


Alive = Mapping[str, Tensor]  # group name → (channels,) bool on the CPU, True = left


@final
class ChannelGraph:
    """The groups of one network, and everything that follows from which channels are left.

    Attributes:
        groups: by name, in module order.
        whole: why other groups are left whole, by the name of their first layer.
        macs_dense: multiply-accumulates of one image through the traced network.
    """

    def __init__(
        self,
        groups: Mapping[str, Group],
        whole: Mapping[str, str],
        shapes: Mapping[str, torch.Size],
        macs: tuple[int, Mapping[str, int]],
    ) -> None:
        self.groups, self.whole = dict(groups), dict(whole)
        self.shapes = dict(shapes)
        self.macs_dense, layers = macs
        # A weight of a convolution or linear layer takes part in so many products for one image.
        self._uses = {name: count // shapes[name].numel() for name, count in layers.items()}
        self._fixed = self.macs_dense - sum(layers.values())  # attention products
        self._ends: dict[str, dict[int, list[tuple[str, End]]]] = {}
        for group in self.groups.values():
            for end in group.ends:
                dims = self._ends.setdefault(end.tensor, {})
                dims.setdefault(end.dim, []).append((group.name, end))

    def only(self, names: Iterable[str], reason: str) -> ChannelGraph:
        """The same graph with the other groups left whole, for the given reason."""
        chosen = set(names)
        groups = {name: group for name, group in self.groups.items() if name in chosen}
        whole = self.whole | {name: reason for name in self.groups if name not in chosen}
        layers = {name: uses * self.shapes[name].numel() for name, uses in self._uses.items()}
        return ChannelGraph(groups, whole, self.shapes, (self.macs_dense, layers))

    def all_alive(self) -> dict[str, Tensor]:
        """Nothing removed."""
        return {g.name: torch.ones(g.channels, dtype=torch.bool) for g in self.groups.values()}

    def plan(self, alive: Alive, before: Alive | None = None) -> ShrinkPlan:
        """The cuts that leave `alive`, in a network that `before` is left of (all by default)."""
        cuts: dict[str, dict[int, Cut]] = {}
        for name, dims in self._ends.items():
            for d in dims:
                now = self._places(name, d, alive)
                there = torch.ones_like(now) if before is None else self._places(name, d, before)
                if int(now.sum()) < int(there.sum()):
                    kept = now[there].nonzero()[:, 0].tolist()
                    cuts.setdefault(name, {})[d] = Cut(int(there.sum()), tuple(kept))
        return ShrinkPlan(cuts)

    def macs(self, alive: Alive) -> int:
        """Multiply-accumulates of one image through what is left; exact."""
        total = self._fixed
        for name, uses in self._uses.items():
            shape = list(self.shapes[name])
            for d, ends in self._ends.get(name, {}).items():
                shape[d] -= sum(int((~alive[g])[end.channels].sum()) for g, end in ends)
            total += uses * torch.Size(shape).numel()
        return total

    def slices(self, name: str, alive: Alive) -> list[Slice]:
        """Where the live channels of a group lie in the weights of the shrunk network."""
        number = alive[name].cumsum(0) - 1
        found = []
        for end in self.groups[name].ends:
            if end.kind != "shift":
                position = self._places(end.tensor, end.dim, alive).cumsum(0) - 1
                left = alive[name][end.channels]
                channels, places = number[end.channels[left]], position[end.places[left]]
                found.append(Slice(end.tensor, end.dim, end.kind, channels, places))
        return found

    @torch.no_grad()
    def zero(self, model: nn.Module, dead: Alive) -> None:
        """Set channels of a full-size model to zero without removing them.

        Their filters, biases and norm parameters become zero, and with them the channel's values;
        whoever reads them is not touched.
        """
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, gone in dead.items():
            for end in self.groups[name].ends:
                if end.kind in ("output", "scale", "shift"):
                    places = end.places[gone[end.channels]].to(tensors[end.tensor].device)
                    tensors[end.tensor].index_fill_(end.dim, places, 0.0)

    def _places(self, tensor: str, dim: int, alive: Alive) -> Tensor:
        left = torch.ones(self.shapes[tensor][dim], dtype=torch.bool)
        for group, end in self._ends[tensor][dim]:
            left[end.places[~alive[group][end.channels]]] = False
        return left


def trace(model: nn.Module, *, image_size: int, keep_dense: Iterable[str] = ()) -> ChannelGraph:
    """Find and verify the groups of a model, which may lie on any device, also on `meta`.

    The entry `depthwise` of `keep_dense` has no effect: a depthwise convolution makes no channels
    of its own, it loses those that its input loses.

    Only the architecture counts: the trace runs on a CPU copy with made-up weights, so the same
    architecture has the same groups whatever its weights are. Left whole are the outputs of the
    network, groups with a layer of `keep_dense` among those that make the channels, and groups
    that fail the test.

    Raises:
        UserError: Torch-Pruning is missing, the model cannot be traced, or no group is left.
    """
    probe = _probe(model)
    images = _images(model, image_size)
    weights = prunable(probe)
    kept = [entry for entry in keep_dense if entry != "depthwise"]
    staying = {
        "it is the output of the network": weights.keys() - prunable(probe, ["head"]).keys(),
        "a layer that makes it is kept dense": weights.keys() - prunable(probe, kept).keys(),
    }
    groups, whole = _coupled(probe, images[:1])
    for reason, layers in staying.items():
        for name in [n for n, g in groups.items() if layers & _makers(g)]:
            del groups[name]
            whole[name] = reason
    shapes = {name: p.shape for name, p in probe.named_parameters()}
    shapes |= {name: b.shape for name, b in probe.named_buffers()}
    graph = ChannelGraph(groups, whole, shapes, _macs(probe, images[:1]))
    graph = _verified(graph, probe, images)
    for name, reason in graph.whole.items():
        logger.debug("channels of %s stay: %s", name, reason)
    if not graph.groups:
        raise nothing_left(graph)
    return graph


def nothing_left(graph: ChannelGraph) -> UserError:
    """The error for a network without a group that may shrink."""
    reasons = list(dict.fromkeys(graph.whole.values()))
    return UserError(
        "No channels can be removed from this model.",
        f"All {len(graph.whole)} groups of channels stay: {'; '.join(reasons)}."
        if reasons
        else "It has no group of channels.",
        "Remove an entry of `keep_dense`, use another architecture, or prune single weights with "
        "gmp.",
    )


def macs_of(model: nn.Module, image_size: int) -> int:
    """Multiply-accumulates of one image; the model may lie on any device."""
    return _macs(_probe(model), _images(model, image_size)[:1])[0]


def _makers(group: Group) -> set[str]:
    """The layers whose output the channels are."""
    return {end.tensor for end in group.ends if end.kind == "output"}


def _probe(model: nn.Module) -> nn.Module:
    """A CPU copy in float32 with random weights of ordinary size, in eval mode."""
    probe = copy.deepcopy(model)
    if any(p.device.type == "meta" for p in probe.parameters()):
        probe = probe.to_empty(device="cpu")
        for buffer in probe.buffers():
            if not buffer.is_floating_point():
                buffer.zero_()
    probe = probe.to("cpu", torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*probe.parameters(), *probe.buffers()]:
            if not tensor.is_floating_point():
                continue
            if tensor.dim() > 1:
                fan_in = max(1, tensor.numel() // tensor.shape[0])
                tensor.normal_(0.0, fan_in**-0.5, generator=generator)
            else:  # batch norm's variance among them, which must be positive
                tensor.uniform_(0.5, 1.5, generator=generator)
    for parameter in probe.parameters():
        parameter.requires_grad_(True)
    return probe


def _images(model: nn.Module, image_size: int) -> Tensor:
    """Two images, from a generator of their own: a trace must not move the global one."""
    generator = torch.Generator().manual_seed(1)
    channels = getattr(model, "in_chans", 3)
    return torch.rand(2, channels, image_size, image_size, generator=generator)


def _macs(probe: nn.Module, image: Tensor) -> tuple[int, dict[str, int]]:
    """MACs of one image, in all and by weight of a convolution or linear layer."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        probe(image)
    # keys are "Class.path.of.module"; two FLOPs are one MAC
    flops = {k.partition(".")[2]: sum(v.values()) for k, v in counter.get_flop_counts().items()}
    layers = {
        f"{path}.weight": flops[path] // 2
        for path, module in probe.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear) and path in flops
    }
    return counter.get_total_flops() // 2, layers


def _coupled(probe: nn.Module, image: Tensor) -> tuple[dict[str, Group], dict[str, str]]:
    """The groups as Torch-Pruning sees them, and why others stay."""
    pruning = _torch_pruning()
    try:
        with torch.enable_grad():
            # fresh objects for every argument: the library's defaults are shared and change
            dependencies = pruning.DependencyGraph().build_dependency(
                probe,
                example_inputs=image,
                forward_fn=lambda network, x: network(x),
                unwrapped_parameters=[],
                customized_pruners={},
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
            found = list(dependencies.get_all_groups(ignored_layers=[]))
    except Exception as error:  # a tracer fails in whatever way the traced code makes it fail
        raise UserError(
            "The channels of this model cannot be traced.",
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            "Use another architecture (resnet, mobilenet and vgg work), or prune single weights "
            "with gmp.",
        ) from error
    modules = {id(module): path for path, module in probe.named_modules()}
    parameters = {id(parameter): name for name, parameter in probe.named_parameters()}
    order = {path: number for number, path in enumerate(modules.values())}
    groups, whole = [], {}
    for item in found:
        root = modules[id(item[0].dep.target.module)]
        ends, reason = _ends(dependencies, item, modules, parameters, pruning)
        if reason:
            whole[root] = reason
        else:
            makers = [e.tensor.rpartition(".")[0] for e in ends if e.kind == "output"]
            name = min(makers, key=lambda path: order[path])  # found in no particular order
            groups.append(Group(name, len(item[0].idxs), tuple(ends)))
    groups.sort(key=lambda group: order[group.name])
    return {group.name: group for group in groups}, whole


def _ends(
    dependencies: Any,
    item: Any,
    modules: Mapping[int, str],
    parameters: Mapping[int, str],
    pruning: Any,
) -> tuple[list[End], str]:
    """The ends of one group of Torch-Pruning, or the reason why the group stays."""
    ends: list[End] = []
    for entry in item:
        target = entry.dep.target
        if target.type == pruning.ops.OPTYPE.OUTPUT:
            return [], "it is the output of the network"
        if any(root is None for root in entry.root_idxs):
            return [], "its channels cannot be followed"
        channels, places = torch.tensor(entry.root_idxs), torch.tensor(entry.idxs)
        if isinstance(target.module, nn.Parameter):
            name = parameters[id(target.module)]
            d = target.pruning_dim % target.module.dim()
            ends.append(End(name, d, "other", channels, places))
            continue
        makes = dependencies.is_out_channel_pruning_fn(entry.dep.handler)
        tensors = _tensors(target.module, makes)
        if tensors is None:
            return [], f"it passes through {type(target.module).__name__}"
        path = modules.get(id(target.module), "")
        own = {n for n, _ in target.module.named_parameters(recurse=False)}
        own |= {n for n, _ in target.module.named_buffers(recurse=False)}
        ends += [
            End(f"{path}.{name}" if path else name, d, kind, channels, places)
            for name, d, kind in tensors
            if name in own
        ]
    return ends, ""


def _tensors(module: nn.Module, makes: bool) -> list[tuple[str, int, Kind]] | None:
    """Tensors of a layer that shrink, with dimension and kind; None for a layer not handled."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
        # A depthwise convolution loses its filter whichever side is asked for.
        depthwise = not isinstance(module, nn.Linear) and 1 < module.groups == module.out_channels
        if makes or depthwise:
            return [("weight", 0, "output"), ("bias", 0, "shift")]
        return [("weight", 1, "input")]
    if isinstance(module, _BatchNorm):
        running: list[tuple[str, int, Kind]] = [("running_mean", 0, "other")]
        running.append(("running_var", 0, "other"))
        return [("weight", 0, "scale"), ("bias", 0, "shift"), *running]
    if isinstance(module, nn.LayerNorm):
        return [("weight", 0, "other"), ("bias", 0, "shift")]
    if isinstance(module, nn.PReLU):
        return [("weight", 0, "other")] if module.num_parameters > 1 else []
    return None if any(True for _ in module.parameters()) else []


def _verified(graph: ChannelGraph, probe: nn.Module, images: Tensor) -> ChannelGraph:
    """The groups without whose first channel the network computes what it does with it at zero."""
    names = [name for name, group in graph.groups.items() if group.channels > 1]
    reason = "without one of its channels the network does not compute what it does with a zero"
    graph = graph.only(names, "it has one channel")
    if not names or not _differs(graph, probe, images, names):
        return graph
    good = [name for name in names if not _differs(graph, probe, images, [name])]
    graph = graph.only(good, reason)
    if good and (problem := _differs(graph, probe, images, good)):
        raise UserError(
            "Channels cannot be removed from this model.",
            f"Each group of channels can go alone, but not together: {problem}.",
            "Use another architecture, or prune single weights with gmp.",
        )
    return graph


@torch.no_grad()
def _differs(graph: ChannelGraph, probe: nn.Module, images: Tensor, names: Iterable[str]) -> str:
    """What goes wrong when the first channel of these groups is removed; empty for nothing."""
    alive = graph.all_alive()
    for name in names:
        alive[name][0] = False
    masked, removed = copy.deepcopy(probe), copy.deepcopy(probe)
    graph.zero(masked, {name: ~left for name, left in alive.items()})
    graph.plan(alive).apply(removed)
    try:
        found, expected = removed(images), masked(images)
    except Exception as error:  # the network's own code, at a width it was not written for
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if found.shape != expected.shape:
        return f"the output has shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    difference = float((found - expected).abs().max())
    return "" if difference <= TOLERANCE * float(expected.abs().max()) else "the output changes"


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise UserError(
            "Structured pruning needs the package torch-pruning.",
            "It is not installed.",
            "pip install 'sparse-transfer[structured]'",
        ) from error
    return torch_pruning

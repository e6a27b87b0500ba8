"""Runs of nodes of a traced network, and a copy of it with a region in the place of each run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

from torch import fx, nn

Run = Sequence[fx.Node]


def runs_of(
    graph: fx.GraphModule,
    joins: Callable[[fx.Node, Run], bool],
    counts: Callable[[fx.Node], bool],
) -> list[list[fx.Node]]:
    """Runs of consecutive nodes, those of which at least one counts.

    Consecutive in the order of execution: nothing outside can depend on the inside and be needed by
    it.

    Args:
        joins: whether a node can be in the run that stands before it, which may be empty.
        counts: whether a region is worth it for that node.
    """
    runs: list[list[fx.Node]] = [[]]
    for node in graph.graph.nodes:
        if joins(node, runs[-1]):
            runs[-1].append(node)
        elif node.op not in ("get_attr", "placeholder"):
            runs.append([])
    return [run for run in runs if any(map(counts, run))]


def with_regions(
    module: nn.Module,
    graph: fx.GraphModule,
    runs: Sequence[Run],
    region: Callable[[Run, list[fx.Node], list[fx.Node]], nn.Module],
    instead: Mapping[fx.Node, nn.Module] | None = None,
) -> fx.GraphModule:
    """A copy of the graph with `module`'s children, parameters and buffers.

    Args:
        region: makes the module of a run from it, the nodes that it reads and those of it that are
            read outside; called with the values of the former, it returns a tuple of the latter.
        instead: modules that take the place of single nodes, with the same arguments.
    """
    instead = instead or {}
    copied = fx.Graph()
    into: dict[fx.Node, fx.Node] = {}
    last_of = {run[-1]: run for run in runs}
    inside = {node for run in runs for node in run}
    made: dict[str, nn.Module] = {}
    for node in graph.graph.nodes:
        if node in instead:
            name = f"sparse_layer_{len(made)}"
            made[name] = instead[node]
            into[node] = copied.call_module(name, tuple(into[n] for n in node.args))
        elif node not in inside:
            into[node] = copied.node_copy(node, lambda n: into[n])
        elif node in last_of:
            run = last_of[node]
            sources = list(dict.fromkeys(n for m in run for n in m.all_input_nodes if n not in run))
            leaving = [n for n in run if any(user not in run for user in n.users)]
            name = f"sparse_region_{len(made)}"
            made[name] = region(run, sources, leaving)
            values = copied.call_module(name, tuple(into[n] for n in sources))
            for number, n in enumerate(leaving):
                into[n] = copied.call_function(operator.getitem, (values, number))
    copied.lint()
    root = nn.Module()
    for name, child in (*module.named_children(), *made.items()):
        root.add_module(name, child)
    for name, parameter in module.named_parameters(recurse=False):
        root.register_parameter(name, parameter)
    for name, buffer in module.named_buffers(recurse=False):
        root.register_buffer(name, buffer)
    return fx.GraphModule(root, copied, type(module).__name__)

"""Batch norms folded into the convolutions before them, for inference.

The network is traced by torch.fx with convolutions, norms, linear layers and what timm marks as
untraceable as leaves. A norm is folded where it alone reads a convolution that is used once. timm's
`BatchNormAct2d` keeps its activation. Folding changes results by rounding only; zero weights stay
zero, since a filter is scaled as a whole.
"""

from __future__ import annotations

import copy
from typing import Any, final

from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

LEAVES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.LayerNorm, nn.GroupNorm)


@final
class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type[nn.Module], ...] = ()) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._notrace = (*leaves, *get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LEAVES, *self._notrace)) or super().is_leaf_module(
            m, module_qualified_name
        )


def fold_batch_norms(model: nn.Module) -> tuple[nn.Module, str]:
    """A copy of the model in eval mode with batch norms folded, and a word on what was done.

    The copy computes the same function. Where torch.fx cannot trace the model the copy is unfused
    and the word says why.
    """
    model = copy.deepcopy(model).eval()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if not norms:
        return model, "no batch norm to fold"
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # tracing runs the model's own code on symbols: anything may happen
        reason = str(error).partition("\n")[0] or type(error).__name__
        return model, f"batch norm not folded: torch.fx cannot trace the model ({reason})"
    modules: dict[Any, nn.Module] = dict(model.named_modules())
    uses: dict[Any, int] = {}  # a shared module must not be folded twice
    for node in graph.nodes:
        if node.op == "call_module":
            uses[node.target] = uses.get(node.target, 0) + 1
    folded = 0
    for node in graph.nodes:
        norm = modules.get(node.target) if node.op == "call_module" else None
        before = node.args[0] if node.args else None
        if not isinstance(norm, nn.BatchNorm2d) or not isinstance(before, fx.Node):
            continue
        conv = modules.get(before.target) if before.op == "call_module" else None
        used_once = uses.get(before.target) == uses[node.target] == 1 and len(before.users) == 1
        if isinstance(conv, nn.Conv2d) and used_once:
            _replace(model, before.target, fuse_conv_bn_eval(conv, norm))
            _replace(model, node.target, _activation(norm))
            folded += 1
    return fx.GraphModule(model, graph), f"{folded} of {norms} batch norms folded"


def trace(model: nn.Module, leaves: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """The model as a graph of layers, what `fold_batch_norms` returns where there is a norm.

    Args:
        leaves: more kinds of modules that are not looked into.

    Raises:
        Exception: torch.fx cannot trace it; whatever the model's own code raises on symbols.
    """
    return (
        model
        if isinstance(model, fx.GraphModule)
        else fx.GraphModule(model, _Tracer(leaves).trace(model))
    )


def _activation(norm: nn.BatchNorm2d) -> nn.Module:
    """What a timm norm does after normalising; nothing for a plain one."""
    after = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*after) if after else nn.Identity()


def _replace(model: nn.Module, name: Any, module: nn.Module) -> None:
    parent, _, child = str(name).rpartition(".")
    setattr(model.get_submodule(parent), child, module)

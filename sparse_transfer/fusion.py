"""Batch norms folded into the convolutions before them, for inference.

The network is traced by torch.fx with convolutions, norms, linear layers and what timm marks as
untraceable as leaves. A norm is folded where it alone reads a convolution that is used once. timm's
`BatchNormAct2d` keeps its activation. Folding changes results by rounding only; zero weights stay
zero, since a filter is scaled as a whole.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any, final

from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

LEAVES = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.LayerNorm, nn.GroupNorm)


class _Writable(fx.Proxy):
    """A symbol that notes what is done in place."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


@final
class _Tracer(fx.Tracer):
    def __init__(self, leaves: tuple[type[nn.Module], ...] = (), exact: bool = False) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self._exact = exact
        self._notrace = (*leaves, *get_notrace_modules())

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """As ever, but where the trace is exact `x += y` is not taken for `x = x + y`."""
        return _Writable(node, self) if self._exact else super().proxy(node)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """As ever, but what stands before a leaf as a hook is run: torch.fx leaves it out."""
        if not self._exact and self.is_leaf_module(m, self.path_of_module(m)):
            for hook in m._forward_pre_hooks.values():
                changed = hook(m, args)
                if changed is not None:
                    args = changed if isinstance(changed, tuple) else (changed,)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._exact and has_hooks(m):
            return True
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


def trace(
    model: nn.Module, leaves: tuple[type[nn.Module], ...] = (), *, exact: bool = False
) -> fx.GraphModule:
    """The model as a graph of the layers that its output needs.

    Args:
        leaves: more kinds of modules that are not looked into.
        exact: modules with hooks are leaves, called with their hooks, and what is done in place
            stays where its result is not read.

    Raises:
        Exception: torch.fx cannot trace it; whatever the model's own code raises on symbols.
    """
    traced = model
    if not isinstance(traced, fx.GraphModule):  # `fold_batch_norms` has traced what has norms
        traced = fx.GraphModule(model, _Tracer(leaves, exact).trace(model))
    traced.graph.eliminate_dead_code(
        (lambda node: node.is_impure() or is_in_place(node)) if exact else None
    )
    traced.recompile()
    return traced


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called before or after the module, or with its gradients."""
    return any(getattr(module, name) for name in _HOOKS)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_in_place(node: fx.Node) -> bool:
    """Whether a node of a graph module writes into its first argument."""
    if node.op == "call_module":
        root = node.graph.owning_module
        assert root is not None
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    is_positional = node.target in (functional.relu, functional.relu6) and True in node.args
    is_named = bool(node.kwargs.get("inplace")) or is_positional
    return is_named or node.target in _IN_PLACE or (name.endswith("_") and name[:1] != "_")


_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


def _activation(norm: nn.BatchNorm2d) -> nn.Module:
    """What a timm norm does after normalising; nothing for a plain one."""
    after = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    return nn.Sequential(*after) if after else nn.Identity()


def _replace(model: nn.Module, name: Any, module: nn.Module) -> None:
    parent, _, child = str(name).rpartition(".")
    setattr(model.get_submodule(parent), child, module)

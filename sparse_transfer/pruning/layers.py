"""Which weights may be pruned: convolutions and linear layers, minus what is kept dense.

Biases and normalisation parameters are never pruned. `keep_dense` entries are `first_conv`, `head`,
`depthwise`, or regular expressions searched for in parameter names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import nn

from sparse_transfer.errors import UserError


def prunable(model: nn.Module, keep_dense: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """Weights of `Conv1d`, `Conv2d` and `Linear`, by parameter name in module order.

    `first_conv` is the first convolution, `head` the classifier (timm's `get_classifier()`, else
    the last `Linear`), `depthwise` every convolution with one input channel per group. These three
    may match nothing (a transformer has no depthwise layer); an expression may not. Weights that
    a module holds outside such layers (`nn.MultiheadAttention`'s packed projection) are not
    prunable; timm's attention uses `Linear` layers, which are.

    Raises:
        UserError: an expression is malformed or matches nothing, or nothing is left to prune.
    """
    modules = {
        f"{path}.weight" if path else "weight": module
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    }
    dense: set[str] = set()
    for entry in keep_dense:
        dense |= _matches(entry, model, modules)
    layers = {
        name: module.weight
        for name, module in modules.items()
        if name not in dense and isinstance(module.weight, nn.Parameter)
    }
    if not layers:
        raise UserError(
            "There is nothing left to prune.",
            f"The model has {len(modules)} convolutions and linear layers, all of them kept dense.",
            "Remove an entry of `keep_dense`.",
        )
    return layers


def _matches(entry: str, model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    if entry == "first_conv":
        convolutions = [n for n, m in modules.items() if isinstance(m, nn.Conv1d | nn.Conv2d)]
        return set(convolutions[:1])
    if entry == "head":
        return _head(model, modules)
    if entry == "depthwise":
        return {name for name, module in modules.items() if _is_depthwise(module)}
    try:
        found = {name for name in modules if re.search(entry, name)}
    except re.error as error:
        raise UserError(
            f"`keep_dense` entry '{entry}' is not a regular expression.", str(error)
        ) from error
    if not found:
        raise UserError(
            f"`keep_dense` entry '{entry}' matches no prunable weight.",
            "It is searched for in names such as " + ", ".join(list(modules)[:3]) + ".",
            "Special entries are first_conv, head and depthwise.",
        )
    return found


def _head(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    get_classifier = getattr(model, "get_classifier", None)
    if get_classifier is None:
        return set([n for n, m in modules.items() if isinstance(m, nn.Linear)][-1:])
    heads = get_classifier()  # a tuple where a distilled model has two
    parts = heads if isinstance(heads, tuple | list) else (heads,)
    inside = {id(m) for part in parts if isinstance(part, nn.Module) for m in part.modules()}
    return {name for name, module in modules.items() if id(module) in inside}


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d) and 1 < module.groups == module.in_channels

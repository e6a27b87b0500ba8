"""The options of pruning methods, and what the methods of one arm must agree on."""

from __future__ import annotations

from typing import Any

from sparse_transfer import config, plugins
from sparse_transfer.errors import UserError, nearest


def options_of(method: config.MethodSpec) -> Any:
    """The validated options of a method.

    Raises:
        UserError: no such pruner, or an option that it does not have.
    """
    from pydantic import ValidationError

    plugin = plugins.load("pruner", method.name)
    try:
        return plugin.Options.model_validate(method.options)
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(map(str, item['loc'])) or 'options'}: {item['msg']}"
            for item in error.errors()
        )
        fields = list(plugin.Options.model_fields)
        unknown = [str(e["loc"][0]) for e in error.errors() if e["type"] == "extra_forbidden"]
        close = [match for name in unknown for match in nearest(name, fields)]
        guess = f"Did you mean {' or '.join(close)}? " if close else ""
        known = ", ".join(fields) or "none"
        raise UserError(
            f"The options of pruner `{method.name}` are wrong.",
            problems,
            f"{guess}Its options: {known}.",
        ) from error


def has_target(method: config.MethodSpec) -> bool:
    """Whether a method prunes to a sparsity that is asked for."""
    return plugins.load("pruner", method.name).has_target


def check_targets(arm: config.Arm) -> None:
    """Refuse an arm whose methods do not mean one thing by a sparsity, or lack one.

    Raises:
        UserError: weights and channels in one arm, or a method with a target and no sparsity.
    """
    pruning = [method for method in arm.prune.methods if method.name != "dense"]
    wanting = [method.title for method in pruning if has_target(method)]
    if wanting and not arm.prune.sparsities:
        raise UserError(
            f"`prune.sparsities` of arm {arm.name} is empty.",
            f"{wanting[0]} needs a target.",
            "List at least one, for example `sparsities: [0.9]`.",
        )
    plugins_ = {method.title: plugins.load("pruner", method.name) for method in pruning}
    channels = [title for title, plugin in plugins_.items() if plugin.removes_channels]
    if channels and len(channels) < len(pruning):
        other = next(title for title in plugins_ if title not in channels)
        raise UserError(
            f"Arm {arm.name} compares {channels[0]} with {other} at one sparsity.",
            f"For {channels[0]} a sparsity is the share of MACs removed, for {other} of weights.",
            "Put them into two arms.",
        )

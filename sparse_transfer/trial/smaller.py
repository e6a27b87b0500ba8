"""The rival of a pruned model: a smaller dense model of its family, with weights of its own.

A family is what timm names alike but for the size: resnet50 and resnet18, mobilenetv2_100 and
mobilenetv2_050, vit_small_patch16_224 and vit_tiny_patch16_224. Of those with weights the one is
taken whose multiply-accumulates are nearest to those that remain after pruning.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

from timm.models import list_models

from sparse_transfer import config, cost, hub, models
from sparse_transfer.errors import UserError
from sparse_transfer.model_source import Source, resolve
from sparse_transfer.pruning.layers import prunable

_SIZE_AFTER_UNDERSCORE = re.compile(r"([a-z]+(?:v\d+)?_)(\d+|[a-z]\d+|[a-z]+)(.*)")
_SIZE_AT_ONCE = re.compile(r"([a-z]+)(\d+)(.*)")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Choice:
    """A smaller model, or the reason why there is none."""

    model: config.ModelSpec | None
    reason: str = ""


def named(name: str, weights: str, like: config.ModelSpec, image_size: int) -> Choice:
    """The model that the user names, its weights read once to see that they are there.

    Raises:
        UserError: it cannot be loaded; or it has pretrained weights and `like` has random ones, or
            the other way round, which would compare trainings and not sizes.
    """
    if weights == "pretrained" and like.weights == "random":
        weights = "random"
    if weights == "random" and like.weights != "random":
        raise UserError(
            f"--smaller {name} cannot start from random weights.",
            f"{like.title} starts from trained ones: that would compare trainings, not sizes.",
            "Give --smaller-weights FILE, or --smaller none.",
        )
    label = name if len(name) <= 40 else name.rpartition("/")[2]
    spec = config.ModelSpec(name=name, label=label, weights=weights)
    models.build(spec, num_classes=None, image_size=image_size, seed=0)
    return Choice(spec)


def nearest(
    spec: config.ModelSpec, sparsity: float, keep_dense: tuple[str, ...], image_size: int
) -> Choice:
    """The member of the family whose MACs are nearest to what pruning leaves.

    Args:
        sparsity: share of the prunable weights that will be zero, taken to be the same in all
            layers, for the MACs that remain.
    """
    source = resolve(spec)
    family = relatives(source.architecture)
    if not family:
        return Choice(None, f"timm has no other size of {source.architecture}")
    usable = _with_weights(family, spec)
    if not usable:
        shown = ", ".join(family[:4]) + (", …" if len(family) > 4 else "")
        return Choice(
            None,
            f"no weights of {shown} are on this machine and the Hugging Face Hub does not answer; "
            "trained from random weights it would compare trainings, not sizes",
        )
    dense, left = remaining_macs(source, spec, sparsity, keep_dense, image_size)
    sizes = {one.name: _macs(one, image_size) for one in usable}
    smaller = [one for one in usable if 0 < sizes[one.name] < dense]
    if not smaller:
        return Choice(None, f"{source.architecture} is the smallest of its family with weights")
    return Choice(min(smaller, key=lambda one: abs(math.log(sizes[one.name] / left))))


def relatives(architecture: str) -> list[str]:
    """Architectures whose names differ from this one in the size alone."""
    own = _parts(architecture)
    if own is None:
        return []
    return [name for name in list_models() if name != architecture and _parts(name) == own]


def remaining_macs(
    source: Source,
    spec: config.ModelSpec,
    sparsity: float,
    keep_dense: tuple[str, ...],
    image_size: int,
) -> tuple[int, float]:
    """MACs of one image through the dense model, and those left at equal sparsity in all layers."""
    model = models.skeleton(spec, num_classes=None, image_size=image_size).model
    counted = cost.macs(model, image_size)
    gone = sum(counted.layers[n].dense for n in prunable(model, keep_dense) if n in counted.layers)
    return counted.dense, counted.dense - sparsity * gone


def _parts(architecture: str) -> tuple[str, str] | None:
    """What stands before and after the size in a name."""
    found = _SIZE_AFTER_UNDERSCORE.fullmatch(architecture) or _SIZE_AT_ONCE.fullmatch(architecture)
    return (found.group(1), found.group(3)) if found else None


def _with_weights(family: list[str], like: config.ModelSpec) -> list[config.ModelSpec]:
    if like.weights == "random":
        return [config.ModelSpec(name=name, label=name, weights="random") for name in family]
    specs = [config.ModelSpec(name=name, label=name) for name in family]
    known = {spec.name: repository for spec in specs if (repository := _repository(spec))}
    cached = [spec for spec in specs if spec.name in known and _is_cached(known[spec.name])]
    if cached or not known or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return cached
    answers = not hub.unreachable(next(iter(known.values())))
    return [spec for spec in specs if spec.name in known] if answers else []


def _repository(spec: config.ModelSpec) -> str | None:
    try:
        return resolve(spec).config.get("hf_hub_id")
    except UserError:  # timm knows the architecture only
        return None


def _is_cached(repository: str) -> bool:
    return any(hub.cached(repository, name) for name in _WEIGHT_FILES)


def _macs(spec: config.ModelSpec, image_size: int) -> int:
    try:
        model = models.skeleton(spec, num_classes=None, image_size=image_size).model
        return cost.macs(model, image_size).dense
    except (UserError, RuntimeError):  # of a fixed input size that is another
        return 0

"""Weights of other projects as plain tensors: prefixes, wrapped layers, pairs, thresholds.

Undone here, each by its own mark in the names and in any combination:

    module.X, _orig_mod.X          DistributedDataParallel and torch.compile
    X._layer.weight, X._weight_mask, X._bias_mask
                                   the wrapped layers of WoodFisher, AC/DC and the transfer study
    X.weight_orig, X.weight_mask   the pairs of `torch.nn.utils.prune`
    X.sparseThreshold              STR: the weight is sign(w) max(|w| - sigmoid(s), 0) with this s
    a vector `mask` beside the state dict
                                   M-FAC: the kept weights of all pruned layers, one after another
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sparse_transfer import weights
from sparse_transfer.errors import UserError

PREFIXES = ("module.", "_orig_mod.")
THRESHOLD, INSIDE = ".sparseThreshold", "._layer"
WRAPPED = {"._weight_mask": ".weight", "._bias_mask": ".bias"}


@dataclass(frozen=True)
class Stored:
    """A foreign file, every tensor plain.

    Attributes:
        marks: the names as they are in the file, without prefixes.
        state: name → tensor, masks and thresholds applied, floating point as float32.
        masks: name of a weight → bool (True = kept), for those that the file states a mask or a
            threshold for.
        has_vector: the file holds M-FAC's vector of kept weights.
    """

    marks: frozenset[str]
    state: dict[str, Tensor]
    masks: dict[str, Tensor] = field(default_factory=dict)
    has_vector: bool = False


def read(path: Path) -> Stored:
    """Open a weight file and undo how its project stores weights.

    Raises:
        UserError: it cannot be read as plain tensors, or its parts do not fit each other.
    """
    content = weights.contents(path)
    vector = content.get("mask") if isinstance(content, dict) else None
    state = {_bare(name): tensor for name, tensor in weights.state_dict(content, path).items()}
    stored = plain(state)
    if torch.is_tensor(vector) and vector.ndim == 1 and not stored.masks:
        return _split_vector(stored, vector, path)
    return stored


def plain(state: Mapping[str, Tensor]) -> Stored:
    """Undo wrapped layers, pairs and thresholds of a state dict without prefixes.

    Raises:
        UserError: a mask belongs to no weight, or has another shape; a threshold is not one number.
    """
    tensors = {name: _single(tensor) for name, tensor in state.items()}
    masks: dict[str, Tensor] = {}
    for name in list(tensors):
        owner = _masked_by(name, tensors)
        if owner is not None:
            masks[owner] = tensors.pop(name) != 0
    thresholds = {
        name.removesuffix(THRESHOLD) + ".weight": tensors.pop(name)
        for name in list(tensors)
        if name.endswith(THRESHOLD)
    }
    values = {_owner(name): tensor for name, tensor in tensors.items()}
    for name, mask in masks.items():
        if name not in values or values[name].shape != mask.shape:
            found = tuple(values[name].shape) if name in values else "there is no such tensor"
            raise UserError(
                f"The mask of {name} does not fit it.",
                f"The mask has the shape {tuple(mask.shape)}, the tensor: {found}.",
                "The file is incomplete, or of another project than those this program knows.",
            )
        values[name] = values[name] * mask
    for name, threshold in thresholds.items():
        if threshold.numel() != 1:
            raise UserError(
                f"The threshold of {name} cannot be used.",
                f"STR has one number for a layer; this tensor has the shape "
                f"{tuple(threshold.shape)}.",
                "Save the state dict with the thresholds applied, and say --sparse.",
            )
        if name in values:
            values[name] = soft_threshold(values[name], threshold)
            masks[name] = values[name] != 0
    kept = {name: mask for name, mask in masks.items() if name.endswith(".weight")}
    return Stored(frozenset(state), values, kept)


def soft_threshold(weight: Tensor, s: Tensor) -> Tensor:
    """STR's weight (arXiv 2002.03231, eq. 1): sign(w) max(|w| - sigmoid(s), 0), `s` one number."""
    return weight.sign() * (weight.abs() - s.reshape(()).sigmoid()).clamp_min(0)


def _masked_by(name: str, tensors: Mapping[str, Tensor]) -> str | None:
    """The tensor that a stored mask belongs to; None for what is no mask."""
    for ending, parameter in WRAPPED.items():
        if name.endswith(ending):
            return _owner(name.removesuffix(ending) + parameter)
    if name.endswith("_mask") and name.removesuffix("_mask") + "_orig" in tensors:
        return name.removesuffix("_mask")
    return None


def _owner(name: str) -> str:
    """The plain name of a tensor: outside its wrappers, not the first of a pair."""
    return name.replace(INSIDE, "").removesuffix("_orig")


def _split_vector(stored: Stored, vector: Tensor, path: Path) -> Stored:
    """M-FAC's vector, piece by piece in the order of the state dict.

    Its own rule for what is pruned is "conv or fc in the name"; some of its models have neither
    there, so all weights of two dimensions and more are tried next.
    """
    many = [name for name, t in stored.state.items() if t.ndim > 1 and name.endswith(".weight")]
    named = [name for name in many if "conv" in name or "fc" in name]
    for names in (named, many):
        sizes = [stored.state[name].numel() for name in names]
        if sum(sizes) == vector.numel():
            pieces = zip(names, vector.split(sizes), strict=True)
            masks = {name: (m != 0).reshape(stored.state[name].shape) for name, m in pieces}
            state = stored.state | {name: stored.state[name] * m for name, m in masks.items()}
            return Stored(stored.marks, state, masks, has_vector=True)
    raise UserError(
        f"The vector `mask` in {path} cannot be assigned to layers.",
        f"It has {vector.numel():,} entries; the convolutions and linear layers have "
        f"{sum(stored.state[name].numel() for name in many):,} weights.",
        "Save the state dict alone, with the masked weights at zero.",
    )


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor

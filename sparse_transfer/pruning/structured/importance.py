"""How important a channel is: from the tensors of its group, mapped to the group's channels.

Every criterion scores a channel at each tensor of the group that it can read, and the group's
score is the mean over these tensors. A channel that appears several times in a tensor (a
flattened feature map) counts with the sum of its appearances.

- `l1`, `l2`: sum of |w|, of w^2 (not its root) over the filters that make the channel, the slices
  that read it, and the batch-norm scale. Source: Li et al., arXiv 1608.08710; group mean as in
  DepGraph, arXiv 2301.12900, whose library gives the same numbers.
- `bn_gamma`: |scale| of batch norm. Source: Liu et al., arXiv 1708.06519.
- `fpgm`: sum of Euclidean distances from a filter to all others of its layer. Source: He et al.,
  arXiv 1811.00250; distances between the filters themselves, not between their absolute values.
- `taylor`: square of the loss's derivative by a gate on the channel. Source: Molchanov et al. 2019
  (NVlabs/Taylor_pruning). Gates need no forward hook: at batch norm the derivative is
  scale * its gradient + shift * its gradient, at a reading layer the sum of w * g over the slice.
  A filter under batch norm is not read: the output does not change with the filter's length, so
  its own sum of w * g is zero whatever the channel does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Importance = Literal["l1", "l2", "bn_gamma", "fpgm", "taylor"]
Role = Literal["output", "input", "scale", "other"]


@dataclass(frozen=True)
class Slice:
    """Where the live channels of a group lie in one weight.

    Args:
        weight: parameter name.
        dim: the dimension that shrinks.
        role: `output` filters make the channel, `input` slices read it, `scale` is batch norm's.
        channels: (n,) long, numbers of the channels …
        places: (n,) long, … and where each lies along `dim`.
    """

    weight: str
    dim: int
    role: Role
    channels: Tensor
    places: Tensor


def read(importance: Importance, slices: Sequence[Slice]) -> list[Slice]:
    """The slices that an importance reads; a group without any cannot be scored."""
    wanted = _roles(importance, {part.role for part in slices})
    return [part for part in slices if part.role in wanted]


@torch.no_grad()
def score(
    importance: Importance,
    slices: Sequence[Slice],
    channels: int,
    tensors: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
) -> Tensor:
    """(channels,) float32 scores of one group, higher = keep, on the device of the tensors.

    Args:
        slices: the group's weights.
        tensors: parameters by name.
        gradients: by the same names; read by `taylor` alone.
    """
    rows = torch.stack(
        [
            _to_channels(_of_slice(importance, part, tensors, gradients), part, channels)
            for part in read(importance, slices)
        ]
    )
    return (rows.square() if importance == "taylor" else rows).mean(0)


def fan(
    importance: Importance,
    slices: Sequence[Slice],
    channels: int,
    shapes: Mapping[str, torch.Size],
) -> float:
    """Weights behind the score of one channel: the mean over the tensors that it reads."""
    sizes = [
        shapes[part.weight].numel() / shapes[part.weight][part.dim] * len(part.places) / channels
        for part in read(importance, slices)
    ]
    return sum(sizes) / len(sizes)


def _roles(importance: Importance, present: set[Role]) -> set[Role]:
    if importance in ("l1", "l2"):
        return {"output", "input", "scale"}
    if importance == "bn_gamma":
        return {"scale"}
    if importance == "fpgm":
        return {"output"}
    return {"input", "scale"} if "scale" in present else {"input", "output"}


def _of_slice(
    importance: Importance,
    part: Slice,
    tensors: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
) -> Tensor:
    """One number for each place along the dimension that shrinks."""
    weight = tensors[part.weight].detach().float()
    rows = weight.transpose(0, part.dim).flatten(1) if weight.dim() > 1 else weight[:, None]
    if importance == "fpgm":
        return torch.cdist(rows, rows).sum(1)
    if importance != "taylor":
        return (rows.square() if importance == "l2" else rows.abs()).sum(1)
    product = weight * gradients[part.weight].float()
    gate = product.transpose(0, part.dim).flatten(1).sum(1) if weight.dim() > 1 else product
    bias = part.weight.removesuffix("weight") + "bias"
    if part.role != "input" and bias in gradients:
        gate = gate + tensors[bias].detach().float() * gradients[bias].float()
    return gate


def _to_channels(values: Tensor, part: Slice, channels: int) -> Tensor:
    total = values.new_zeros(channels)
    return total.index_add_(0, part.channels, values[part.places])


def lowest_counts(scores: Sequence[Tensor], room: Sequence[int]) -> Callable[[int], list[int]]:
    """One ranking over all layers: n → how many of the n lowest scores each layer has.

    Of a layer only its `room` lowest channels are candidates. Ties go to the first layer.

    Args:
        scores: (channels,) by layer, comparable across layers.
    """
    candidates = [s.sort(stable=True).values[:most] for s, most in zip(scores, room, strict=True)]
    owner = torch.repeat_interleave(
        torch.arange(len(candidates)), torch.tensor([len(c) for c in candidates])
    )
    ranked = owner[torch.cat(candidates).argsort(stable=True)] if candidates else owner

    def rule(total: int) -> list[int]:
        return torch.bincount(ranked[:total], minlength=len(candidates)).tolist()

    return rule

"""Which weights go: scores (higher = keep), exact selection, and selection in stages.

A criterion is a score. A method with several criteria is a list of stages: each stage but the
last narrows the active weights to a pool of those that it would remove, and the last one
removes from that pool. Gradual magnitude pruning has one stage, FGGP has two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sparse_transfer.pruning.allocation import Allocation, keep_count, keep_counts, pattern_of
from sparse_transfer.pruning.masks import Masks, diverged

Scores = Mapping[str, Tensor]

CHUNK = 2**20  # scores looked at together, so that temporaries stay in the cache


@dataclass(frozen=True)
class Stage:
    """One criterion, and how many candidates it hands on.

    Args:
        scores: name → float tensor of the weight's shape, higher = keep.
        pool: (active, to remove) → candidates passed to the next stage; None for the last stage.
    """

    scores: Scores
    pool: Callable[[int, int], int] | None = None


@final
class Magnitude(Mapping[str, Tensor]):
    """Absolute values in float32, computed when a layer is asked for and not kept."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name].detach().abs().float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def magnitude(values: Mapping[str, Tensor]) -> Scores:
    """Absolute values in float32, of weights or of gradients.

    Raises:
        UserError: a value is NaN or infinite.
    """
    for name, value in values.items():
        if not bool(torch.isfinite(torch.linalg.vector_norm(value.detach(), torch.inf))):
            raise diverged(name)
    return Magnitude(values)


def random(layers: Mapping[str, Tensor], generator: torch.Generator) -> Scores:
    """Uniform random scores, drawn on the CPU so that every device sees the same."""
    return {
        name: torch.rand(layer.shape, generator=generator).to(layer.device)
        for name, layer in layers.items()
    }


def lamp(scores: Scores, masks: Masks) -> Scores:
    """Scores that are comparable across layers, float32: LAMP.

    The square of a weight's score, as a share of the sum of the squares in its layer that rank no
    lower. Scaling a layer changes nothing, the order inside it stays, and the best of a layer has
    exactly 1, so that one ranking over all layers empties none. Pruned weights score 0 and are in
    no sum; of equal scores the first ranks higher.

    Source: Lee et al. 2021, arXiv 2010.07611. Summed in float64.
    """
    shares = {}
    for name, score in scores.items():
        squares = score.masked_fill(~masks[name], 0.0).double().square().reshape(-1)
        ranked, order = squares.sort(descending=True, stable=True)
        share = ranked / ranked.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
        shares[name] = (
            torch.empty_like(share).scatter_(0, order, share).float().reshape(score.shape)
        )
    return shares


def strongest(scores: Tensor, pattern: tuple[int, int]) -> Tensor:
    """The N best of every M consecutive input channels, as a bool tensor; of equal ones the first.

    Args:
        scores: (out, in, *kernel), `in` a multiple of M.
        pattern: (N, M).
    """
    n, m = pattern
    by_position = scores.movedim(1, -1)  # hardware multiplies along the input channels
    groups = by_position.reshape(-1, m)
    best = groups.sort(dim=1, descending=True, stable=True).indices[:, :n]
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True)
    return kept.reshape(by_position.shape).movedim(-1, 1)


def remove(masks: Masks, stages: Sequence[Stage], sparsity: float, allocation: Allocation) -> Masks:
    """New masks of exactly the given sparsity, a part of the old ones.

    Guarantees the integer count `keep_count(total, sparsity)` in total (and by layer where the
    allocation fixes it), at least one weight in each layer, and ties broken by index: of equal
    scores the one that comes first is kept. Masks that are already as sparse come back as is.
    Under an N:M pattern the N best of each group (by the last stage) stay, and the rest go in one
    ranking over all layers: at sparsity 1 - N/M exactly N are left, before that N or more.
    """
    keep = keep_count(masks.total, sparsity)
    active = masks.counts()
    if keep >= sum(active.values()):
        return masks
    pattern = pattern_of(allocation)
    if pattern is not None:
        return Masks(_remove_outside(masks, stages, keep, pattern))
    if allocation == "lamp":
        stages = [Stage(lamp(stage.scores, masks), stage.pool) for stage in stages]
    if allocation in ("global", "lamp"):
        return Masks(_remove_from(masks, list(masks), stages, keep))
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    counts = keep_counts(allocation, shapes, keep, active)
    kept: dict[str, Tensor] = {}
    for name, count in counts.items():
        kept |= _remove_from(masks, [name], stages, count)
    return Masks(kept)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Exactly `count` of the smallest scores, as a bool tensor; of equal ones the last go first.

    A radix selection in two passes of 16 bits each: no sort, linear time, no limit on the size
    (`benchmarks/pruning_overhead.py` times it).

    Args:
        scores: (n,) float32, no NaN; +inf is chosen last.
        count: 0 to n.
    """
    order = torch.empty_like(scores, dtype=torch.int32)
    for part, source in zip(order.split(CHUNK), scores.split(CHUNK), strict=True):
        part.copy_(_ordered_integers(source))
    return _lowest(order, count)


def _lowest(order: Tensor, count: int) -> Tensor:
    """`lowest` of numbers that were made by `_ordered_integers`, (n,) int32."""
    if count <= 0:
        return torch.zeros_like(order, dtype=torch.bool)
    parts = order.split(CHUNK)
    high_digit, before = _digit_of_rank(((part >> 16) + 2**15 for part in parts), count)
    high = high_digit - 2**15
    inside = [part[(part >> 16) == high] & 0xFFFF for part in parts]
    low_digit, before_low = _digit_of_rank(inside, count - before)
    threshold = (high << 16) + low_digit
    ties = torch.cat([(part == threshold).nonzero() + i * CHUNK for i, part in enumerate(parts)])
    chosen = order < threshold
    chosen[ties[len(ties) - (count - before - before_low) :, 0]] = True
    return chosen


def _ordered_integers(scores: Tensor) -> Tensor:
    """int32 numbers in the same order as the float32 scores (adding 0 makes -0.0 equal to 0.0)."""
    bits = (scores + 0.0).view(torch.int32)
    return bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))


def _digit_of_rank(parts: Iterable[Tensor], rank: int) -> tuple[int, int]:
    """The digit (0..65535) of the rank-th smallest (from 1), and how many digits are below it."""
    counts = [torch.bincount(digits, minlength=2**16) for digits in parts]
    running = torch.stack(counts).sum(0).cumsum(0)
    digit = int(torch.searchsorted(running, rank))
    return digit, int(running[digit - 1]) if digit else 0


def _remove_from(
    masks: Masks, names: Sequence[str], stages: Sequence[Stage], keep: int
) -> dict[str, Tensor]:
    """Select over all weights of `names` together, leaving `keep` of them."""
    sizes = [masks[name].numel() for name in names]
    active = _joined(masks, names)
    left = active & ~_dropped(active, active, names, stages, keep)
    if not all(bool(part.any()) for part in left.split(sizes)):
        # A layer would be empty: the best weight of each layer is out of the question.
        open_to_choice = active.clone()
        best = _joined(stages[-1].scores, names).masked_fill_(~active, -torch.inf)
        offset = 0
        for part in best.split(sizes):
            open_to_choice[offset + int(part.argmax())] = False
            offset += part.numel()
        left = active & ~_dropped(active, open_to_choice, names, stages, keep)
    return _by_layer(left, masks, names)


def _remove_outside(
    masks: Masks, stages: Sequence[Stage], keep: int, pattern: tuple[int, int]
) -> dict[str, Tensor]:
    """Select over all weights that are not among the N best of their group."""
    names = list(masks)
    scores = stages[-1].scores
    held = {n: strongest(scores[n].masked_fill(~masks[n], -torch.inf), pattern) for n in names}
    active = _joined(masks, names)
    left = active & ~_dropped(active, active & ~_joined(held, names), names, stages, keep)
    return _by_layer(left, masks, names)


def _dropped(
    active: Tensor, candidates: Tensor, names: Sequence[str], stages: Sequence[Stage], keep: int
) -> Tensor:
    """What the stages remove, as a bool tensor over the joined weights."""
    before = int(torch.count_nonzero(active))
    for stage in stages:
        wanted = before - keep if stage.pool is None else stage.pool(before, before - keep)
        assert wanted >= before - keep, "a pool smaller than the removal: refused by the schedule"
        if wanted < int(torch.count_nonzero(candidates)):
            candidates = _lowest(_orders(stage.scores, names, candidates), wanted)
    return candidates


def _orders(scores: Scores, names: Sequence[str], candidates: Tensor) -> Tensor:
    """Joined int32 ranks of the scores, the highest where there is no candidate.

    Layer by layer, so that of all scores only these four bytes each are held at once.
    """
    order = torch.empty_like(candidates, dtype=torch.int32)
    offset = 0
    for name in names:
        flat = scores[name].reshape(-1)
        for source in flat.split(CHUNK):
            end = offset + len(source)
            order[offset:end] = _ordered_integers(source)
            offset = end
    return order.masked_fill_(~candidates, torch.iinfo(torch.int32).max)


def _joined(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """A new flat tensor of the values of these layers."""
    return torch.cat([tensors[name].reshape(-1) for name in names])


def _by_layer(joined: Tensor, masks: Masks, names: Sequence[str]) -> dict[str, Tensor]:
    """The inverse of `_joined`."""
    parts = joined.split([masks[name].numel() for name in names])
    return {name: part.reshape(masks[name].shape) for name, part in zip(names, parts, strict=True)}

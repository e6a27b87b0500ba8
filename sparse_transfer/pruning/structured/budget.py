"""How many channels each layer gives up at a step: integers with an exact sum, as pure functions.

Layer l with C_l channels takes the share C_l exp(-kappa z_l) of the step's n channels, where z_l
says how important the layer is relative to the others. kappa = 0 is the same fraction of every
layer; kappa -> infinity takes everything from the least important one. Ours: no published formula
exists for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from torch import Tensor

TINY = 1e-30  # keeps the logarithm of a layer without any importance finite
ALIKE = 1e-6  # logarithms of float32 scores closer than this are equal


def spare(live: int, before: int, min_channels: int, max_share: float) -> int:
    """Channels that a layer can still lose: down to `min_channels`, and to what `max_share` leaves.

    Args:
        live: channels now.
        before: channels at the start, of which at most `max_share` go in all.
    """
    least = max(min_channels, math.ceil(before * (1 - max_share) - 1e-9))
    return max(0, live - least)


def budget(
    total: int, channels: Sequence[int], z: Sequence[float], kappa: float, room: Sequence[int]
) -> list[int]:
    """Channels to take from each layer, `total` in all, at most `room` from each.

    What a full layer cannot give is redistributed over the others in the same proportions;
    rounding is by largest remainder, ties to the first layer.

    Args:
        total: channels to take, between 0 and sum(room).
        channels: C_l, by layer.
        z: relative importance of each layer.
        kappa: how strongly z counts, >= 0.
        room: the most that each layer may give.
    """
    assert 0 <= total <= sum(room), f"{total} channels from layers that can give {sum(room)}"
    real = [0.0] * len(room)
    open_layers = [i for i in range(len(room)) if room[i] > 0]
    left = float(total)
    while open_layers:
        lowest = min(z[i] for i in open_layers)  # so that the largest weight never underflows
        weights = {i: channels[i] * math.exp(-kappa * (z[i] - lowest)) for i in open_layers}
        scale = left / math.fsum(weights.values())
        full = [i for i in open_layers if scale * weights[i] >= room[i]]
        if not full:
            for i in open_layers:
                real[i] = scale * weights[i]
            break
        for i in full:
            real[i] = float(room[i])
            left -= room[i]
        open_layers = [i for i in open_layers if i not in full]
    counts = [math.floor(x + 1e-9) for x in real]
    by_remainder = sorted(range(len(real)), key=lambda i: counts[i] - real[i])
    with_room = [i for i in by_remainder if counts[i] < room[i]]
    for i in with_room[: total - sum(counts)]:
        counts[i] += 1
    assert sum(counts) == total
    return counts


def relative_importance(scores: Sequence[Tensor], fans: Sequence[float]) -> list[float]:
    """z_l = (log A_l - median) / MAD over layers, A_l = median over channels / sqrt(fan).

    The logarithm makes it free of scale, medians make it deaf to outliers. MAD is the median
    absolute deviation from the median; where it is zero (most layers alike) every z is 0.

    Args:
        scores: (channels,) importance of each layer's channels, >= 0.
        fans: weights behind one channel's score, by layer.
    """
    logs = [
        math.log(max(float(s.median()), TINY) / math.sqrt(fan))
        for s, fan in zip(scores, fans, strict=True)
    ]
    if not logs:
        return []
    centre = median(logs)
    spread = median(abs(value - centre) for value in logs)
    if spread < ALIKE:
        return [0.0] * len(logs)
    return [(value - centre) / spread for value in logs]

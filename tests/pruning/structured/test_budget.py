"""Channel budgets: the worked example, exact sums, bounds, and the layer statistic."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_transfer.pruning.structured.budget import budget, relative_importance


def test_the_worked_example() -> None:
    channels, z = [64, 128, 256], [1.0, 0.0, -1.0]
    weights = [c * math.exp(-x) for c, x in zip(channels, z, strict=True)]
    shares = [w / sum(weights) for w in weights]
    assert shares == pytest.approx([0.0278, 0.1510, 0.8212], abs=5e-4)
    assert budget(30, channels, z, 1.0, channels) == [1, 4, 25]
    assert budget(30, channels, z, 0.0, channels) == [4, 9, 17]  # 4.29, 8.57, 17.14


def test_what_a_full_layer_cannot_give_goes_to_the_others() -> None:
    assert budget(11, [10, 10, 10], [0, 0, 0], 0.0, [1, 10, 10]) == [1, 5, 5]
    assert budget(9, [10, 20, 30], [0, 0, 0], 0.0, [10, 0, 30]) == [2, 0, 7]  # 2.25 and 6.75
    assert budget(21, [10, 10, 10], [0, 0, 0], 0.0, [1, 10, 10]) == [1, 10, 10]
    # kappa without bound: all from the least important layer, then from the next
    assert budget(12, [10, 10, 10], [2, 0, 1], 1e6, [10, 10, 10]) == [0, 10, 2]
    assert budget(0, [3, 4], [0, 1], 1.0, [3, 4]) == [0, 0]
    assert budget(0, [], [], 1.0, []) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 300), st.floats(-4, 4), st.integers(0, 300)),
        min_size=1,
        max_size=12,
    ),
    st.floats(0, 50),
    st.floats(0, 1),
)
def test_sums_are_exact_and_bounds_hold(
    layers: list[tuple[int, float, int]], kappa: float, share: float
) -> None:
    channels, z = [c for c, _, _ in layers], [x for _, x, _ in layers]
    room = [min(c, r) for c, _, r in layers]
    total = round(share * sum(room))
    counts = budget(total, channels, z, kappa, room)
    assert sum(counts) == total
    assert all(0 <= count <= most for count, most in zip(counts, room, strict=True))
    uniform = budget(total, channels, z, 0.0, channels)
    exact = [total * c / sum(channels) for c in channels]
    assert all(abs(count - real) < 1 for count, real in zip(uniform, exact, strict=True))


def test_the_statistic_by_hand() -> None:
    scores = [torch.tensor([math.e**k, math.e**k, 1e9]) for k in (3.0, 1.0, -1.0)]
    # medians over channels e^3, e, e^-1; logs 3, 1, -1; median 1; deviations 2, 0, 2; MAD 2
    assert relative_importance(scores, [1, 1, 1]) == pytest.approx([1, 0, -1])
    # sqrt(fan) e^2 takes 2 from the first log: 1, 1, -1; deviations 0, 0, 2: most are alike
    assert relative_importance(scores, [math.e**4, 1, 1]) == [0.0, 0.0, 0.0]
    assert relative_importance([], []) == []


def test_the_statistic_is_free_of_scale_and_survives_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(9, generator=generator) * 10**k for k in range(5)]
    fans = [1.0, 9.0, 4.0, 2.0, 30.0]
    scaled = relative_importance([1e-4 * s for s in scores], fans)
    assert scaled == pytest.approx(relative_importance(scores, fans), abs=1e-5)
    dead = relative_importance([*scores, torch.zeros(4)], [*fans, 1.0])
    assert all(map(math.isfinite, dead)) and dead[-1] == min(dead)

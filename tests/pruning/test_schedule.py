"""Schedules: the cubic's values by hand, exact ends, windows that are too short."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.schedule import cosine, cubic, gradual, to_step


def test_cubic_values_of_the_woodfisher_schedule() -> None:
    values = [cubic((t - 1) / 39, 0.05, 0.9) for t in range(1, 37, 5)]
    expected = [0.05, 0.3368, 0.5505, 0.7019, 0.8017, 0.8607, 0.8896, 0.8991]
    assert values == pytest.approx(expected, abs=5e-5)


def test_shares_of_ten_equal_updates() -> None:
    values = [cubic(k / 10, 0.0, 1.0) for k in range(11)]
    shares = [after - before for before, after in zip(values, values[1:], strict=False)]
    expected = [0.271, 0.217, 0.169, 0.127, 0.091, 0.061, 0.037, 0.019, 0.007, 0.001]
    assert shares == pytest.approx(expected)


def test_granet_rate_by_quarters() -> None:
    rates = [cosine(quarter / 4, 0.5, 0.005) for quarter in range(5)]
    assert rates == pytest.approx([0.5, 0.4275, 0.2525, 0.0775, 0.005], abs=5e-5)


def test_steps_are_nearest_and_halves_go_up() -> None:
    assert [to_step(0.25, t) for t in (0, 2, 4, 6, 1000)] == [0, 1, 1, 2, 250]


@given(
    start=st.floats(0, 0.9),
    width=st.floats(0.01, 1),
    updates=st.integers(1, 60),
    total_steps=st.integers(0, 300),
    initial=st.floats(0, 0.5),
    final=st.floats(0.5, 0.999),
)
def test_gradual_is_exact_increasing_and_inside_its_window(
    start: float, width: float, updates: int, total_steps: int, initial: float, final: float
) -> None:
    end = start + width
    assume(end <= 1)
    first, last = to_step(start, total_steps), to_step(end, total_steps)
    assume(last - first >= min(2, updates))
    points = gradual(
        start=start,
        end=end,
        updates=updates,
        total_steps=total_steps,
        initial=initial,
        final=final,
    )
    steps, values = list(points), list(points.values())
    assert len(steps) == min(updates, last - first)
    assert first < steps[0] and steps[-1] == last
    assert steps == sorted(set(steps))
    assert values == sorted(values)
    assert values[-1] == final
    assert values[0] >= initial


def test_small_study_window() -> None:
    points = gradual(start=0.1, end=0.75, updates=50, total_steps=1000, initial=0, final=0.95)
    assert list(points) == list(range(113, 751, 13))
    assert points[750] == 0.95


def test_one_update_is_one_shot_at_the_end() -> None:
    assert gradual(start=0, end=1, updates=1, total_steps=1, initial=0, final=0.9) == {1: 0.9}


@pytest.mark.parametrize(("start", "end"), [(0.1, 0.75), (0.0, 0.5), (0.45, 0.55), (0.3, 0.7)])
def test_too_few_steps_are_refused_and_the_advice_works(start: float, end: float) -> None:
    def points(total_steps: int) -> dict[int, float]:
        return gradual(
            start=start, end=end, updates=50, total_steps=total_steps, initial=0, final=0.9
        )

    for total_steps in (0, 1):
        with pytest.raises(UserError, match="Train for at least") as refusal:
            points(total_steps)
        enough = int(refusal.value.hint.split(" steps")[0].rsplit(" ", 1)[1])
        assert all(len(points(steps)) >= 2 for steps in range(enough, enough + 50))

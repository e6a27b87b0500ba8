"""Step sizes in the shape of learning rates: known curves, independent integrals, refusals."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.structured.schedule import StepSize, done, milestones

SHAPES: list[StepSize] = [shape for shape in get_args(StepSize) if shape != "learning_rate"]


def of(shape: StepSize, updates: int, total: int = 100, **window: float) -> dict[int, float]:
    start, end = window.get("start", 0.0), window.get("end", 1.0)
    return milestones(
        shape,
        start=start,
        end=end,
        updates=updates,
        total_steps=total,
        learning_rate=lambda step: 1.0 if step <= total / 2 else 0.25,
    )


def test_cosine_and_cubic_have_the_published_values() -> None:
    shares = list(of("cosine", 4).values())
    assert shares == pytest.approx([0.4751, 0.8183, 0.9751, 1.0], abs=1e-4)
    cubic = np.diff([0.0, *of("cubic", 10).values()])
    published = [0.271, 0.217, 0.169, 0.127, 0.091, 0.061, 0.037, 0.019, 0.007, 0.001]
    assert cubic == pytest.approx(published, abs=1e-12)


# the step sizes, written down independently of their integrals
SIZES = {
    "constant": lambda x: 1.0,
    "step": lambda x: 1.0 if x < 0.5 else 0.1 if x < 0.75 else 0.01,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "cubic": lambda x: (1 - x) ** 2,
    "warmup": lambda x: x / 0.1 if x < 0.1 else (1 + math.cos(math.pi * (x - 0.1) / 0.9)) / 2,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shares_are_integrals_of_the_step_size(shape: StepSize) -> None:
    middles = (np.arange(20_000) + 0.5) / 20_000
    sizes = np.array([SIZES[shape](x) for x in middles])
    integral = np.concatenate([[0.0], np.cumsum(sizes) / sizes.sum()])
    for progress in (0.0, 0.05, 0.1, 0.3, 0.5, 0.6, 0.9, 1.0):
        assert done(shape, progress) == pytest.approx(integral[round(20_000 * progress)], abs=1e-6)


def test_proportional_to_the_learning_rate() -> None:
    # 50 steps at 1 and 50 at a quarter: 62.5 in all
    assert of("learning_rate", 4) == pytest.approx({25: 0.4, 50: 0.8, 75: 0.9, 100: 1.0})


@pytest.mark.parametrize("shape", get_args(StepSize))
def test_every_schedule_grows_to_exactly_one(shape: StepSize) -> None:
    points = of(shape, 7, total=50, start=0.1, end=0.62)
    assert list(points) == sorted(points) and len(points) == 7
    assert min(points) > 5 and max(points) == 31 and points[31] == 1.0
    shares = list(points.values())
    assert all(0 < a <= b <= 1 for a, b in zip(shares, shares[1:], strict=False))


def test_one_update_is_at_the_start_and_few_steps_give_few_updates() -> None:
    assert of("cubic", 1, start=0.5) == {50: 1.0}
    assert of("cubic", 1, total=0, start=0.5) == {0: 1.0}
    assert list(of("constant", 50, total=10, start=0.1, end=0.6)) == [2, 3, 4, 5, 6]


def test_what_cannot_be_scheduled_is_refused() -> None:
    with pytest.raises(UserError, match="gradually in 10 training steps") as refusal:
        of("cubic", 5, total=10, start=0.1, end=0.2)
    assert "at least 20 steps" in refusal.value.hint
    window = {"start": 0.0, "end": 1.0, "updates": 3, "total_steps": 10}
    with pytest.raises(UserError, match="There is no learning rate"):
        milestones("learning_rate", **window, learning_rate=None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="zero from step 1 to step 10"):
        milestones("learning_rate", **window, learning_rate=lambda step: 0.0)  # type: ignore[arg-type]

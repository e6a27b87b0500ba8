"""Fronts of cost and error, and interpolation at equal cost without extrapolation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_transfer.statistics.fronts import at_cost, beaten_by, front

POINTS = [(1.0, 0.1), (0.5, 0.2), (0.6, 0.3), (0.5, 0.25), (2.0, 0.1)]
finite = st.tuples(st.integers(1, 9), st.integers(0, 9))


def test_a_beaten_point_names_its_rival_of_least_error():
    assert [beaten_by(POINTS, place) for place in range(5)] == [None, None, 1, 1, 0]


def test_equal_points_do_not_beat_each_other():
    assert beaten_by([(1.0, 0.1), (1.0, 0.1)], 0) is None


@given(st.lists(finite, min_size=1, max_size=9))
def test_what_nothing_beats_is_the_front(points):
    kept = {point for place, point in enumerate(points) if beaten_by(points, place) is None}
    assert kept == set(front(points))


def test_interpolation_is_linear_in_the_logarithm_of_the_cost():
    points = [(0.4, 0.10), (0.1, 0.30), (0.05, 0.50)]
    assert at_cost(0.2, points) == pytest.approx(0.20)  # halfway between 0.1 and 0.4 in the log
    assert at_cost(0.1, points) == pytest.approx(0.30)
    assert at_cost(0.05 * math.sqrt(2), points) == pytest.approx(0.40)


@pytest.mark.parametrize("cost", [0.049, 0.41, 1.0])
def test_nothing_is_extrapolated(cost):
    assert math.isnan(at_cost(cost, [(0.4, 0.10), (0.05, 0.50)]))


@given(st.floats(0.05, 0.4))
def test_an_interpolated_error_lies_between_its_neighbours(cost):
    assert 0.1 - 1e-9 <= at_cost(cost, [(0.4, 0.10), (0.05, 0.50)]) <= 0.5 + 1e-9

"""The paired difference of two error shares: published intervals, coverage, symmetry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_transfer.statistics.intervals import wilson_interval
from sparse_transfer.statistics.paired_shares import paired_difference

COUNTS = st.tuples(*[st.integers(0, 40)] * 4).filter(any)


def test_airway_example_of_a_textbook():
    # data of Bentur et al. 2009, as analysed by Fagerland, Lydersen & Laake: [-0.507, -0.026]
    found = paired_difference(1, 1, 7, 12)
    assert found.estimate == pytest.approx(6 / 21)
    assert (found.low, found.high) == pytest.approx((0.026, 0.507), abs=5e-4)


@given(COUNTS)
def test_swapping_the_models_turns_the_interval_round(counts: tuple[int, ...]):
    both, first, second, neither = counts
    one = paired_difference(both, first, second, neither)
    other = paired_difference(both, second, first, neither)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert -1 <= one.low <= one.estimate <= one.high <= 1


def test_models_that_never_err_have_an_interval_with_width():
    limits = wilson_interval(0, 50)
    found = paired_difference(0, 0, 0, 50)
    assert (found.low, found.high) == pytest.approx((-limits.high, limits.high))


def test_correlated_errors_make_it_narrower():
    apart = paired_difference(0, 20, 25, 55)
    together = paired_difference(18, 2, 7, 73)
    assert together.high - together.low < apart.high - apart.low


def test_it_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    shares = [0.08, 0.04, 0.09, 0.79]
    draws = generator.multinomial(150, shares, size=1500)
    limits = [paired_difference(*map(int, draw)) for draw in draws]
    covered = np.mean([one.low <= 0.05 <= one.high for one in limits])
    assert 0.935 < covered < 0.98


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="no counts"):
        paired_difference(0, 0, 0, 0)

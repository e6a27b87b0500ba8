"""Intervals against scipy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparse_transfer.statistics import (
    bca_interval,
    hierarchical_bootstrap,
    t_interval,
    wilson_interval,
)


def test_t_interval_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=6)
    found = t_interval(values, confidence=0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert found.estimate == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_value_has_no_interval():
    found = t_interval([0.3])
    assert found.estimate == 0.3
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert np.isnan(t_interval([]).estimate)


@given(st.integers(1, 3000), st.data())
def test_wilson_interval_agrees_with_scipy(n, data):
    successes = data.draw(st.integers(0, n))
    found = wilson_interval(successes, n)
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_wilson_interval_of_dtd_is_two_points_wide():
    """protocol.md 4.3: ±2.0 points at 74 % of the 1,880 test images of DTD."""
    found = wilson_interval(round(0.74 * 1880), 1880)
    assert (found.high - found.low) / 2 == pytest.approx(0.020, abs=0.0005)


@pytest.mark.parametrize("statistic", [np.mean, np.median, np.std])
def test_bca_agrees_with_scipy(statistic):
    values = np.random.default_rng(3).exponential(size=40)
    found = bca_interval(values, statistic, resamples=20_000)
    expected = stats.bootstrap(
        (values,), statistic, n_resamples=20_000, method="BCa", random_state=1
    ).confidence_interval
    slack = 0.05 * (expected.high - expected.low)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=slack)


def test_bca_without_spread_or_with_one_value():
    assert bca_interval([0.2, 0.2, 0.2]) == pytest.approx((0.2, 0.2, 0.2))
    assert np.isnan(bca_interval([0.2]).low)


def test_bca_is_a_function_of_its_seed():
    values = np.arange(8.0)
    assert bca_interval(values, seed=1) == bca_interval(values, seed=1)
    assert bca_interval(values, seed=1) != bca_interval(values, seed=2)


def test_hierarchical_bootstrap_with_one_seed_resamples_tasks_alone():
    """Then the replicates are means of T draws from r: variance var(r, ddof=0) / T."""
    generator = np.random.default_rng(0)
    dense = generator.uniform(0.2, 0.6, (40, 1))
    sparse = dense * (1 + generator.normal(0.1, 0.2, (40, 1)))
    ratios = (sparse / dense - 1).ravel()
    expected = 1.96 * ratios.std() / np.sqrt(40)
    for crossed in (True, False):
        found = hierarchical_bootstrap(dense, sparse, crossed=crossed)
        assert found.estimate == pytest.approx(ratios.mean())
        assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.06)


def test_a_lucky_seed_helps_all_tasks_only_where_seeds_are_crossed():
    """The same seed effect on all of 12 tasks does not average out over tasks; redrawn, it does."""
    luck = np.array([-0.2, -0.1, 0.0, 0.1, 0.2])
    dense = np.full((12, 5), 0.3)
    sparse = np.tile(0.3 * (1.1 + luck), (12, 1))
    crossed = hierarchical_bootstrap(dense, sparse, crossed=True)
    nested = hierarchical_bootstrap(dense, sparse, crossed=False)
    error = luck.std() / np.sqrt(5)
    assert (crossed.high - crossed.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert (nested.high - nested.low) / 2 == pytest.approx(1.96 * error / np.sqrt(12), rel=0.1)
    assert crossed.estimate == pytest.approx(0.1)


def test_nested_seeds_may_differ_in_number():
    found = hierarchical_bootstrap(
        [[0.2, 0.3], [0.4, 0.4, 0.4]], [[0.3, 0.3, 0.3], [0.4, 0.5]], crossed=False
    )
    assert found.estimate == pytest.approx(((0.3 / 0.25 - 1) + (0.45 / 0.4 - 1)) / 2)
    with pytest.raises(ValueError, match="same seeds"):
        hierarchical_bootstrap([[0.2, 0.3], [0.4, 0.4, 0.4]], [[0.3, 0.3], [0.4, 0.5, 0.1]])
    with pytest.raises(ValueError, match="without dense errors"):
        hierarchical_bootstrap([[0.0], [0.4]], [[0.3], [0.4]])

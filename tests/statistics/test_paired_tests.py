"""Paired tests against scipy, closed forms and tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparse_transfer.statistics import (
    friedman,
    holm,
    minimum_detectable_effect,
    sign_flip_test,
    tost,
    wilcoxon_test,
)

differences = st.lists(st.integers(-9, 9), min_size=1, max_size=9).map(
    lambda values: np.array(values) / 8
)


@pytest.mark.parametrize("n", [2, 5, 9])
def test_sign_flip_agrees_with_scipy(n):
    values = np.random.default_rng(n).normal(0.5, 1, n)
    exact = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    assert sign_flip_test(values) == pytest.approx(exact.pvalue)


def test_sign_flip_of_one_sign_has_the_smallest_p():
    assert sign_flip_test([1, 2, 3, 4, 5]) == 2 / 2**5
    assert sign_flip_test([0.1, 0.1, 0.1]) == 2 / 2**3
    assert sign_flip_test([0.0, 0.0]) == 1
    assert np.isnan(sign_flip_test([]))
    with pytest.raises(ValueError, match="too many"):
        sign_flip_test(np.ones(21))


@pytest.mark.parametrize("n", [3, 8, 12, 30])
def test_wilcoxon_agrees_with_scipys_exact_test(n):
    values = np.random.default_rng(n).normal(0.4, 1, n)
    expected = stats.wilcoxon(values, method="exact").pvalue
    assert wilcoxon_test(values) == pytest.approx(expected)


@given(differences.filter(lambda values: np.any(values != 0)))
def test_wilcoxon_is_exact_with_ties_and_zeros(values):
    """Against scipy's statistic under all sign patterns of the nonzero differences."""
    nonzero = values[values != 0]
    ranks = stats.rankdata(np.abs(nonzero))
    patterns = np.array(np.meshgrid(*[[-1, 1]] * len(nonzero))).reshape(len(nonzero), -1)
    sums = ranks @ patterns
    observed = ranks @ np.sign(nonzero)
    expected = min(1, 2 * min(np.mean(sums >= observed), np.mean(sums <= observed)))
    assert wilcoxon_test(values) == pytest.approx(expected)


def test_differences_that_are_equal_but_for_rounding_tie():
    values = np.array([0.1 + 0.2, -0.3, 0.5, 0.7, 0.8])
    assert wilcoxon_test(values) == wilcoxon_test([0.3, -0.3, 0.5, 0.7, 0.8])


def test_smallest_wilcoxon_p_of_twelve_tasks():
    assert wilcoxon_test(np.arange(1, 13)) == pytest.approx(0.00049, abs=5e-6)
    assert wilcoxon_test([0, 0]) == 1
    assert np.isnan(wilcoxon_test([]))


def test_an_incomplete_pair_is_refused():
    for test in (wilcoxon_test, sign_flip_test):
        with pytest.raises(ValueError, match="NaN"):
            test([0.1, float("nan")])


def test_holm_by_hand():
    """.005·4, .01·3, .03·2, then .04·1 raised to the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.02, np.nan, 0.5])
    assert adjusted[[0, 2]] == pytest.approx([0.04, 0.5])
    assert np.isnan(adjusted[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(values):
    p, adjusted = np.array(values), holm(values)
    assert np.all(adjusted >= p)
    assert np.all(adjusted <= np.minimum(1, p * len(p)) + 1e-12)
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)


def test_tost_agrees_with_two_t_tests_of_scipy():
    values = np.random.default_rng(0).normal(0.1, 1, 25)
    lower = stats.ttest_1samp(values, -0.5, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, 0.5, alternative="less").pvalue
    assert tost(values, 0.5) == pytest.approx(max(lower, upper))


def test_tost_is_the_90_percent_interval_inside_the_margin():
    values = np.random.default_rng(1).normal(0.1, 1, 25)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    margin = max(abs(interval.low), abs(interval.high))
    assert tost(values, margin) == pytest.approx(0.05)


def test_tost_without_spread_and_without_replicates():
    assert tost([0.1, 0.1], 0.2) == 0
    assert tost([0.3, 0.3], 0.2) == 1
    assert np.isnan(tost([0.1], 0.2))
    with pytest.raises(ValueError, match="margin"):
        tost([0.1, 0.2], 0)


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_detectable_effect_agrees_with_cohens_tables(effect, n):
    """n is the least number of pairs for 80 % power at this effect (two-sided .05)."""
    assert minimum_detectable_effect(1, n) <= effect < minimum_detectable_effect(1, n - 1)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_detectable_effect_is_found_in_four_of_five_experiments(n):
    effect = minimum_detectable_effect(1.0, n)
    samples = np.random.default_rng(n).normal(effect, 1, (40_000, n))
    found = stats.ttest_1samp(samples, 0, axis=1)
    assert np.mean((found.pvalue < 0.05) & (found.statistic > 0)) == pytest.approx(0.8, abs=0.01)


def test_detectable_effect_is_about_1_4_half_widths():
    """protocol.md 8.3 for 12 tasks; and it scales with sd."""
    half_width = stats.t.ppf(0.975, 11) / np.sqrt(12)
    assert minimum_detectable_effect(1, 12) / half_width == pytest.approx(1.4, abs=0.02)
    assert minimum_detectable_effect(0.3, 12) == pytest.approx(
        0.3 * minimum_detectable_effect(1, 12)
    )
    assert np.isnan(minimum_detectable_effect(0.1, 1))
    assert np.isnan(minimum_detectable_effect(float("nan"), 5))


@given(st.integers(3, 6), st.integers(2, 8), st.integers(0, 1000))
def test_friedman_agrees_with_scipy_with_ties(methods, blocks, seed):
    scores = np.random.default_rng(seed).integers(0, 4, (blocks, methods)).astype(float)
    scores[0] = np.arange(methods)  # not everything ties
    found = friedman(scores, higher_is_better=False)
    expected = stats.friedmanchisquare(*scores.T)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.mean_ranks == pytest.approx(stats.rankdata(scores, axis=1).mean(axis=0))


def test_friedman_gives_rank_one_to_the_best():
    assert friedman([[0.9, 0.5], [0.8, 0.7]]).mean_ranks == pytest.approx([1, 2])
    assert np.isnan(friedman([[0.5, 0.5], [0.7, 0.7]]).p)
    with pytest.raises(ValueError, match="full"):
        friedman([[0.5, np.nan]])

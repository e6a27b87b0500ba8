"""Relative error increase: by hand, and what must hold for all errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sparse_transfer.statistics import (
    aggregate,
    relative_error_by_seed,
    relative_error_increase,
    signs_agree,
)

errors = st.floats(0.01, 1.0)


def paired(shape):
    return st.tuples(arrays(float, shape, elements=errors), arrays(float, shape, elements=errors))


def test_by_hand():
    dense, sparse = np.array([0.1, 0.4]), np.array([0.15, 0.36])
    assert relative_error_increase(dense, sparse) == pytest.approx([0.5, -0.1])
    found = aggregate(dense, sparse)
    assert found.mean_of_ratios == pytest.approx(0.2)
    assert found.ratio_of_means == pytest.approx(0.02)
    assert found.geometric_mean == pytest.approx(np.sqrt(1.5 * 0.9) - 1)
    assert found.median == pytest.approx(0.2)
    assert (found.n, found.left_out) == (2, 0)
    assert found.sign_agreed


def test_aggregates_may_differ_in_sign():
    """A saturated task that gets worse weighs more in the mean of ratios."""
    found = aggregate([0.02, 0.5], [0.03, 0.45])
    assert found.mean_of_ratios > 0 > found.ratio_of_means
    assert not found.sign_agreed
    assert not signs_agree(0.1, 0.0)
    assert not signs_agree(0.1, float("nan"))


def test_a_task_without_dense_errors_has_no_ratio():
    assert np.isnan(relative_error_increase(0.0, 0.1))
    found = aggregate([0.0, 0.5], [0.1, 0.6])
    assert (found.n, found.left_out) == (1, 1)
    assert found.mean_of_ratios == pytest.approx(0.2)
    assert np.isnan(aggregate([0.0], [0.1]).mean_of_ratios)


def test_no_geometric_mean_without_sparse_errors():
    found = aggregate([0.2, 0.5], [0.0, 0.6])
    assert np.isnan(found.geometric_mean)
    assert not found.sign_agreed


@given(paired(6))
def test_order_of_the_means(pair):
    dense, sparse = pair
    found, ratios = aggregate(dense, sparse), relative_error_increase(dense, sparse)
    assert found.geometric_mean <= found.mean_of_ratios + 1e-9
    slack = 1e-9 * (1 + abs(ratios).max())
    assert ratios.min() - slack <= found.ratio_of_means <= ratios.max() + slack


@given(paired(4), st.floats(0.1, 10))
def test_scaling_all_errors_changes_nothing(pair, factor):
    dense, sparse = pair
    one, two = aggregate(dense, sparse), aggregate(factor * dense, factor * sparse)
    assert two.mean_of_ratios == pytest.approx(one.mean_of_ratios, abs=1e-9)
    assert two.ratio_of_means == pytest.approx(one.ratio_of_means, abs=1e-9)


@given(paired((3, 4)))
def test_values_by_seed_average_to_the_headline(pair):
    dense, sparse = pair
    by_seed = relative_error_by_seed(dense, sparse)
    expected = relative_error_increase(dense.mean(axis=1), sparse.mean(axis=1))
    assert by_seed.mean(axis=1) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_values_by_seed_are_the_ratios_to_first_order():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(2, 5, 6))
    for scale in (1e-2, 1e-3):
        dense, sparse = 0.3 + scale * noise[0], 0.4 + scale * noise[1]
        exact = sparse / dense - 1
        gap = relative_error_by_seed(dense, sparse) - exact
        assert np.abs(gap).max() < 60 * scale**2


def test_a_seed_without_errors_is_survived():
    values = relative_error_by_seed([[0.0, 0.2], [0.0, 0.0]], [[0.1, 0.2], [0.1, 0.2]])
    assert values[0].mean() == pytest.approx(0.5)
    assert np.isnan(values[1]).all()

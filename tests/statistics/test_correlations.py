"""Correlations: against scipy and closed forms; the upstream correlation by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparse_transfer.statistics.correlations import (
    correlation,
    logit,
    needed_correlation,
    upstream_correlation,
    upstream_points,
)
from tests.statistics.results import row

X = [0.1, 0.4, 0.2, 0.9, 0.5, 0.55, 0.3]
Y = [1.0, 2.5, 0.5, 3.0, 3.5, 2.0, 2.1]


def test_pearson_and_its_interval_are_those_of_scipy():
    found = correlation(X, Y)
    reference = stats.pearsonr(X, Y)
    limits = reference.confidence_interval(0.95)
    assert found.r == pytest.approx(reference.statistic)
    assert (found.low, found.high) == pytest.approx((limits.low, limits.high))
    assert found.n == 7


def test_spearman_is_that_of_scipy_and_its_interval_is_wider():
    found = correlation(X, Y, kind="spearman")
    assert found.r == pytest.approx(stats.spearmanr(X, Y).statistic)
    z, half = math.atanh(found.r), 1.959964 * math.sqrt(1.06 / 4)
    assert found.low == pytest.approx(math.tanh(z - half), abs=1e-6)
    assert found.high == pytest.approx(math.tanh(z + half), abs=1e-6)


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1, 2]), ([1, 1, 1, 1], X[:4])])
def test_two_points_or_a_constant_have_no_correlation(x, y):
    assert math.isnan(correlation(x, y).r)


def test_three_points_have_a_correlation_and_no_interval():
    found = correlation([1, 2, 3], [1, 2, 4])
    assert found.r > 0.9 and math.isnan(found.low)


def test_twelve_points_need_a_correlation_of_0_576():
    assert needed_correlation(12) == pytest.approx(0.576, abs=5e-4)
    assert math.isnan(needed_correlation(2))


@given(st.integers(4, 40))
def test_the_needed_correlation_is_where_scipy_says_five_percent(n):
    r = needed_correlation(n)
    t = r * math.sqrt((n - 2) / (1 - r * r))
    assert 2 * stats.t.sf(t, n - 2) == pytest.approx(0.05)


def test_a_perfect_accuracy_is_taken_half_an_example_inside():
    assert logit(0.5, 100) == 0
    assert logit(1.0, 50) == pytest.approx(math.log(0.99 / 0.01))
    assert np.isnan(logit(1.0, float("nan")))


def cells(values: dict[str, tuple[float, float, float]]) -> pd.DataFrame:
    """Accuracy upstream, on birds and on cars, of each method at 90 %; two seeds that agree."""
    rows = []
    for method, (above, birds, cars) in values.items():
        sparsity = 0.0 if method == "dense" else 0.9
        for seed in (0, 1):
            shared = {"n_test": 1000}
            rows.append(row(method, sparsity, "pictures", seed, above, mode="upstream", **shared))
            rows.append(row(method, sparsity, "birds", seed, birds, **shared))
            rows.append(row(method, sparsity, "cars", seed, cars, **shared))
    return pd.DataFrame(rows)


VALUES = {
    "dense": (0.80, 0.70, 0.90),
    "a": (0.75, 0.65, 0.88),
    "b": (0.70, 0.66, 0.80),
    "c": (0.60, 0.40, 0.85),
    "d": (0.55, 0.45, 0.60),
}


def test_points_are_centred_per_task_and_averaged():
    found = upstream_points(cells(VALUES)).set_index("method")
    logits = {
        name: [math.log(v / (1 - v)) for v in (birds, cars)]
        for name, (_, birds, cars) in VALUES.items()
    }
    centre = np.mean(list(logits.values()), axis=0)
    for name in VALUES:
        assert found.loc[name, "downstream"] == pytest.approx(np.mean(logits[name] - centre))
        assert found.loc[name, "upstream"] == pytest.approx(VALUES[name][0])
    assert found["downstream"].sum() == pytest.approx(0)
    assert set(found["n_tasks"]) == {2}


def test_the_correlation_is_that_of_logits_over_cells_and_again_within_a_sparsity():
    points = upstream_points(cells(VALUES))
    found = upstream_correlation(points).set_index("cells")
    above = [math.log(v[0] / (1 - v[0])) for v in VALUES.values()]
    ours = points.set_index("method").loc[list(VALUES), "downstream"]
    assert found.loc["all", "pearson"] == pytest.approx(stats.pearsonr(above, ours).statistic)
    assert found.loc["all", "spearman"] == pytest.approx(stats.spearmanr(above, ours).statistic)
    assert found.loc["all", "n"] == 5
    within = stats.pearsonr(above[1:], ours.iloc[1:]).statistic
    assert found.loc["90 % sparse", "pearson"] == pytest.approx(within)


def test_three_cells_are_too_few():
    few = {name: VALUES[name] for name in ("dense", "a", "b")}
    assert upstream_correlation(upstream_points(cells(few))).empty


def test_a_task_that_a_cell_lacks_does_not_enter_and_is_counted():
    table = cells(VALUES)
    gone = (table["method"] == "c") & (table["task"] == "cars")
    found = upstream_points(table[~gone])
    assert set(found["n_tasks"]) == {1} and set(found["n_tasks_left_out"]) == {1}


def test_without_upstream_accuracy_there_is_nothing():
    table = cells(VALUES)
    assert upstream_points(table[table["mode"] != "upstream"]).empty

"""Ranks over tasks: hand-computed, checked against scipy, holes shown and never averaged over."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy import stats

from sparse_transfer.statistics import compare
from sparse_transfer.statistics.ranks import critical_difference, rank_methods
from tests.statistics.results import row

# accuracy of a, b, c on four tasks; dense has 0.80 everywhere
SCORES = {
    "birds": (0.70, 0.75, 0.60),
    "cars": (0.71, 0.70, 0.65),
    "dogs": (0.81, 0.85, 0.60),
    "signs": (0.70, 0.70, 0.50),
}


def frame(scores=SCORES) -> pd.DataFrame:
    rows = []
    for task, values in scores.items():
        rows.append(row("dense", 0.0, task, 0, 0.80))
        rows += [
            row(method, 0.9, task, 0, value)
            for method, value in zip("abc", values, strict=True)
            if value is not None
        ]
    return pd.DataFrame(rows)


def test_mean_ranks_wins_and_test_are_those_of_the_table():
    ranking = rank_methods(compare(frame()).tasks)
    found = ranking.methods.set_index("method")
    # ranks: birds 2 1 3, cars 1 2 3, dogs 2 1 3, signs 1.5 1.5 3
    assert found["mean_rank"].to_dict() == {"a": 6.5 / 4, "b": 5.5 / 4, "c": 3.0}
    assert found["best_on"].to_dict() == {"a": 2, "b": 3, "c": 0}  # a tie counts for both
    assert found["better_than_dense"].to_dict() == {"a": 1, "b": 1, "c": 0}
    test = ranking.tests.iloc[0]
    columns = list(zip(*SCORES.values(), strict=True))
    reference = stats.friedmanchisquare(*columns)
    assert test["statistic"] == pytest.approx(reference.statistic)
    assert test["p"] == pytest.approx(reference.pvalue)
    assert (test["best"], test["n_methods"], test["n_tasks"]) == ("b", 3, 4)


def test_a_method_that_lacks_a_task_is_named_and_not_ranked():
    scores = SCORES | {"cars": (0.71, 0.70, None)}
    ranking = rank_methods(compare(frame(scores), allow_unequal=True).tasks)
    found = ranking.methods.set_index("method")
    assert math.isnan(found.loc["c", "mean_rank"])
    assert found.loc["c", "missing"] == "cars"
    assert found.loc["c", "n_tasks"] == 3
    # the others keep all four tasks: ranks of a are 2, 1, 2, 1.5
    assert found.loc["a", "mean_rank"] == 6.5 / 4
    assert ranking.tests.iloc[0]["n_methods"] == 2


def test_better_than_dense_is_judged_by_the_dense_models_of_the_same_seeds():
    dense, sparse = {0: 0.80, 1: 0.60}, {("a", 0): 0.78, ("b", 0): 0.81, ("b", 1): 0.61}
    rows = [
        row(method, sparsity, task, seed, value)
        for task in ("birds", "cars")
        for method, sparsity, seed, value in [
            *(("dense", 0.0, seed, value) for seed, value in dense.items()),
            *((method, 0.9, seed, value) for (method, seed), value in sparse.items()),
        ]
    ]
    ranking = rank_methods(compare(pd.DataFrame(rows), allow_unequal=True).tasks)
    found = ranking.methods.set_index("method")
    # a has seed 0 alone, where dense has .80; the mean of the dense seeds of a and b is .75
    assert found["better_than_dense"].to_dict() == {"a": 0, "b": 2}


@pytest.mark.parametrize(
    "scores",
    [
        {"birds": SCORES["birds"]},
        {"birds": (0.7, None, None), "cars": (0.7, None, None)},
        {"birds": (0.7, 0.6, None), "cars": (0.7, None, 0.6)},
    ],
)
def test_fewer_than_two_complete_methods_or_tasks_give_no_ranking(scores):
    ranking = rank_methods(compare(frame(scores), allow_unequal=True).tasks)
    assert ranking.methods.empty and ranking.tests.empty


@pytest.mark.parametrize(("methods", "quantile"), [(2, 1.960), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_has_the_published_quantiles(methods, quantile):
    # Demšar 2006, table 5(a)
    expected = quantile * math.sqrt(methods * (methods + 1) / (6 * 12))
    assert critical_difference(methods, 12) == pytest.approx(expected, rel=1e-3)

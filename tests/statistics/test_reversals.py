"""The reversal between modes: by hand, and the mean of the task-wise interaction."""

from __future__ import annotations

import pandas as pd
import pytest

from sparse_transfer.statistics import compare
from sparse_transfer.statistics.intervals import t_interval
from sparse_transfer.statistics.reversals import reversals
from tests.statistics.results import made

TASKS = ("birds", "cars", "dogs", "signs")


def two_modes() -> pd.DataFrame:
    linear = made({("a", 0.9): 0.05, ("b", 0.9): 0.40}, tasks=TASKS, mode="linear-sgd")
    full = made({("a", 0.9): 0.30, ("b", 0.9): 0.10}, tasks=TASKS, mode="full")
    return pd.concat([linear, full], ignore_index=True)


def sides(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    tasks = compare(frame).tasks
    return tasks[tasks["mode"] == "linear-sgd"], tasks[tasks["mode"] == "full"]


def test_it_is_the_mean_of_the_interaction_of_the_tasks():
    one, other = sides(two_modes())
    (row,) = reversals(one, other, [("a", "b")]).to_dict("records")
    sparse = [
        side[~side["is_dense"]].pivot(index="task", columns="method") for side in (one, other)
    ]
    linear, full = (wide["r"]["a"] - wide["r"]["b"] for wide in sparse)
    assert row["difference_1"] == pytest.approx(linear.mean())
    assert row["difference_2"] == pytest.approx(full.mean())
    expected = t_interval((linear - full).to_numpy())
    found = (row["interaction"], row["interaction_low"], row["interaction_high"])
    assert found == pytest.approx((expected.estimate, expected.low, expected.high))
    assert (row["n_tasks"], row["n_positive"], row["changes_places"]) == (4, 0, True)
    assert row["p"] == pytest.approx(2 / 2**4)  # all four tasks of one sign


def test_by_hand():
    linear = made({("a", 0.9): 0.3, ("b", 0.9): 0.1}, noise=0)
    full = made({("a", 0.9): 0.0, ("b", 0.9): 0.2}, noise=0, mode="full", profile="short")
    full["value"] = 1 - (1 - full["value"]) / 2  # half the errors: ratios stay
    (row,) = reversals(*sides(pd.concat([linear, full])), [("a", "b")]).to_dict("records")
    found = (row["difference_1"], row["difference_2"], row["interaction"])
    assert found == pytest.approx((0.2, -0.2, 0.4))
    assert (row["n_tasks"], row["n_positive"], row["changes_places"]) == (3, 3, True)


def test_exchanging_the_methods_exchanges_the_sign():
    one, other = reversals(*sides(two_modes()), [("a", "b"), ("b", "a")]).to_dict("records")
    assert one["interaction"] == pytest.approx(-other["interaction"])
    assert other["n_positive"] == 4


def test_a_pair_that_one_mode_lacks_is_left_out():
    frame = two_modes()
    frame = frame[~((frame["mode"] == "full") & (frame["method"] == "b"))]
    assert reversals(*sides(frame), [("a", "b"), ("a", "c")]).empty

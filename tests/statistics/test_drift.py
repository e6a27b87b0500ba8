"""The rule by which own and published results share a ranking, on frames made by hand."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_transfer.statistics import dense_drift, may_share_ranking
from tests.statistics.results import row


def dense(values: dict[str, float], **other) -> pd.DataFrame:
    return pd.DataFrame(
        [row("dense", 0.0, task, 0, value, **other) for task, value in values.items()]
    )


PUBLISHED = {"dtd": 0.74, "pets": 0.92}


@pytest.mark.parametrize(
    ("own", "verdicts", "shared"),
    [
        ({"dtd": 0.745, "pets": 0.915}, ["within one point"] * 2, True),
        ({"dtd": 0.75, "pets": 0.91}, ["within one point"] * 2, True),  # exactly on both bounds
        ({"dtd": 0.7501, "pets": 0.92}, ["protocol drift", "within one point"], False),
        ({"dtd": 0.74, "pets": 0.80}, ["within one point", "protocol drift"], False),
        ({"dtd": 0.60, "pets": 0.60}, ["protocol drift"] * 2, False),
        ({"dtd": 0.74}, ["within one point"], True),  # of the tasks that both have
        ({"digits": 0.74}, [], False),
    ],
    ids=[
        "inside",
        "exactly on",
        "just outside",
        "one task",
        "all",
        "fewer tasks",
        "no shared task",
    ],
)
def test_the_rule(own: dict[str, float], verdicts: list[str], shared: bool):
    table = dense_drift(dense(own), dense(PUBLISHED))
    assert table["verdict"].tolist() == verdicts
    assert may_share_ranking(table) is shared
    for found in table.to_dict("records"):
        difference = own[found["task"]] - PUBLISHED[found["task"]]
        assert found["difference"] == pytest.approx(difference)


def test_seeds_are_averaged_and_sparse_rows_are_not_read():
    own = pd.DataFrame(
        [
            row("dense", 0.0, "dtd", 0, 0.72, transfer_seed=0),
            row("dense", 0.0, "dtd", 0, 0.76, transfer_seed=1),
            row("gmp", 0.9, "dtd", 0, 0.10),
        ]
    )
    (found,) = dense_drift(own, dense({"dtd": 0.74})).to_dict("records")
    assert found["difference"] == pytest.approx(0.0) and found["verdict"] == "within one point"


@pytest.mark.parametrize(
    "other", [{"profile": "modern-linear"}, {"image_size": 224}, {"model": "x"}, {"mode": "full"}]
)
def test_another_protocol_has_nothing_to_be_held_against(other):
    table = dense_drift(dense(PUBLISHED, **other), dense(PUBLISHED))
    assert table.empty and not may_share_ranking(table)


def test_another_metric_is_another_number():
    table = dense_drift(dense(PUBLISHED, metric="mean_per_class"), dense(PUBLISHED))
    assert set(table["verdict"]) == {"another metric"} and not may_share_ranking(table)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-0.05, 0.05), min_size=1, max_size=5))
def test_one_task_outside_is_enough(gaps: list[float]):
    published = {f"t{number}": 0.5 for number in range(len(gaps))}
    own = {f"t{number}": 0.5 + gap for number, gap in enumerate(gaps)}
    table = dense_drift(dense(own), dense(published))
    near = [abs(0.5 - value) <= 0.01 + 1e-9 for value in own.values()]
    assert may_share_ranking(table) == all(near)

"""Curves over shots: by hand, and their intervals against scipy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sparse_transfer.report.cells import records
from sparse_transfer.statistics import few_shot_areas, few_shot_curves


def rows(values: dict[tuple[str, str, int], list[float]], seed: int = 0) -> pd.DataFrame:
    """(method, task, shots) → a value per draw."""
    return pd.DataFrame(
        {
            "arm": "main",
            "model": "net",
            "method": method,
            "sparsity": 0.0 if method == "dense" else 0.9,
            "upstream_seed": seed,
            "task": task,
            "shots": shots,
            "draw": draw,
            "value": value,
        }
        for (method, task, shots), drawn in values.items()
        for draw, value in enumerate(drawn)
    )


def by_method(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in records(frame)}


STUDY = {
    ("dense", "a", 1): [0.5, 0.6, 0.7],
    ("dense", "b", 1): [0.8, 0.8, 0.8],
    ("gmp", "a", 1): [0.4, 0.5, 0.6],
    ("gmp", "b", 1): [0.7, 0.6, 0.8],
}


def test_points_by_hand():
    made = by_method(few_shot_curves(rows(STUDY)))
    by_draw = [(0.4 + 0.7) / 2, (0.5 + 0.6) / 2, (0.6 + 0.8) / 2]
    gmp = made["gmp"]
    assert gmp["accuracy"] == pytest.approx(np.mean(by_draw))
    low, high = stats.t.interval(0.95, 2, np.mean(by_draw), stats.sem(by_draw))
    assert (gmp["accuracy_low"], gmp["accuracy_high"]) == pytest.approx((low, high))
    # errors .5 against .4 in a, .3 against .2 in b
    assert gmp["increase"] == pytest.approx(((0.5 - 0.4) / 0.4 + (0.3 - 0.2) / 0.2) / 2)
    assert gmp["increase_low"] < gmp["increase"] < gmp["increase_high"]
    assert (gmp["n_tasks"], gmp["n_draws"], gmp["n_seeds"]) == (2, 3, 1)
    assert math.isnan(made["dense"]["increase"])


def test_what_both_models_owe_to_a_draw_does_not_widen_the_increase():
    shared = {
        ("dense", "a", 1): [0.5, 0.6, 0.7],
        ("gmp", "a", 1): [1 - 0.5 * 1.2, 1 - 0.4 * 1.2, 1 - 0.3 * 1.2],
    }
    gmp = by_method(few_shot_curves(rows(shared)))["gmp"]
    assert gmp["increase"] == pytest.approx(0.2)
    assert (gmp["increase_low"], gmp["increase_high"]) == pytest.approx((0.2, 0.2))
    assert gmp["accuracy_high"] - gmp["accuracy_low"] > 0.1


def test_only_upstream_seeds_that_dense_has_enter_the_increase():
    extra = rows({("gmp", "a", 1): [0.0, 0.0, 0.0]}, seed=1)
    frame = pd.concat([rows(STUDY), extra])
    before = by_method(few_shot_curves(rows(STUDY)))["gmp"]
    after = by_method(few_shot_curves(frame))["gmp"]
    assert after["increase"] == pytest.approx(before["increase"]) and after["n_seeds"] == 2


def test_without_dense_there_is_accuracy_alone():
    only = {key: drawn for key, drawn in STUDY.items() if key[0] != "dense"}
    (row,) = few_shot_curves(rows(only)).to_dict("records")
    assert row["accuracy"] == pytest.approx(0.6) and math.isnan(row["increase"])


def test_a_constant_accuracy_is_its_own_area_and_a_line_in_log2_its_middle():
    flat = {("dense", "a", k): [0.7, 0.7] for k in (1, 2, 8)}
    line = {("gmp", "a", k): [0.1 + 0.1 * math.log2(k)] * 2 for k in (1, 2, 8)}
    made = by_method(few_shot_areas(rows(flat | line)))
    assert made["dense"]["area"] == pytest.approx(0.7)
    assert made["gmp"]["area"] == pytest.approx((0.1 + 0.4) / 2)
    assert made["gmp"]["difference"] == pytest.approx(0.25 - 0.7)
    assert (made["gmp"]["first_shots"], made["gmp"]["last_shots"]) == (1, 8)


def test_areas_are_over_the_shots_that_every_task_has():
    frame = rows(
        {("dense", task, k): [0.5, 0.6] for task, k in itertools.product("ab", (1, 2))}
        | {("dense", "a", 4): [0.9, 0.9]}
    )
    (row,) = few_shot_areas(frame).to_dict("records")
    assert row["last_shots"] == 2 and row["area"] == pytest.approx(0.55)
    assert few_shot_areas(rows({("dense", "a", 1): [0.5, 0.5]})).empty


def test_every_point_of_a_curve_is_a_mean_over_the_same_tasks():
    values = {("dense", "a", 1): 0.4, ("dense", "a", 2): 0.5, ("dense", "a", 4): 0.6}
    values |= {("dense", "b", 1): 0.2, ("dense", "b", 2): 0.3}  # no class of b has 4 images
    made = few_shot_curves(rows({key: [value] * 2 for key, value in values.items()}))
    assert made["shots"].tolist() == [1, 2]
    assert made["n_tasks"].tolist() == [2, 2]
    assert made["accuracy"].tolist() == pytest.approx([0.3, 0.4])

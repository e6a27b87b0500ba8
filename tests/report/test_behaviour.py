"""Sections beyond accuracy: they say what the stored predictions and rows say, and only then."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sparse_transfer import statistics
from sparse_transfer.predictions import Predictions
from sparse_transfer.report.agreement_tables import compare, dense_pairs, pairs
from sparse_transfer.report.html import Section
from sparse_transfer.report.write import Report, build

NAMES = [f"kind {i}" for i in range(6)]


def names(report: Report) -> list[str]:
    return [one.name for one in report.sections]


def section(report: Report, name: str) -> Section:
    (found,) = [one for one in report.sections if one.name == name]
    return found


def table(report: Report, name: str) -> pd.DataFrame:
    (found,) = [one for one in report.tables if one.name.startswith(name)]
    return found.frame


@pytest.fixture(scope="module")
def small(make_study):  # noqa: ANN001, ANN201
    return make_study(
        methods=("gmp",), sparsities=(0.95,), seeds=(0, 1), tasks=("digits", "leaves")
    )


@pytest.fixture(scope="module")
def report(small):  # noqa: ANN001, ANN201
    facts = small.facts | {"class_names": {"digits": NAMES}}
    return build(small.frame, small.bench, facts, small.predictions)


def stored(small, method: str, seed: int) -> Predictions:  # noqa: ANN001
    sparsity = 0.0 if method == "dense" else 0.95
    return small.stored[f"main-{method}-{sparsity}-{seed}-digits-full.parquet"]


def test_agreement_is_the_mean_over_pairs_of_one_seed(small, report):
    rows = table(report, "agreement-main")
    row = rows[(rows["method"] == "gmp") & (rows["mode"] == "full") & (rows["task"] == "digits")]
    found = [
        statistics.agreement(stored(small, "dense", seed), stored(small, "gmp", seed))
        for seed in (0, 1)
    ]
    assert len(row) == 1 and row["pairs"].item() == 2
    for name in ("flips", "negative_flips", "positive_flips"):
        expected = np.mean([getattr(one, name) / one.n for one in found])
        assert row[name].item() == pytest.approx(expected)
    assert row["kappa"].item() == pytest.approx(np.mean([one.kappa for one in found]))
    assert row["mcnemar_low"].item() == min(one.mcnemar_p for one in found)
    below = sum(one.mcnemar_p < 0.05 for one in found)
    assert row["mcnemar"].item() == f"{below} of 2"


def test_two_dense_models_stand_beside_as_what_differs_without_pruning(small, report):
    rows = table(report, "agreement-main")
    rival = rows[
        (rows["method"] == "dense") & (rows["mode"] == "full") & (rows["task"] == "digits")
    ]
    expected = statistics.agreement(stored(small, "dense", 0), stored(small, "dense", 1))
    assert rival["flips"].item() == pytest.approx(expected.flips / expected.n)
    assert "Two dense models" in section(report, "behaviour").text


def test_the_mean_is_over_tasks(report):
    each, mean = table(report, "agreement-main"), table(report, "agreement-mean")
    full = each[(each["method"] == "gmp") & (each["mode"] == "full")]
    row = mean[(mean["method"] == "gmp") & (mean["mode"] == "full")]
    assert row["flips"].item() == pytest.approx(full["flips"].mean())
    assert row["n_tasks"].item() == 2


def test_the_class_that_pays_is_named_where_names_are_known(small, report):
    rows = table(report, "worst-class")
    row = rows[(rows["mode"] == "full") & (rows["task"] == "digits")]
    accuracy = {
        method: np.mean(
            [statistics.by_class(stored(small, method, seed), 6).accuracy for seed in (0, 1)],
            axis=0,
        )
        for method in ("dense", "gmp")
    }
    assert row["worst_class"].item() == NAMES[int(accuracy["gmp"].argmin())]
    assert row["worst_accuracy"].item() == pytest.approx(accuracy["gmp"].min())
    change = accuracy["gmp"] - accuracy["dense"]
    assert row["lost_class"].item() == NAMES[int(change.argmin())]
    assert row["lost"].item() == pytest.approx(change.min())
    unnamed = rows[rows["task"] == "leaves"]
    assert unnamed["worst_class"].str.startswith("class ").all()


def test_calibration_is_the_mean_over_tasks_with_an_interval_over_seeds(small):
    frame = small.frame.copy()
    step = frame["upstream_seed"] * 0.01
    frame["ece"] = np.where(frame["method"] == "dense", 0.03, 0.05 + step)
    rows = table(build(frame, small.bench, small.facts, None), "calibration")
    row = rows[(rows["method"] == "gmp") & (rows["mode"] == "full")]
    assert row["ece"].item() == pytest.approx(0.055)
    expected = statistics.t_interval([0.02, 0.03])
    assert row["ece_change"].item() == pytest.approx(0.025)
    assert row["ece_change_low"].item() == pytest.approx(expected.low)


def test_a_temperature_of_some_tasks_is_not_the_mean_of_all(small):
    frame = small.frame.assign(temperature=1.5, ece_calibrated=0.01)
    complete = table(build(frame, small.bench, small.facts, None), "calibration")
    assert (complete["temperature"] == 1.5).all()
    frame.loc[frame["task"] == "digits", "temperature"] = float("nan")
    reasons = frame["task"].map({"digits": "nothing held out."})
    partial = build(frame.assign(not_calibrated=reasons), small.bench, small.facts, None)
    assert table(partial, "calibration")["temperature"].isna().all()
    (made,) = [one for one in partial.tables if one.name.startswith("calibration")]
    assert any("digits: nothing held out." in note for note in made.notes)


def test_without_predictions_nothing_is_compared(small):
    made = section(build(small.frame, small.bench, small.facts, None), "behaviour")
    assert [part.title for part in made.parts] == ["Calibration"]


def test_a_demo_shows_no_intervals(small):
    facts = small.facts | {"labels": ["demo: no intervals"]}
    rows = table(build(small.frame, small.bench, facts, small.predictions), "calibration")
    assert "ece_change" in rows and "ece_change_low" not in rows


def test_pairs_share_seeds_and_take_the_first_head():
    def rows(*seeds: tuple[int, int]) -> list[dict]:
        return [{"upstream_seed": up, "transfer_seed": head} for up, head in seeds]

    dense = rows((0, 51), (0, 21), (1, 21))
    (pair,) = pairs(dense, rows((0, 51), (0, 21), (2, 21)))
    assert pair.dense == pair.other == {"upstream_seed": 0, "transfer_seed": 21}
    (rival,) = dense_pairs(dense)
    assert [one["upstream_seed"] for one in (rival.dense, rival.other)] == [0, 1]
    assert [one["transfer_seed"] for one in (rival.dense, rival.other)] == [21, 21]


def test_rows_without_stored_predictions_are_left_out(small, report):
    frame = small.frame.copy()
    frame.loc[frame["task"] == "leaves", "predictions"] = None
    rows = compare(
        [one for one in _groups(report) if one.mode == "full"], frame, small.predictions, {}
    )
    assert set(rows["task"]) == {"digits"}


def _groups(report):  # noqa: ANN001, ANN202
    from sparse_transfer.report.tables import Group

    return [
        Group("main", "made_net", "made-recipe", mode, "short", 32, mode, mode)
        for mode in ("linear-sgd", "full")
    ]


def few_shot_rows(classes: list[str], left_out: list[int]) -> list[dict]:
    generator = np.random.default_rng(0)
    return [
        {
            "arm": "main", "model": "made_net", "method": method, "sparsity": sparsity,
            "upstream_seed": 0, "task": "digits", "metric": "top1", "shots": shots, "draw": draw,
            "value": 0.4 + 0.1 * np.log2(shots) - 0.1 * sparsity + 0.01 * generator.random(),
            "short_classes": classes if shots == 4 else [], "left_out": left_out,
        }
        for method, sparsity in (("dense", 0.0), ("gmp", 0.8), ("gmp", 0.95))
        for shots in (1, 2, 4)
        for draw in range(3)
    ]  # fmt: skip


def test_curves_have_a_figure_per_sparsity_and_name_the_small_classes(small):
    facts = small.facts | {"few_shot": few_shot_rows(["plum", "quince"], [64])}
    made = build(small.frame, small.bench, facts, None)
    found = section(made, "few-shot")
    assert "with 1 and with 4 training images per class" in found.text
    (part,) = found.parts
    assert len(part.drawings) == 2 and all("<svg" in one.svg for one in part.drawings)
    area, curve = part.tables
    assert len(area.frame) == 3 and len(curve.frame) == 9
    notes = " ".join(curve.notes)
    assert "2 classes have fewer than 4 training images" in notes and "plum, quince" in notes
    assert "no class has 64" in notes


def test_a_curve_ends_where_a_task_has_no_more_images(small):
    other = [row | {"task": "birds"} for row in few_shot_rows([], []) if row["shots"] < 4]
    other = [row | {"left_out": [4]} for row in other]
    facts = small.facts | {"few_shot": few_shot_rows([], []) + other}
    found = section(build(small.frame, small.bench, facts, None), "few-shot")
    assert "with 1 and with 2 training images per class" in found.text
    curve = found.parts[0].tables[1]
    assert set(curve.frame["shots"]) == {1, 2} and set(curve.frame["n_tasks"]) == {2}
    assert "Not every task has 4 training images of a class" in " ".join(curve.notes)


def test_the_sentence_is_about_one_model(small):
    mine, other = few_shot_rows([], []), few_shot_rows([], [])
    other = [row | {"model": "other_net", "value": row["value"] / 2} for row in other]
    alone = section(build(small.frame, small.bench, {"few_shot": mine}, None), "few-shot").text
    both = section(build(small.frame, small.bench, {"few_shot": mine + other}, None), "few-shot")
    assert both.text == alone.removesuffix(".") + " (main · made_net)."


def test_curves_alone_make_a_report(small):
    facts = {"few_shot": few_shot_rows([], [])}
    made = build(pd.DataFrame(), pd.DataFrame(), facts, None)
    assert "few-shot" in names(made) and "behaviour" not in names(made)


def test_no_curve_no_section(report):
    assert not {"few-shot", "training-time"} & set(names(report))


def test_training_time_is_paired_by_task_and_seeds(small):
    online = small.frame[small.frame["mode"] == "full"].assign(mode="linear-online")
    sparse = online["method"] == "gmp"
    slower = 1 + 0.5 * online["upstream_seed"]
    online["step_s"] = np.where(sparse, 0.08, 0.1) * slower
    for name, value in (("forward_s", 0.07), ("backward_s", 0.01), ("update_s", 0.001)):
        online[name] = value
    online["loading_s"] = 0.05
    frame = pd.concat([small.frame, online], ignore_index=True)
    made = build(frame, small.bench, small.facts, None)
    rows = table(made, "training-time").set_index("method")
    assert rows.loc["gmp", "speedup"] == pytest.approx(1.25)
    assert (rows.loc["gmp", "speedup_low"], rows.loc["gmp", "speedup_high"]) == pytest.approx(
        (1.25, 1.25)
    )
    assert rows.loc["gmp", "pairs"] == 4 and np.isnan(rows.loc["dense", "speedup"])
    found = section(made, "training-time")
    assert "recomputed each step" in found.text and "1.25×" in found.text
    assert any("cached features" in note for note in found.parts[0].tables[0].notes)
    assert any("run in PyTorch here" in note for note in found.parts[0].tables[0].notes)


def test_training_time_stands_against_the_change_of_accuracy(small):
    online = small.frame[small.frame["mode"] == "full"].assign(mode="linear-online")
    sparse = online["method"] == "gmp"
    for name in ("forward_s", "backward_s", "update_s", "loading_s"):
        online[name] = 0.01
    online["step_s"], online["epoch_s"] = np.where(sparse, 0.05, 0.1), 60.0
    online["engine"] = np.where(sparse, "sparse", "dense")
    online["value"] = np.where(sparse, 0.5, 0.52) + 0.1 * online["upstream_seed"]
    frame = pd.concat([small.frame, online], ignore_index=True)
    made = build(frame, small.bench, small.facts, None)
    rows = table(made, "training-time").set_index("method")
    assert rows.loc["gmp", "change"] == pytest.approx(-0.02)
    assert rows.loc["gmp", "engine"] == "sparse" and rows.loc["dense", "engine"] == "dense"
    assert rows.loc["gmp", "epoch_s"] == 60
    (part,) = [part for part in section(made, "training-time").parts if part.drawings]
    drawn = part.drawings[0].data
    assert list(drawn["speedup"]) == pytest.approx([2.0]) and list(drawn["method"]) == ["gmp"]
    assert any("skip their zeros" in note for note in part.tables[0].notes)
    assert "2.00×" in section(made, "training-time").text

"""The sections that follow from the results: shown where there is data, true to their numbers."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd
import pytest

from sparse_transfer import plan
from sparse_transfer.report import colours, hours, layers
from sparse_transfer.report.fronts import equal_cost, judged
from sparse_transfer.report.sections import cost
from sparse_transfer.report.write import build
from sparse_transfer.statistics import bca_interval, hierarchical_bootstrap

EMPTY = pd.DataFrame()
FOLLOWING = {"ranks", "difficulty", "modes", "bought", "cost", "correlation", "inside"}


def table(report, name: str):
    return next(table for table in report.tables if table.name == name)


def column(found, key: str) -> list[str]:
    place = [column.key for column in found.columns].index(key)
    return [row[place].plain for row in found.rows]


@pytest.fixture(scope="module")
def report(study):
    return build(study.frame, study.bench, study.facts, study.predictions)


@pytest.fixture(scope="module")
def with_rivals(make_study):
    """Beside three pruned nets: another upstream model, and a smaller row of the same arm."""
    study = make_study(modes=("full",), sparsities=(0.8, 0.9, 0.95))
    dense = study.frame[study.frame["method"] == "dense"]
    tiny = dense.assign(model="tiny_net", run="t", macs=8e6, value=dense["value"] - 0.012)
    half = dense.assign(method="half", run="h", macs=3.6e6, value=dense["value"] - 0.03)
    frame = pd.concat([study.frame, tiny, half], ignore_index=True)
    return build(frame, study.bench, study.facts, None)


def test_every_section_begins_with_a_sentence(report):
    assert {section.name for section in report.sections} >= FOLLOWING
    for section in report.sections:
        assert re.match(r"[A-Z].{20,}\.$", section.text, re.DOTALL), section.name


def test_sections_without_data_are_not_there(make_study):
    study = make_study(seeds=(0,), modes=("full",), tasks=("birds",), methods=("gmp",))
    frame = study.frame[study.frame["mode"] != "upstream"].drop(columns=["mac_ratio", "macs"])
    names = {section.name for section in build(frame, EMPTY, {}, None).sections}
    assert not names & FOLLOWING and {"summary", "tasks"} <= names


def test_a_demo_shows_nothing_that_decides(make_study):
    study = make_study(seeds=(0,))
    made = build(study.frame, EMPTY, study.facts | {"labels": ["demo: no intervals"]}, None)
    names = {section.name for section in made.sections}
    assert not names & {"ranks", "difficulty", "modes", "correlation"}
    assert not any(found.folded for found in made.tables)


def test_more_methods_than_a_figure_can_tell_apart_stand_in_tables_alone(make_study):
    names = tuple(f"method-{n}" for n in range(19))
    study = make_study(methods=names, sparsities=(0.8, 0.9, 0.95, 0.98), seeds=(0,))
    frame = study.frame[study.frame["mode"].isin(["linear-sgd", "full"])]
    made = build(frame.drop(columns=["mac_ratio", "macs"]), EMPTY, {}, None)
    assert not made.drawings
    assert len(table(made, "ranks-main").frame) == 2 * 4 * 19
    assert len(table(made, "tasks-main").frame) == 2 * 5 * (4 * 19 + 1)


def test_ranks_name_who_lacks_a_task(make_study):
    study = make_study(modes=("full",), sparsities=(0.8,), seeds=(0,))
    gone = (study.frame["method"] == "fggp") & (study.frame["task"] == "signs")
    made = build(study.frame[~gone], EMPTY, {}, None)
    found = table(made, "ranks-main")
    text = "fggp 80 %, Full fine-tuning: not ranked, as it has no result on signs."
    assert found.notes == (text,)
    ranked = dict(zip(column(found, "method"), column(found, "mean_rank"), strict=True))
    assert ranked["fggp"] == "" and float(ranked["gmp"]) + float(ranked["acdc"]) == 3


def test_a_smaller_dense_model_stands_on_the_plot_and_names_what_it_beats(with_rivals):
    drawing = next(one for one in with_rivals.drawings if one.name == "macs-main-full-fine-tuning")
    costs = drawing.data.set_index(["model", "method", "sparsity"])["cost"]
    assert costs[("tiny_net", "dense", 0.0)] == pytest.approx(0.2)  # of the MACs of made_net
    assert costs[("made_net", "half", 0.0)] == pytest.approx(0.09)
    assert costs[("made_net", "gmp", 0.8)] == pytest.approx(0.3)
    assert "tiny_net dense" in drawing.inline and "half" in drawing.inline
    found = table(with_rivals, "front-macs-main")
    frame = found.frame.set_index(["model", "method", "sparsity"])
    words = frame.loc[("made_net", "gmp", 0.8), "front"]
    assert words.startswith("no: tiny_net dense needs 33 % fewer MACs and errs less (")
    assert frame.loc[("tiny_net", "dense", 0.0), "front"] == "yes"
    off = frame[frame["front"] != "yes"]
    assert found.remark.startswith(f"{(off.index.get_level_values('sparsity') > 0).sum()} of 9 ")


def test_points_with_other_tasks_are_left_out_and_named(make_study):
    study = make_study(modes=("full",), seeds=(0,), sparsities=(0.8,))
    dense = study.frame[(study.frame["method"] == "dense") & (study.frame["task"] != "signs")]
    tiny = dense.assign(model="tiny_net", run="t", macs=8e6)
    made = build(pd.concat([study.frame, tiny], ignore_index=True), EMPTY, {}, None)
    found = table(made, "front-macs-main")
    assert "tiny_net" not in set(found.frame["model"])
    words = "Full fine-tuning: not compared for want of some of the tasks: tiny_net dense."
    assert found.notes == (words,)


POINTS = pd.DataFrame(
    {
        "model": ["net"] * 5 + ["tiny"],
        "method": ["dense", "a", "a", "b", "b", "dense"],
        "sparsity": [0.0, 0.8, 0.9, 0.8, 0.9, 0.0],
        "cost": [1.0, 0.4, 0.1, 0.2, 0.05, 0.2],
        "error": [0.10, 0.12, 0.20, 0.15, 0.30, 0.13],
    }
)


def test_a_dense_rival_is_named_before_a_better_pruned_one():
    points = POINTS.assign(error=[0.10, 0.12, 0.20, 0.15, 0.30, 0.149])
    points.loc[1, ["cost", "error"]] = [0.2, 0.11]
    shown = judged(points, "net", saves="needs {} fewer MACs")
    assert (
        shown.loc[3, "front"]
        == "no: tiny dense costs no more and errs less (14.9 % against 15.0 %)"
    )
    assert shown["beaten_by_dense"].tolist() == [False, False, False, True, False, False]
    assert shown.loc[5, "front"].startswith("no: a 80 % costs no more and errs less")


def test_equal_macs_are_interpolated_between_points_and_nowhere_else():
    made, methods = equal_cost(POINTS, "net")
    assert methods == ["a", "b"]
    rows = made.set_index("share")
    at_tiny = rows.loc[0.2]
    assert (at_tiny["what"], at_tiny["dense_error"]) == ("tiny dense", 0.13)
    assert at_tiny["a"] == pytest.approx(0.16)  # halfway between 0.4 and 0.1 in the logarithm
    assert at_tiny["b"] == pytest.approx(0.15)
    assert rows.index.max() <= 0.2 and rows.index.min() >= 0.1  # where both have points


COSTS = [
    {"stage": stage, "arm": "m", "model": "net", "method": method, "sparsity": sparsity}
    | {"upstream_seed": seed, "task": task, "seconds": seconds}
    for stage, method, sparsity, seed, task, seconds in [
        ("prune", "dense", 0.0, 0, "", 100.0),
        ("prune", "dense", 0.0, 1, "", 120.0),
        ("prune", "a", 0.9, 0, "", 200.0),
        ("prune", "a", 0.9, 1, "", 220.0),
        ("tune", "dense", 0.0, 0, "birds", 50.0),
        ("full", "dense", 0.0, 0, "birds", 30.0),
        ("full", "dense", 0.0, 1, "birds", 32.0),
        ("full", "dense", 0.0, 0, "cars", 40.0),
        ("full", "dense", 0.0, 0, "dogs", 50.0),
        ("full", "a", 0.9, 0, "birds", 20.0),
        ("full", "a", 0.9, 1, "birds", 22.0),
        ("full", "a", 0.9, 0, "cars", 29.0),
        ("full", "a", 0.9, 0, "dogs", 41.0),
        ("full", "a", 0.9, 0, "more", 900.0),
    ]
]


def test_hours_and_break_even_by_hand():
    found = hours.by_cell(COSTS).set_index("method")
    assert found.loc["dense", "upstream"] == 110 and found.loc["a", "upstream"] == 210
    assert found.loc["a", "extra"] == 100 and math.isnan(found.loc["dense", "extra"])
    assert found.loc["dense", "per_task"] == pytest.approx((31 + 40 + 50) / 3)
    assert found.loc["a", "n_tasks"] == 4
    assert found.loc["a", "saving"] == pytest.approx(10)  # 10, 11 and 9 s on the shared tasks
    assert found.loc["a", "break_even"] == 10
    assert found.loc["a", "pays_back"] == "after 10 tasks"
    assert hours.total(COSTS)["tune"] == 50


@pytest.mark.parametrize("stage", ["evaluate", "few_shot"])
def test_scoring_and_few_shots_are_no_transfer_that_pays_back(stage):
    rows = [row for row in COSTS if row["stage"] == "prune"]
    rows += [row | {"stage": stage} for row in COSTS if row["stage"] == "full"]
    found = hours.by_cell(rows)
    assert set(found["stage"]) == {""} and len(found) == 2
    assert "break_even" not in found
    assert hours.total(rows)[stage] == 30 + 32 + 40 + 50 + 20 + 22 + 29 + 41 + 900


def test_every_stage_has_a_title_in_the_cost_section():
    assert set(cost.NAMES) == set(plan.STAGES)
    assert set(hours.STAGES) == set(plan.STAGES) - set(hours.NOT_PER_TASK)


def test_the_cost_section_says_where_nothing_is_saved(report):
    frame = table(report, "cost-main").frame.set_index(["method", "sparsity"])
    assert frame.loc[("gmp", 0.8), "pays_back"] == "after 15 tasks"  # 60 s over 4 s
    assert frame.loc[("fggp", 0.8), "pays_back"] == "never: no time is saved per task"
    assert table(report, "cost-main").remark.startswith("All runs together took ")


def test_dead_channels_are_averaged_in_three_ways():
    facts: dict[str, Any] = {"arm": "m", "model": "net", "method": "a", "sparsity": 0.9}
    facts |= {"upstream_seed": 0, "density": 0.1}
    rows = [
        facts | {"layer": "one", "weights": 100, "channels": 10, "dead_channels": 5},
        facts | {"layer": "two", "weights": 900, "channels": 30, "dead_channels": 3},
        facts | {"layer": "linear", "weights": 5000},  # no convolution: no channels
    ]
    row = layers.table(layers.by_layer(rows), arm="m").frame.iloc[0]
    assert row["dead_channels"] == 8
    assert row["dead"] == pytest.approx(8 / 40)
    assert row["dead_mean"] == pytest.approx((0.5 + 0.1) / 2)
    assert row["dead_weighted"] == pytest.approx((0.5 * 100 + 0.1 * 900) / 1000)


def test_error_counts_are_whole_numbers_over_all_runs(study, report):
    frame = table(report, "tasks-main").frame
    row = frame[(frame["mode"] == "full") & (frame["task"] == "signs") & frame["is_dense"]].iloc[0]
    own = study.frame.query("mode == 'full' and task == 'signs' and method == 'dense'")
    wrong = [study.predictions(record) for record in own.to_dict("records")]
    assert row["errors_total"] == sum(int((p.prediction != p.label).sum()) for p in wrong)
    assert row["n_total"] == 3 * 420


def test_every_interval_is_there_on_demand(study, report):
    found = table(report, "intervals-main")
    assert found.folded
    assert found.name not in [shown.name for shown in report.summary]  # not on the terminal
    row = found.frame.query("mode == 'full' and method == 'gmp' and sparsity == 0.95").iloc[0]
    summary = table(report, "summary-main-full").frame
    own = summary.query("method == 'gmp' and sparsity == 0.95").iloc[0]
    assert (row["seeds_low"], row["seeds_high"]) == (own["low"], own["high"])
    errors = (
        1
        - study.frame.query("mode == 'full'")
        .groupby(["method", "sparsity", "task"])["value"]
        .mean()
    )
    ratios = errors[("gmp", 0.95)] / errors[("dense", 0.0)] - 1
    expected = bca_interval(ratios.to_numpy(), resamples=1000)
    # five tasks have few different resamples: rounding may move a limit to the next of them
    assert (row["bca_low"], row["bca_high"]) == pytest.approx(expected[1:], rel=0.1)
    assert row["both_low"] < row["mor"] < row["both_high"]
    assert row["examples_low"] < row["mor"] < row["examples_high"]


def test_every_interval_is_about_the_same_mean_where_seeds_are_unequal(make_study):
    study = make_study(modes=("full",))
    frame = study.frame
    only_dense = (frame["method"] != "dense") & (frame["upstream_seed"] == 2)
    far = (frame["method"] == "dense") & (frame["upstream_seed"] == 2)
    frame.loc[far, "value"] = (1 + frame.loc[far, "value"]) / 2  # half the errors
    found = table(build(frame[~only_dense], EMPTY, study.facts, None), "intervals-main").frame
    assert len(found) == 6 and set(found["n_seeds"]) == {2}
    for name in ("bca", "both"):
        assert found[name].to_numpy() == pytest.approx(found["mor"].to_numpy()), name
        assert (found[f"{name}_low"] < found["mor"]).all()


def test_with_one_upstream_seed_transfer_seeds_are_drawn(make_study):
    study = make_study(modes=("full",), seeds=(0, 1, 2))
    transfer = study.frame["mode"] != "upstream"
    frame = study.frame[transfer | study.frame["upstream_seed"].eq(0)].copy()
    frame.loc[transfer, "transfer_seed"] = frame.loc[transfer, "upstream_seed"]
    frame["upstream_seed"] = 0
    found = table(build(frame, EMPTY, study.facts, None), "intervals-main").frame
    assert set(found["n_seeds"]) == {1}
    assert found["both"].to_numpy() == pytest.approx(found["mor"].to_numpy())
    row = found.query("method == 'gmp' and sparsity == 0.95").iloc[0]
    own = frame[frame["mode"] == "full"]
    errors = [
        [1 - part["value"].to_numpy() for _, part in own.query(cell).groupby("task")]
        for cell in ("method == 'dense'", "method == 'gmp' and sparsity == 0.95")
    ]
    expected = hierarchical_bootstrap(*errors, crossed=False, resamples=1000)
    assert (row["both_low"], row["both_high"]) == pytest.approx(expected[1:])
    # first order: sd² / 3 of each model over its error, on the scale of the ratio
    terms = []
    for dense, sparse in zip(*errors, strict=True):
        ratio = sparse.mean() / dense.mean()
        parts = [errs.var(ddof=1) / 3 / errs.mean() ** 2 for errs in (dense, sparse)]
        terms.append(ratio**2 * sum(parts))
    assert row["noise"] == pytest.approx(math.sqrt(sum(terms)) / len(terms))
    sds = own.groupby(["method", "sparsity", "task"])["value"].std()
    pooled = 100 * math.sqrt((sds**2).mean())
    notes = " ".join(table(build(frame, EMPTY, study.facts, None), "intervals-main").notes)
    assert f"Full fine-tuning: {pooled:.2f} points" in notes


def test_there_is_no_seed_noise_with_one_transfer_seed_each(report):
    found = table(report, "intervals-main")
    assert "noise" not in [column.key for column in found.columns]
    assert "Transfer seeds alone" not in " ".join(found.notes)


def test_a_method_keeps_its_colour_however_it_is_spelt():
    assert colours.assign(["AC/DC"])["AC/DC"] == colours.assign(["acdc"])["acdc"]
    both = colours.assign(["AC/DC", "acdc"])
    assert both["AC/DC"][0] == both["acdc"][0] and both["AC/DC"][1] != both["acdc"][1]

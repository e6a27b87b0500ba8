"""Tables: the statistics' own numbers, honest speedups, and marks on what to distrust."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from sparse_transfer.backends import uses_zeros
from sparse_transfer.report import cost_tables
from sparse_transfer.report.cells import Table
from sparse_transfer.report.write import build
from sparse_transfer.statistics import compare


@pytest.fixture(scope="module")
def report(study):
    return build(study.frame, study.bench, study.facts, study.predictions)


@pytest.fixture(scope="module")
def tables(report) -> dict[str, Table]:
    return {table.name: table for table in report.tables}


def column(table: Table, key: str) -> list[str]:
    place = [column.key for column in table.columns].index(key)
    return [row[place].plain for row in table.rows]


def test_the_summary_shows_the_statistics_own_numbers(study, tables):
    methods = compare(study.frame).methods
    wanted = methods[(methods["mode"] == "full") & (methods["method"] == "gmp")]
    frame = tables["summary-main-full"].frame
    shown = frame[frame["method"] == "gmp"]
    for key in ("mor", "rom", "geometric", "low", "high"):
        assert shown[key].tolist() == pytest.approx(wanted[key].tolist())
    assert column(tables["summary-main-full"], "coverage") == ["5 × 3"] * 7


def test_there_is_one_summary_per_transfer_mode_and_each_says_what_was_held_fixed(tables):
    summaries = [name for name in tables if name.startswith("summary-")]
    assert summaries == [
        "summary-main-linear-sgd",
        "summary-main-linear-lbfgs",
        "summary-main-full",
    ]
    assert all("recipe shared by all methods" in tables[name].held_fixed for name in summaries)


def test_the_dense_row_is_the_reference_and_has_no_increase(tables):
    table = tables["summary-main-full"]
    assert column(table, "method")[0] == "dense"
    assert column(table, "mor")[0] == ""
    assert column(table, "theoretical")[0] == ""
    assert column(table, "verdict_short")[0] == "reference"


def test_only_decided_contrasts_make_a_method_ahead(study, report, tables):
    contrasts = tables["contrasts-main"].frame
    won = contrasts[(contrasts["mode"] == "full") & (contrasts["sparsity"] == 0.95)]
    won = won[won["winner"] == "acdc"]
    beaten = sorted(set(won["first"]) | set(won["second"]) - {"acdc"})
    shown = tables["summary-main-full"].frame
    shown = shown[(shown["method"] == "acdc") & (shown["sparsity"] == 0.95)]["ahead_of"].item()
    assert shown == ", ".join(name for name in beaten if name != "acdc")
    assert set(contrasts.loc[contrasts["winner"] != "", "verdict"]) <= {"better", "worse"}
    assert contrasts.loc[contrasts["winner"] != "", "sign_agreed"].all()


def test_measured_speedup_carries_backend_device_threads_and_batch(tables):
    table = tables["summary-main-full"]
    titles = [column.title for column in table.columns]
    assert "measured speedup, skipper backend, cpu, 1 thread, batch 16" in titles
    assert "theoretical speedup (MACs, zeros skipped)" in titles
    assert "dense backend, cpu, 1 thread, batch 16: does not use zeros." in table.notes


def test_a_backend_that_does_not_use_zeros_never_shows_a_ratio(study):
    bench = study.bench[study.bench["backend"] == "dense"]
    assert (bench["speedup"] == 1.0).all()
    made = build(study.frame, bench, study.facts, None)
    speed = next(table for table in made.tables if table.name == "speed-main")
    assert set(column(speed, "measured")) == {"reference", "does not use zeros"}
    assert speed.frame["speedup"].isna().all()
    summary = next(table for table in made.tables if table.name == "summary-main-full")
    assert column(summary, "measured") == ["", *["does not use zeros"] * 6]
    assert not any(
        cell.text == "1.00×" for table in made.tables for row in table.rows for cell in row
    )
    assert "the backend dense does not use zeros" in " ".join(made.verdict)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("does not use zeros", False),
        ("uses zeros", True),
        ("uses zeros in blocks of 4", True),
        ("", False),
        (True, True),
        (False, False),
        (None, False),
    ],
)
def test_whether_a_backend_uses_zeros(words, expected):
    assert uses_zeros(words) is expected


def test_one_seed_shows_the_interval_of_the_measurement_itself(study):
    rows = study.bench[(study.bench["upstream_seed"] == 2) & (study.bench["method"] == "gmp")]
    made = cost_tables.measurements(rows[rows["backend"] == "skipper"])
    row = rows[(rows["backend"] == "skipper") & (rows["sparsity"] == 0.95)].iloc[0]
    shown = made[made["sparsity"] == 0.95].iloc[0]
    assert shown["speedup_low"] == row["speedup_low"]
    assert shown["measured"].startswith(f"{row['speedup']:.2f}× [")


def test_a_measurement_without_a_dense_model_has_no_ratio(study):
    rows = study.bench[study.bench["backend"] == "skipper"].drop(columns="mac_ratio")
    rows = rows[rows["upstream_seed"] == 0].astype(object)
    rows[["speedup", "speedup_low", "speedup_high"]] = None
    made = cost_tables.measurements(rows)
    assert set(made.loc[made["method"] != "dense", "measured"]) == {""}
    assert made["speedup"].isna().all() and made["theoretical"].isna().all()
    assert made["seconds"].notna().all()


def test_theoretical_speedup_is_one_over_the_mac_ratio_and_empty_when_unknown():
    assert cost_tables.theoretical(pd.Series([0.25]), "gmp") == 4
    assert math.isnan(cost_tables.theoretical(pd.Series([1.0]), "dense"))
    assert math.isnan(cost_tables.theoretical(pd.Series([float("nan")]), "gmp"))


def test_error_counts_are_those_of_the_predictions(study, tables):
    frame = tables["tasks-main"].frame
    row = frame[(frame["mode"] == "full") & (frame["task"] == "signs") & frame["is_dense"]].iloc[0]
    own = study.frame
    own = own[(own["mode"] == "full") & (own["task"] == "signs") & (own["method"] == "dense")]
    wrong = [
        int((made.prediction != made.label).sum())
        for made in (study.predictions(record) for record in own.to_dict("records"))
    ]
    assert row["errors"] == pytest.approx(sum(wrong) / len(wrong))
    assert row["n_test"] == 420


def test_tasks_with_few_dense_errors_are_marked(tables):
    table = tables["tasks-main"]
    marks = table.frame.set_index(["mode", "task", "method", "sparsity"])["marks"]
    assert marks[("full", "digits", "gmp", 0.8)].startswith("few dense errors (")
    assert marks[("full", "birds", "gmp", 0.8)] == ""
    assert any(note.startswith("Few dense errors: below 30") for note in table.notes)


def test_disagreeing_probes_and_bad_fine_tuning_are_marked(make_study):
    study = make_study(methods=("gmp",), sparsities=(0.8,), seeds=(0, 1), tasks=("birds",))
    frame = study.frame
    sparse, mode = frame["method"] == "gmp", frame["mode"]
    frame.loc[sparse & (mode == "linear-sgd"), "value"] = 0.7  # better than dense
    frame.loc[sparse & (mode == "linear-lbfgs"), "value"] = 0.4  # worse than dense
    frame.loc[sparse & (mode == "full"), "value"] = 0.5  # worse than the probe
    made = build(frame, study.bench, study.facts, None)
    tasks = next(table for table in made.tables if table.name == "tasks-main").frame
    marks = tasks[tasks["method"] == "gmp"].set_index("mode")["marks"]
    assert marks["linear-sgd"] == marks["linear-lbfgs"] == "probe-dependent"
    assert marks["full"] == "full worse than linear"
    summary = next(table for table in made.tables if table.name == "summary-main-linear-sgd")
    assert "probe-dependent" in column(summary, "verdict_short")[1]


def test_groups_that_may_not_be_compared_have_tables_of_their_own(make_study):
    study = make_study(methods=("gmp",), sparsities=(0.8,), modes=("full",))
    other = study.frame[study.frame["mode"] == "full"].assign(profile="long")
    both = pd.concat([study.frame, other.assign(value=other["value"] - 0.1)])
    made = build(both, study.bench, study.facts, None)
    titles = [table.title for table in made.tables if table.name.startswith("summary")]
    assert titles == ["Full fine-tuning, long", "Full fine-tuning, short"]


def test_missing_runs_are_named_under_the_table(make_study):
    study = make_study(methods=("gmp",), sparsities=(0.8,), modes=("full",))
    frame = study.frame
    gone = (frame["method"] == "gmp") & (frame["task"] == "signs") & (frame["upstream_seed"] == 1)
    made = build(frame[~gone], study.bench, study.facts, None)
    table = next(table for table in made.tables if table.name == "summary-main-full")
    assert any("missing: gmp 0.8 on signs, upstream seed 1" in note for note in table.notes)
    assert column(table, "coverage")[1] == "5 × 2"
    assert "Coverage is unequal" in " ".join(made.verdict)

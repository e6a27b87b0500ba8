"""The comparison table: figures by hand, pairing, coverage, flags, bad input."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sparse_transfer.errors import UserError
from sparse_transfer.predictions import Predictions
from sparse_transfer.statistics import CONDITIONAL, GROUP, compare, t_interval
from tests.statistics.results import TASKS, made, row

EFFECTS = {("gmp", 0.8): 0.05, ("gmp", 0.95): 0.4, ("fggp", 0.95): 0.2}


def method(table: pd.DataFrame, name: str, sparsity: float, **other) -> pd.Series:
    rows = table[(table["method"] == name) & (table["sparsity"] == sparsity)]
    for column, value in other.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return rows.iloc[0]


def by_hand() -> pd.DataFrame:
    """Two tasks, two seeds; seed means of the errors: dense .2, .4; sparse .3, .38."""
    rows = []
    for task, seed, dense, sparse in [
        ("digits", 0, 0.18, 0.28),
        ("digits", 1, 0.22, 0.32),
        ("dtd", 0, 0.38, 0.37),
        ("dtd", 1, 0.42, 0.39),
    ]:
        rows.append(row("dense", 0.0, task, seed, 1 - dense))
        rows.append(row("gmp", 0.9, task, seed, 1 - sparse, measured_sparsity=0.898))
    return pd.DataFrame(rows)


def test_figures_by_hand():
    found = compare(by_hand())
    gmp = method(found.methods, "gmp", 0.9)
    assert gmp["mor"] == pytest.approx((0.5 - 0.05) / 2)
    assert gmp["rom"] == pytest.approx(0.68 / 0.6 - 1)
    assert gmp["geometric"] == pytest.approx(math.sqrt(1.5 * 0.95) - 1)
    assert gmp["median"] == pytest.approx(0.225)
    assert gmp["mean_value"] == pytest.approx(1 - 0.34)
    assert (gmp["n_tasks"], gmp["n_seeds"], gmp["n_runs"], gmp["wins"]) == (2, 2, 4, 1)
    assert gmp["measured_sparsity"] == pytest.approx(0.898)
    assert gmp["mac_ratio"] == pytest.approx(0.1)
    # By seed: .5 + (.28 − 1.5·.18)/.2 = .55 and .45 on digits, −.028 and −.073 on dtd.
    by_seed = [(0.55 - 0.0275) / 2, (0.45 - 0.0725) / 2]
    expected = t_interval(by_seed)
    assert expected.estimate == pytest.approx(gmp["mor"])
    assert (gmp["low"], gmp["high"]) == pytest.approx((expected.low, expected.high))
    assert gmp["interval_over"] == "upstream seeds"
    assert not gmp["conditional"]
    assert gmp["verdict"] == "undecided"
    assert gmp["verdict_text"].startswith("undecided at a minimum detectable effect of ")
    digits = method(found.tasks, "gmp", 0.9, task="digits")
    assert digits["r"] == pytest.approx(0.5)
    assert (digits["value"], digits["dense_value"]) == pytest.approx((0.7, 0.8))
    assert digits["value_sd"] == pytest.approx(0.04 / math.sqrt(2))
    assert digits["dense_errors"] == pytest.approx(40)


def test_dense_stands_first_in_its_group_without_verdict():
    dense = compare(by_hand()).methods.iloc[0]
    assert dense["method"] == "dense"
    assert dense["is_dense"]
    assert (dense["mor"], dense["rom"]) == (0, 0)
    assert np.isnan([dense["low"], dense["mde"], dense["wilcoxon_p"]]).all()
    assert dense["verdict"] == dense["verdict_text"] == ""


def test_large_effects_are_decided_and_words_follow_the_margin():
    frame = made({**EFFECTS, ("gmp", 0.5): -0.2}, seeds=range(6))
    table = compare(frame).methods
    assert method(table, "gmp", 0.95)["verdict"] == "worse"
    assert method(table, "gmp", 0.5)["verdict"] == "better"
    wide = compare(frame, margin=0.6).methods
    assert set(wide.loc[~wide["is_dense"], "verdict"]) == {"equivalent"}


def test_the_order_of_rows_does_not_matter():
    frame = made(EFFECTS)
    shuffled = frame.sample(frac=1, random_state=3)
    for one, two in zip(
        vars(compare(frame)).values(), vars(compare(shuffled)).values(), strict=True
    ):
        pd.testing.assert_frame_equal(one, two)


def test_sparse_seeds_are_paired_with_dense_seeds_of_the_same_number():
    """Dense noise is five times the sparse noise: paired, it cancels."""
    frame = made(EFFECTS)
    broken = frame.copy()
    sparse = broken["method"] != "dense"
    broken.loc[sparse, "upstream_seed"] = (broken.loc[sparse, "upstream_seed"] + 1) % 4
    one, two = compare(frame).methods, compare(broken).methods
    narrow, wide = (method(table, "gmp", 0.8) for table in (one, two))
    assert narrow["mor"] == pytest.approx(wide["mor"])
    assert narrow["high"] - narrow["low"] < 0.5 * (wide["high"] - wide["low"])


def test_a_method_with_fewer_seeds_is_compared_with_those_dense_seeds():
    frame = made(EFFECTS, seeds=range(6))
    frame = frame[(frame["sparsity"] != 0.8) | (frame["upstream_seed"] < 2)]
    found = method(compare(frame).methods, "gmp", 0.8)
    alone = method(compare(frame[frame["upstream_seed"] < 2]).methods, "gmp", 0.8)
    assert found["n_seeds"] == 2
    for name in ("mor", "low", "high", "mde"):
        assert found[name] == alone[name]


def test_transfer_seeds_are_averaged_and_are_no_replicates():
    frame = made(EFFECTS, seeds=[0])
    repeated = pd.concat(
        [
            frame.assign(transfer_seed=seed, value=frame["value"] + shift)
            for seed, shift in [(1, 0.01), (2, -0.01)]
        ]
    )
    one, two = compare(frame).methods, compare(repeated).methods
    assert two["mor"].to_numpy() == pytest.approx(one["mor"].to_numpy())
    gmp = method(two, "gmp", 0.95)
    assert (gmp["n_seeds"], gmp["n_runs"]) == (1, 6)
    assert gmp["conditional"]
    assert np.isnan(gmp["seeds_low"])


def test_one_seed_falls_back_to_tasks_and_says_so():
    gmp = method(compare(made(EFFECTS, seeds=[0])).methods, "gmp", 0.95)
    assert gmp["interval_over"] == "tasks"
    assert (gmp["low"], gmp["high"]) == (gmp["tasks_low"], gmp["tasks_high"])
    assert gmp["verdict_text"].endswith(CONDITIONAL)
    single = method(compare(made(EFFECTS, seeds=[0], tasks=["dtd"])).methods, "gmp", 0.95)
    assert (single["interval_over"], single["verdict"]) == ("", "undecided")


def test_groups_are_compared_with_their_own_dense():
    linear, full = made(EFFECTS), made(EFFECTS, mode="full", profile="short")
    full["value"] = 1 - (1 - full["value"]) / 2
    both = compare(pd.concat([linear, full])).methods
    assert method(both, "gmp", 0.8, mode="full")["mor"] == pytest.approx(
        method(both, "gmp", 0.8, mode="linear-sgd")["mor"]
    )
    assert list(both.columns[: len(GROUP)]) == GROUP


def test_holm_counts_the_methods_of_a_group():
    table = compare(made(EFFECTS, tasks=list("abcdefgh"))).methods
    sparse = table[~table["is_dense"]]
    assert sparse["wilcoxon_p"].max() == pytest.approx(2 / 2**8)
    assert sparse["wilcoxon_holm"].to_numpy() == pytest.approx(3 * sparse["wilcoxon_p"].to_numpy())


def test_unequal_coverage_is_refused_by_name():
    frame = made(EFFECTS)
    hole = (frame["method"] == "fggp") & (frame["task"] == "dtd") & (frame["upstream_seed"] == 3)
    with pytest.raises(UserError) as caught:
        compare(frame[~hole])
    assert "fggp 0.95 on dtd, upstream seed 3" in caught.value.why
    assert caught.value.why.count("\n") == 1
    table = compare(frame[~hole], allow_unequal=True).methods
    fggp = method(table, "fggp", 0.95)
    assert (fggp["n_tasks"], fggp["n_seeds"]) == (3, 3)
    assert "fggp 0.95 on dtd, upstream seed 3" in fggp["missing"]
    assert method(table, "gmp", 0.95)["missing"] == ""
    assert method(table, "gmp", 0.95)["n_seeds"] == 4


def test_a_method_with_half_the_tasks_is_never_averaged_silently():
    frame = made(EFFECTS)
    part = frame[(frame["method"] != "fggp") | (frame["task"] == "digits")]
    with pytest.raises(UserError, match="fggp 0.95 on dtd, upstream seed 0"):
        compare(part)
    fggp = method(compare(part, allow_unequal=True).methods, "fggp", 0.95)
    assert fggp["n_tasks"] == 1
    assert fggp["missing"].count(";") == 7


def test_another_split_is_another_task():
    frame = made(EFFECTS)
    frame.loc[frame["method"] == "fggp", "split_hash"] = "other"
    with pytest.raises(UserError, match="split other"):
        compare(frame)


def test_a_missing_dense_baseline_is_refused_or_shown():
    frame = made(EFFECTS)
    frame = frame[frame["method"] != "dense"]
    with pytest.raises(UserError, match="every dense result"):
        compare(frame)
    found = compare(frame, allow_unequal=True)
    gmp = method(found.methods, "gmp", 0.95)
    assert np.isnan([gmp["mor"], gmp["rom"], gmp["low"]]).all()
    assert (gmp["n_tasks"], gmp["verdict"]) == (0, "")
    assert np.isfinite(gmp["mean_value"])
    assert found.tasks["r"].isna().all()
    assert found.tasks["value"].notna().all()


def test_a_task_without_dense_errors_is_named():
    frame = made(EFFECTS)
    perfect = (frame["method"] == "dense") & (frame["task"] == "digits")
    frame.loc[perfect, ["value", "top1"]] = 1.0
    found = compare(frame)
    gmp = method(found.methods, "gmp", 0.95)
    assert (gmp["n_tasks"], gmp["left_out"]) == (2, "digits")
    assert np.isfinite([gmp["mor"], gmp["low"], gmp["high"]]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, "not a number"),
        ({"metric": "log_loss"}, "not an accuracy"),
    ],
)
def test_bad_values_are_named(change, message):
    frame = made(EFFECTS)
    for column, value in change.items():
        frame.loc[5, column] = value
    with pytest.raises(UserError, match=message) as caught:
        compare(frame)
    assert str(frame.loc[5, "task"]) in caught.value.why


def test_a_row_twice_and_a_column_missing_are_refused():
    frame = made(EFFECTS)
    with pytest.raises(UserError, match="occurs twice"):
        compare(pd.concat([frame, frame.iloc[[3]]]))
    with pytest.raises(UserError, match="split_hash"):
        compare(frame.drop(columns="split_hash"))
    with pytest.raises(UserError, match="nothing to compare"):
        compare(frame.iloc[:0])


def test_few_dense_errors_are_flagged_and_unknown_ones_are_not_guessed():
    frame = made(EFFECTS, n_test=100)
    tasks = compare(frame).tasks
    flags = tasks.groupby("task")["few_dense_errors"].first()
    assert flags.to_dict() == {"digits": True, "dtd": False, "pets": False}
    assert compare(frame.drop(columns="n_test")).tasks["few_dense_errors"].isna().all()


def test_probes_that_disagree_in_sign_are_marked():
    sgd = made(EFFECTS)
    lbfgs = made({**EFFECTS, ("gmp", 0.8): -0.05}, mode="linear-lbfgs")
    full = made(EFFECTS, mode="full", profile="short")
    table = compare(pd.concat([sgd, lbfgs, full])).methods
    for mode in ("linear-sgd", "linear-lbfgs"):
        assert method(table, "gmp", 0.8, mode=mode)["probe_dependent"]
        assert not method(table, "gmp", 0.95, mode=mode)["probe_dependent"]
    assert table.loc[table["mode"] == "full", "probe_dependent"].isna().all()
    assert compare(sgd).methods["probe_dependent"].isna().all()


def test_full_below_linear_is_marked_per_task():
    linear = made(EFFECTS)
    full = made(EFFECTS, mode="full", profile="short")
    full["value"] += 0.05
    below = (full["method"] == "fggp") & (full["task"] == "dtd")
    full.loc[below, "value"] -= 0.1
    tasks = compare(pd.concat([linear, full])).tasks
    marked = tasks[tasks["worse_than_linear"].fillna(False)]
    assert marked[["mode", "method", "task"]].to_numpy().tolist() == [["full", "fggp", "dtd"]]
    assert tasks.loc[tasks["mode"] != "full", "worse_than_linear"].isna().all()


class Stored:
    """Predictions of the rows of a frame, that count how often they are read."""

    def __init__(self, n: int = 200) -> None:
        self.n, self.reads = n, dict[str, int]()

    def __call__(self, row) -> Predictions:
        self.reads[row["run"]] = self.reads.get(row["run"], 0) + 1
        labels = np.arange(self.n) % 4
        wrong = np.arange(self.n) < round((1 - row["value"]) * self.n)
        logits = 5.0 * (np.arange(4) == ((labels + wrong) % 4)[:, None])
        return Predictions.from_logits(np.arange(self.n).astype(str), labels, logits)


def test_intervals_over_examples_come_from_stored_predictions():
    frame, stored = made(EFFECTS, seeds=[0]), Stored()
    frame["value"] = frame["value"].mul(200).round().div(200)
    found = compare(frame, predictions=stored)
    assert set(stored.reads.values()) == {1}
    gmp = method(found.methods, "gmp", 0.95)
    assert gmp["interval_over"] == "test examples"
    assert gmp["low"] == gmp["examples_low"] < gmp["mor"] < gmp["examples_high"]
    assert gmp["conditional"]
    assert 0 < gmp["mde"] < 0.5
    tasks = found.tasks[~found.tasks["is_dense"]]
    assert np.all(tasks["examples_low"] < tasks["r"])
    assert np.all(tasks["r"] < tasks["examples_high"])
    assert found.tasks.loc[found.tasks["is_dense"], "examples_low"].isna().all()


def test_test_sets_of_different_tasks_are_drawn_independently():
    """Three tasks with the same errors: the mean's interval is √3 narrower than one task's."""
    rows = [
        row(name, sparsity, task, 0, value)
        for task in TASKS
        for name, sparsity, value in [("dense", 0.0, 0.6), ("gmp", 0.9, 0.5)]
    ]
    found = compare(pd.DataFrame(rows), predictions=Stored())
    tasks = found.tasks[~found.tasks["is_dense"]]
    gmp = method(found.methods, "gmp", 0.9)
    width = (tasks["examples_high"] - tasks["examples_low"]).mean()
    expected = width / math.sqrt(3)
    assert gmp["examples_high"] - gmp["examples_low"] == pytest.approx(expected, rel=0.1)


def test_rows_without_stored_predictions_have_no_interval_over_examples():
    frame, stored = made(EFFECTS, seeds=[0]), Stored()
    frame["predictions"] = [None if task == "dtd" else "p.parquet" for task in frame["task"]]
    found = compare(frame, predictions=stored)
    assert found.methods["examples_low"].isna().all()  # dtd is missing from the mean
    tasks = found.tasks
    known = tasks[~tasks["is_dense"]].groupby("task")["examples_low"].count().to_dict()
    assert known == {"digits": 3, "dtd": 0, "pets": 3}
    assert not any("dtd" in run for run in stored.reads)


def test_seeds_decide_even_where_there_are_predictions():
    frame = made(EFFECTS, seeds=range(2))
    frame["value"] = frame["value"].mul(200).round().div(200)
    gmp = method(compare(frame, predictions=Stored()).methods, "gmp", 0.95)
    assert gmp["interval_over"] == "upstream seeds"
    assert np.isfinite(gmp["examples_low"])


def test_comparison_is_a_function_of_its_seed():
    frame = made(EFFECTS, seeds=[0])
    one, two, three = (compare(frame, predictions=Stored(), seed=seed).tasks for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one, two)
    assert not one["examples_low"].equals(three["examples_low"])


def test_all_tasks_are_there():
    assert set(compare(made(EFFECTS)).tasks["task"]) == set(TASKS)

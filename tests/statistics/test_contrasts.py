"""Contrasts of methods and modes, by hand and by their symmetries."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sparse_transfer.errors import UserError
from sparse_transfer.statistics import (
    CONDITIONAL,
    compare,
    contrast,
    difficulty,
    difficulty_correlation,
    pooled_sd,
    seed_noise,
    seed_noise_of_mean,
    sign_flip_test,
    worse_than_linear,
)
from tests.statistics.results import made, row

EFFECTS = {("gmp", 0.8): 0.05, ("gmp", 0.95): 0.4, ("fggp", 0.8): 0.05, ("fggp", 0.95): 0.2}


def test_difference_is_that_of_the_comparison():
    frame = made(EFFECTS)
    table = compare(frame).methods.set_index(["method", "sparsity"])
    found = contrast(frame, "fggp", "gmp").set_index("sparsity")
    assert list(found.index) == [0.8, 0.95]
    for sparsity in (0.8, 0.95):
        for ours, theirs in [
            ("difference", "mor"),
            ("rom_difference", "rom"),
            ("geometric_difference", "geometric"),
        ]:
            expected = table.loc[("fggp", sparsity), theirs] - table.loc[("gmp", sparsity), theirs]
            assert found.loc[sparsity, ours] == pytest.approx(expected)


def test_a_decided_contrast_has_a_winner_and_an_undecided_one_has_none():
    found = contrast(made(EFFECTS, seeds=range(6)), "fggp", "gmp").set_index("sparsity")
    decided, open_ = found.loc[0.95], found.loc[0.8]
    assert (decided["verdict"], decided["winner"]) == ("better", "fggp")
    assert decided["seeds_p"] == pytest.approx(2 / 2**6)
    assert not decided["conditional"]
    assert open_["winner"] == ""
    assert open_["verdict"] == "undecided"
    assert open_["mde"] > 0
    assert (decided["n_tasks"], decided["n_seeds"]) == (3, 6)


def test_no_winner_where_the_aggregates_disagree():
    """fggp loses on a saturated task and gains more errors than that on a hard one."""
    rows = []
    for seed in range(4):
        for task, dense, gmp, fggp in [("easy", 0.02, 0.02, 0.03), ("hard", 0.5, 0.5, 0.45)]:
            shift = 1e-4 * seed
            rows.append(row("dense", 0.0, task, seed, 1 - dense))
            rows.append(row("gmp", 0.9, task, seed, 1 - gmp + shift))
            rows.append(row("fggp", 0.9, task, seed, 1 - fggp - shift))
    found = contrast(pd.DataFrame(rows), "fggp", "gmp").iloc[0]
    assert found["verdict"] == "worse"
    assert not found["sign_agreed"]
    assert found["winner"] == ""


def test_swapping_the_methods_swaps_the_signs():
    frame = made(EFFECTS)
    one, two = contrast(frame, "fggp", "gmp"), contrast(frame, "gmp", "fggp")
    assert one["difference"].to_numpy() == pytest.approx(-two["difference"].to_numpy())
    assert one["low"].to_numpy() == pytest.approx(-two["high"].to_numpy())
    assert one["mde"].to_numpy() == pytest.approx(two["mde"].to_numpy())
    assert one["winner"].tolist() == two["winner"].tolist()


def test_sign_flips_are_over_upstream_seeds():
    frame = made(EFFECTS)
    part = frame[frame["sparsity"].isin([0.0, 0.8])]
    by_seed = []
    for seed in range(4):
        dense = part[part["method"] == "dense"].groupby("task")["value"].mean()
        values = part[part["upstream_seed"] == seed].set_index(["method", "task"])["value"]
        errors = {m: 1 - values[m] for m in ("dense", "gmp", "fggp")}
        increase = {}
        for name in ("gmp", "fggp"):
            means = 1 - part[part["method"] == name].groupby("task")["value"].mean()
            ratio = means / (1 - dense)
            increase[name] = ratio - 1 + (errors[name] - ratio * errors["dense"]) / (1 - dense)
        by_seed.append((increase["fggp"] - increase["gmp"]).mean())
    found = contrast(part, "fggp", "gmp").iloc[0]
    assert found["difference"] == pytest.approx(np.mean(by_seed))
    assert found["seeds_p"] == pytest.approx(sign_flip_test(by_seed))


def test_one_seed_is_conditional():
    found = contrast(made(EFFECTS, seeds=[0]), "fggp", "gmp").iloc[0]
    assert found["conditional"]
    assert found["interval_over"] == "tasks"
    assert found["verdict_text"].endswith(CONDITIONAL)
    assert np.isnan(found["seeds_p"])


def test_one_seed_and_one_task_have_no_interval():
    frame = made(EFFECTS, seeds=[0])
    found = contrast(frame[frame["task"] == "dtd"], "fggp", "gmp")
    assert found[["low", "high"]].isna().all(axis=None)
    assert set(found["verdict"]) == {"no interval could be computed"}
    assert set(found["verdict_text"]) == {"no interval could be computed from one difference"}
    assert set(found["winner"]) == {""} and set(found["interval_over"]) == {""}


def test_only_the_two_methods_and_dense_must_be_complete():
    frame = made({**EFFECTS, ("acdc", 0.95): 0.3})
    holed = frame[(frame["method"] != "acdc") | (frame["task"] != "dtd")]
    assert len(contrast(holed, "fggp", "gmp")) == 2
    with pytest.raises(UserError, match="acdc 0.95 on dtd, upstream seed 0"):
        contrast(holed, "fggp", "acdc")
    shared = contrast(holed, "fggp", "acdc", allow_unequal=True).iloc[0]
    assert shared["n_tasks"] == 2
    assert "acdc" in shared["missing"]


def test_an_unknown_method_gets_its_neighbours():
    with pytest.raises(UserError, match="Did you mean fggp"):
        contrast(made(EFFECTS), "fgp", "gmp")


def test_no_shared_sparsity_gives_an_empty_table():
    assert contrast(made({("gmp", 0.8): 0.1, ("fggp", 0.9): 0.1}), "gmp", "fggp").empty


def two_modes() -> pd.DataFrame:
    linear = made({("gmp", 0.9): 0.3, ("fggp", 0.9): 0.1}, noise=0)
    full = made({("gmp", 0.9): 0.0, ("fggp", 0.9): 0.2}, noise=0, mode="full", profile="short")
    full["value"] = 1 - (1 - full["value"]) / 2  # half the errors: ratios stay
    return pd.concat([linear, full])


def test_difficulty_is_what_training_the_features_gains():
    found = difficulty(two_modes()).set_index("task")
    assert found.loc["pets", "difficulty"] == pytest.approx(0.25)  # .5 → .25 errors
    assert found.loc["digits", "difficulty"] == pytest.approx(0.1)


def test_difficulty_correlation_by_hand():
    frame = two_modes()
    sparse = (frame["method"] == "gmp") & (frame["mode"] == "linear-sgd")
    wanted = {"digits": 0.1, "dtd": 0.4, "pets": 0.1}
    dense = {"digits": 0.2, "dtd": 0.35, "pets": 0.5}
    for task, r in wanted.items():
        frame.loc[sparse & (frame["task"] == task), "value"] = 1 - dense[task] * (1 + r)
    found = difficulty_correlation(compare(frame), difficulty(frame))
    found = found.set_index(["mode", "method"])["r"]
    # Difficulties .1, .175, .25 are symmetric about dtd: no correlation.
    assert found["linear-sgd", "gmp"] == pytest.approx(0, abs=1e-9)
    assert len(found) == 4


def test_worse_than_linear_finds_the_cell():
    frame = two_modes()
    assert worse_than_linear(frame).empty
    bad = (frame["mode"] == "full") & (frame["method"] == "gmp") & (frame["task"] == "dtd")
    frame.loc[bad, "value"] = 0.1
    found = worse_than_linear(frame)
    assert found[["method", "task"]].to_numpy().tolist() == [["gmp", "dtd"]]
    assert found["difference"].iloc[0] == pytest.approx(0.1 - (1 - 0.35 * 1.3))


def test_seed_noise_and_pooled_sd_by_hand():
    frame = pd.concat(
        [
            made({("gmp", 0.9): 0.1}, seeds=[0], noise=0).assign(transfer_seed=seed)
            for seed in range(3)
        ]
    )
    frame["value"] += 0.01 * (frame["transfer_seed"] - 1)
    noise = seed_noise(frame)
    assert noise["sd"].to_numpy() == pytest.approx(0.01)
    assert set(noise["n"]) == {3}
    assert pooled_sd([0.1, 0.2, 9.0], [3, 2, 1]) == pytest.approx(np.sqrt((2 * 0.01 + 0.04) / 3))
    assert np.isnan(pooled_sd([float("nan")], [1]))
    mean = seed_noise_of_mean(frame).iloc[0]
    dense = np.array([0.2, 0.35, 0.5])
    variance = 0.01**2 / 3 / dense**2
    assert mean["error"] == pytest.approx(np.sqrt(variance.sum()) / 3)
    assert mean["error_with_dense"] == pytest.approx(np.sqrt((variance * 2.21).sum()) / 3)


def test_noise_of_single_runs_is_unknown():
    found = seed_noise_of_mean(made({("gmp", 0.9): 0.1}, seeds=[0]))
    assert found["error"].isna().all()

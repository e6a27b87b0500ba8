"""The figures of "How Well Do Sparse ImageNet Models Transfer?" from its raw ResNet-50 results.

`study_means.csv`: per-task means and aggregates in percent, two decimals, as published with the
protocol reference of this project (derived there by another program from the same raw files). Two
last digits are corrected: the reference rounded twice, 2.206253 to 220.62 instead of 220.63 (mor,
linear LTH-T 90 %) and .1686503 to 16.86 instead of 16.87 (rom, full AC/DC 95 %).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sparse_transfer.imports.results import METRICS, read_results
from sparse_transfer.statistics import (
    Comparison,
    bca_interval,
    compare,
    contrast,
    difficulty,
    difficulty_correlation,
    friedman,
    hierarchical_bootstrap,
    pooled_sd,
    seed_noise,
    seed_noise_of_mean,
    worse_than_linear,
)
from sparse_transfer.statistics.reversals import reversals

pytestmark = pytest.mark.real

HALF_A_DIGIT = 0.5e-4 + 1e-9  # two decimals of percent
SPARSE = ["AC/DC", "LTH-T", "RigL ERK 1x", "RigL ERK 5x", "STR", "WoodFisher"]


@pytest.fixture(scope="module")
def frame(shared: Path) -> pd.DataFrame:
    names = ["linear_transfer_results.txt", "full_transfer_results.txt"]
    return pd.concat([read_results(shared / "paper" / name) for name in names])


@pytest.fixture(scope="module")
def comparison(frame: pd.DataFrame) -> Comparison:
    return compare(frame)


@pytest.fixture(scope="module")
def methods(comparison: Comparison) -> pd.DataFrame:
    return comparison.methods.set_index(["mode", "method", "sparsity"]).sort_index()


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    table = pd.read_csv(Path(__file__).with_name("study_means.csv"))
    return table.set_index(["mode", "method", "sparsity"]).sort_index() / 100


def test_every_per_task_mean(comparison: Comparison, published: pd.DataFrame):
    found = comparison.tasks.pivot(
        index=["mode", "method", "sparsity"], columns="task", values="value"
    ).sort_index()
    assert found.shape == (40, 12)
    gaps = (found - published[list(METRICS)]).abs()
    assert gaps.to_numpy().max() <= HALF_A_DIGIT


@pytest.mark.parametrize(
    ("ours", "theirs"), [("mean_value", "mean"), ("mor", "mor"), ("rom", "rom")]
)
def test_every_aggregate(methods: pd.DataFrame, published: pd.DataFrame, ours: str, theirs: str):
    assert (methods[ours] - published[theirs]).abs().max() <= HALF_A_DIGIT


@pytest.mark.parametrize(
    ("mode", "method", "sparsity", "mor", "rom"),
    [
        ("linear-sgd", "AC/DC", 0.8, -0.0319, -0.0410),
        ("linear-sgd", "RigL ERK 5x", 0.9, 0.0020, None),
        ("linear-sgd", "WoodFisher", 0.8, 0.1531, None),
        ("linear-sgd", "STR", 0.98, 0.3807, None),
        ("full", "WoodFisher", 0.8, 0.0066, 0.0155),
        ("full", "AC/DC", 0.8, 0.0769, None),
        ("full", "RigL ERK 1x", 0.95, 0.4186, None),
    ],
)
def test_headline_fixtures(methods, mode, method, sparsity, mor, rom):
    found = methods.loc[(mode, method, sparsity)]
    assert found["mor"] == pytest.approx(mor, abs=5e-5)
    if rom is not None:
        assert found["rom"] == pytest.approx(rom, abs=5e-5)


def test_mean_accuracies(frame: pd.DataFrame, methods: pd.DataFrame):
    means = frame.groupby(["mode", "method", "sparsity", "task"])["value"].mean()
    for method, sparsity, expected in [
        ("dense", 0.0, 0.49158),
        ("AC/DC", 0.8, 0.55116),
        ("WoodFisher", 0.8, 0.40042),
        ("RigL ERK 5x", 0.95, 0.56942),
    ]:
        found = means["linear-sgd", method, sparsity, "aircraft"]
        assert found == pytest.approx(expected, abs=1e-9)
    assert methods.loc[("linear-sgd", "dense", 0.0), "mean_value"] == pytest.approx(
        0.7448, abs=5e-5
    )
    assert methods.loc[("full", "dense", 0.0), "mean_value"] == pytest.approx(0.8546, abs=5e-5)


def test_the_two_aggregates_differ_in_sign_in_four_linear_cells(methods: pd.DataFrame):
    sparse = methods[~methods["is_dense"]]
    differ = sparse[np.sign(sparse["mor"]) != np.sign(sparse["rom"])]
    assert set(differ.index) == {
        ("linear-sgd", "RigL ERK 1x", 0.8),
        ("linear-sgd", "RigL ERK 5x", 0.8),
        ("linear-sgd", "RigL ERK 5x", 0.9),
        ("linear-sgd", "AC/DC", 0.95),
    }
    assert not differ["sign_agreed"].any()


def test_everything_is_conditional_on_one_checkpoint(methods: pd.DataFrame):
    assert methods["conditional"].all()
    assert set(methods.loc[~methods["is_dense"], "interval_over"]) == {"tasks"}


@pytest.mark.parametrize(
    ("mode", "method", "sparsity", "half_width"),
    [("linear-sgd", "AC/DC", 0.9, 0.038), ("full", "WoodFisher", 0.8, 0.034)],
)
def test_interval_over_tasks(methods, mode, method, sparsity, half_width):
    found = methods.loc[(mode, method, sparsity)]
    assert (found["tasks_high"] - found["tasks_low"]) / 2 == pytest.approx(half_width, abs=5e-4)


@pytest.mark.parametrize(
    ("mode", "method", "sparsity", "p", "wins"),
    [
        ("linear-sgd", "AC/DC", 0.8, 0.021, 9),
        ("linear-sgd", "STR", 0.8, 0.47, None),
        ("linear-sgd", "RigL ERK 5x", 0.8, 0.47, None),
        ("linear-sgd", "RigL ERK 1x", 0.8, 0.42, None),
        ("linear-sgd", "WoodFisher", 0.8, 0.0005, 0),
        ("linear-sgd", "AC/DC", 0.9, 0.20, None),
        ("linear-sgd", "RigL ERK 5x", 0.9, 0.52, None),
        ("linear-sgd", "STR", 0.9, 0.34, None),
        ("linear-sgd", "WoodFisher", 0.9, 0.0005, 0),
        ("full", "WoodFisher", 0.8, 0.68, 6),
        ("full", "AC/DC", 0.8, 0.0005, 0),
        ("full", "WoodFisher", 0.9, 0.092, None),
    ],
)
def test_wilcoxon_against_dense(methods, mode, method, sparsity, p, wins):
    found = methods.loc[(mode, method, sparsity)]
    digits = len(str(p).partition(".")[2])
    assert round(found["wilcoxon_p"], digits) == p
    if wins is not None:
        assert found["wins"] == wins


def test_all_others_are_worse_than_dense_in_full_at_90_percent(methods: pd.DataFrame):
    full = methods.loc["full"].xs(0.9, level="sparsity").drop("WoodFisher")
    assert (full["wilcoxon_p"] <= 0.004).all()
    assert (full["mor"] > 0).all()


def test_wilcoxon_of_lth_t_is_exact_with_its_tie(frame: pd.DataFrame, methods: pd.DataFrame):
    """Two of its twelve differences tie (−.97667 points): counting all sign patterns gives .0112.

    The reference prints .012, which is the table for untied ranks.
    """
    means = frame[frame["mode"] == "full"].groupby(["method", "sparsity", "task"])["value"].mean()
    gaps = (means["LTH-T", 0.8] - means["dense", 0.0]).round(9).to_numpy()
    assert len(np.unique(np.abs(gaps))) == 11
    found = methods.loc[("full", "LTH-T", 0.8), "wilcoxon_p"]
    assert found == pytest.approx(46 / 2**12)
    assert round(stats.wilcoxon(gaps, method="exact").pvalue, 3) == 0.012


@pytest.mark.parametrize(
    ("mode", "ranks"),
    [
        ("full", [2.58, 2.92, 5.08, 4.33, 4.67, 1.42]),
        ("linear-sgd", [1.75, 6.0, 3.67, 2.67, 2.42, 4.5]),
    ],
)
def test_mean_ranks_at_80_percent(frame: pd.DataFrame, mode: str, ranks: list[float]):
    part = frame[(frame["mode"] == mode) & (frame["sparsity"] == 0.8)]
    table = part.pivot_table(index="task", columns="method", values="value")[SPARSE]
    found = friedman(table.to_numpy())
    assert found.mean_ranks == pytest.approx(ranks, abs=0.005)
    assert found.blocks == 12
    assert found.p < 1e-5


def test_difficulty_of_the_tasks(frame: pd.DataFrame):
    found = difficulty(frame).set_index("task")["difficulty"]
    expected = {
        "pets": 0.84,
        "caltech256": 1.31,
        "caltech101": 1.60,
        "dtd": 2.69,
        "flowers102": 3.45,
        "sun397": 4.67,
        "cifar10": 6.15,
        "cifar100": 11.04,
        "food101": 14.02,
        "birdsnap": 14.63,
        "aircraft": 34.46,
        "stanford_cars": 36.85,
    }
    assert (100 * found).round(2).to_dict() == expected


def test_correlation_with_difficulty(frame: pd.DataFrame, comparison: Comparison):
    found = difficulty_correlation(comparison, difficulty(frame))
    table = found.set_index(["mode", "method", "sparsity"])["r"]
    linear = table["linear-sgd"]
    for method, expected in {
        "AC/DC": [-0.44, -0.53, -0.58],
        "RigL ERK 1x": [-0.65, -0.75, -0.72],
        "RigL ERK 5x": [-0.63, -0.75, -0.66],
        "STR": [-0.47, -0.44, -0.51, -0.56],
        "WoodFisher": [0.15, -0.04, -0.31],
    }.items():
        assert linear[method].to_numpy() == pytest.approx(expected, abs=0.00505)
    assert table["full"].drop("LTH-T").abs().max() < 0.45


@pytest.mark.parametrize(("sparsity", "gap"), [(0.8, 15.2), (0.9, 12.6), (0.95, 11.4)])
def test_best_and_worst_linear_method_on_aircraft(comparison: Comparison, sparsity, gap):
    """About 15 points at 80 %, LTH-T left out, as its masks lie on weights not retrained."""
    rows = comparison.tasks
    rows = rows[(rows["mode"] == "linear-sgd") & (rows["task"] == "aircraft")]
    values = rows[rows["sparsity"] == sparsity].set_index("method")["value"].drop("LTH-T")
    assert values.idxmin() == "WoodFisher"
    assert round(100 * (values.max() - values.min()), 1) == gap


def test_full_transfer_loses_with_sparsity_but_for_one_pair(methods: pd.DataFrame):
    full = methods.loc["full", "mor"]
    steps = {
        (method, sparsity): full[method].diff().loc[sparsity]
        for method in SPARSE
        for sparsity in full[method].index[1:]
    }
    assert [step for step, change in steps.items() if change <= 0] == [("RigL ERK 5x", 0.9)]
    assert full["RigL ERK 5x", 0.8].round(3) == full["RigL ERK 5x", 0.9].round(3) == 0.209


def test_seed_noise(frame: pd.DataFrame):
    noise = seed_noise(frame[frame["mode"] == "linear-sgd"])
    assert len(noise) == 240
    without = noise[noise["method"] != "LTH-T"]
    assert round(100 * pooled_sd(noise["sd"], noise["n"]), 2) == 0.13
    assert round(100 * pooled_sd(without["sd"], without["n"]), 3) == 0.106
    assert round(100 * noise["sd"].median(), 3) == 0.074
    assert round(100 * noise["sd"].max(), 2) == 0.62


def test_seed_noise_of_the_headline(frame: pd.DataFrame):
    """.1 to .7 points of relative error, but 1.5 for LTH-T at 95 % in full."""
    noise = seed_noise_of_mean(frame).set_index(["mode", "method", "sparsity"])["error"]
    assert round(100 * noise["full", "LTH-T", 0.95], 1) == 1.5
    rest = (100 * noise.drop(("full", "LTH-T", 0.95))).round(1)
    assert (rest.min(), rest.max()) == (0.1, 0.7)


def test_pairing_by_seed_hardly_moves_the_linear_headline(frame, methods):
    """Only linear seeds pair; with each run's own dense run as denominator mor moves < .0004."""
    linear = frame[frame["mode"] == "linear-sgd"]
    wide = 1 - linear.pivot(
        index=["task", "transfer_seed"], columns=["method", "sparsity"], values="value"
    )
    dense = wide["dense", 0.0]
    paired = wide.div(dense, axis=0).mean() - 1
    sparse = [cell for cell in paired.index if cell[0] not in ("dense", "LTH-T")]
    gaps = [abs(paired[cell] - methods.loc[("linear-sgd", *cell), "mor"]) for cell in sparse]
    assert max(gaps) < 0.0004


def test_full_is_worse_than_linear_in_34_cells(frame: pd.DataFrame, comparison: Comparison):
    found = worse_than_linear(frame)
    counts = found.groupby(["method", "sparsity"]).size().to_dict()
    assert counts == {
        ("RigL ERK 1x", 0.8): 4,
        ("RigL ERK 1x", 0.9): 5,
        ("RigL ERK 1x", 0.95): 5,
        ("RigL ERK 5x", 0.8): 5,
        ("RigL ERK 5x", 0.9): 4,
        ("RigL ERK 5x", 0.95): 5,
        ("STR", 0.8): 2,
        ("STR", 0.9): 2,
        ("STR", 0.95): 1,
        ("STR", 0.98): 1,
    }
    assert len(found) == comparison.tasks["worse_than_linear"].sum() == 34
    sun = found[(found["method"] == "RigL ERK 5x") & (found["sparsity"] == 0.8)].set_index("task")
    assert 100 * sun.loc["sun397", ["full", "linear"]].to_numpy(float) == pytest.approx(
        [55.45, 59.94], abs=0.005
    )


@pytest.mark.parametrize(("sparsity", "mean"), [(0.8, 0.255), (0.9, 0.240), (0.95, 0.232)])
def test_the_ranking_of_woodfisher_and_acdc_reverses(comparison, sparsity: float, mean: float):
    linear, full = (comparison.tasks.query(f"mode == '{m}'") for m in ("linear-sgd", "full"))
    found = reversals(linear, full, [("WoodFisher", "AC/DC")]).set_index("sparsity").loc[sparsity]
    assert found["n_tasks"] == found["n_positive"] == 12
    assert found["interaction"] == pytest.approx(mean, abs=5e-4)
    assert found["changes_places"]


def test_the_reversal_as_two_contrasts(frame: pd.DataFrame):
    found = contrast(frame, "WoodFisher", "AC/DC").set_index(["mode", "sparsity"])
    assert (found.loc["linear-sgd", "winner"] == "AC/DC").all()
    assert (found.loc["full", "winner"] == "WoodFisher").all()
    assert found["conditional"].all()


def test_three_intervals_over_tasks_say_the_same(frame: pd.DataFrame, methods: pd.DataFrame):
    """t, BCa and the hierarchical bootstrap, linear WoodFisher at 90 %: near ±4 points."""
    linear = frame[frame["mode"] == "linear-sgd"]
    errors = 1 - linear.pivot(
        index=["task", "transfer_seed"], columns=["method", "sparsity"], values="value"
    )
    dense = errors["dense", 0.0].to_numpy().reshape(12, 5)
    sparse = errors["WoodFisher", 0.9].to_numpy().reshape(12, 5)
    row = methods.loc[("linear-sgd", "WoodFisher", 0.9)]
    bca = bca_interval(sparse.mean(axis=1) / dense.mean(axis=1) - 1)
    both = hierarchical_bootstrap(dense, sparse, crossed=False)
    for found in (bca, both):
        assert found.estimate == pytest.approx(row["mor"])
        assert (found.low, found.high) == pytest.approx((row["low"], row["high"]), abs=0.02)

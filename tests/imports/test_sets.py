"""Imported sets: what is kept, what is left out and named, and the means of the rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparse_transfer.errors import UserError
from sparse_transfer.imports import coverage, sets
from sparse_transfer.imports.beside import join
from sparse_transfer.imports.results import METRICS
from sparse_transfer.statistics import Comparison, compare, contrast
from sparse_transfer.statistics.cells import checked, groups
from tests.statistics.results import row
from tests.test_main import call

HEADER = "dset,model,sparsity,seed,val_acc"
FULL = [
    "dtd,Dense,0.0,seed_1,0.7",
    "pets,Dense,0.0,seed_1,0.9",
    "dtd,STR,0.9,seed_1,0.64",
    "pets,STR,0.9,seed_1,0.91",
]


def written(folder: Path, lines: list[str], name: str = "linear_a.txt") -> Path:
    path = folder / name
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


def read(folder: Path, lines: list[str], **how) -> pd.DataFrame:
    return sets.read([written(folder, lines)], sets.Reading(**how))


def test_a_complete_set_is_kept_whole_and_its_means_are_those_of_compare(tmp_path: Path):
    frame = read(tmp_path, FULL)
    kept, gaps = coverage.complete(frame)
    assert gaps == []
    pd.testing.assert_frame_equal(kept, frame)
    (found,) = coverage.summary(kept).to_dict("records")
    assert found["mean_of_ratios"] == pytest.approx((0.06 / 0.3 - 0.01 / 0.1) / 2)
    assert found["ratio_of_means"] == pytest.approx(0.45 / 0.4 - 1)
    assert (found["n_tasks"], found["fewest_seeds"], found["most_seeds"]) == (2, 1, 1)


@pytest.mark.real
def test_the_summary_of_the_study_is_that_of_compare(shared: Path):
    names = ["linear_transfer_results.txt", "full_transfer_results.txt"]
    frame = sets.read([shared / "paper" / name for name in names], sets.Reading())
    kept, gaps = coverage.complete(frame)
    assert gaps == [] and len(kept) == 1923
    ours = coverage.summary(kept).set_index(["mode", "method", "sparsity"]).sort_index()
    comparison: Comparison = compare(kept)
    theirs = comparison.methods.set_index(["mode", "method", "sparsity"]).sort_index()
    theirs = theirs[~theirs["is_dense"]]
    assert len(ours) == 38 and list(ours.index) == list(theirs.index)
    for own, name in (("mean_of_ratios", "mor"), ("ratio_of_means", "rom")):
        np.testing.assert_allclose(ours[own], theirs[name], rtol=0, atol=1e-12)
    assert set(ours["n_tasks"]) == {12} and ours["most_seeds"].max() == 5


def test_a_method_with_half_the_tasks_is_in_no_mean(tmp_path: Path):
    frame = read(tmp_path, [*FULL, "dtd,GMP,0.9,seed_1,0.69"])
    kept, gaps = coverage.complete(frame)
    (gap,) = gaps
    assert str(gap).startswith("linear_a.txt, line 6: GMP 0.9 has 1 of 2 tasks")
    assert "missing: pets" in gap.text and (gap.method, gap.sparsity) == ("GMP", 0.9)
    assert set(kept["method"]) == {"dense", "STR"}
    assert coverage.summary(kept)["method"].tolist() == ["STR"]


def test_a_task_without_dense_is_in_no_mean(tmp_path: Path):
    frame = read(tmp_path, [*FULL, "cars,STR,0.9,seed_1,0.5"])
    kept, gaps = coverage.complete(frame)
    (gap,) = gaps
    assert str(gap).startswith("linear_a.txt, line 6: stanford_cars has no dense baseline")
    assert set(kept["task"]) == {"dtd", "pets"}
    assert coverage.summary(kept)["n_tasks"].tolist() == [2]


def test_a_task_that_only_dense_has_is_named(tmp_path: Path):
    kept, gaps = coverage.complete(read(tmp_path, [*FULL, "cars,Dense,0,seed_1,0.5"]))
    assert "stanford_cars has no sparse method" in gaps[0].text
    assert set(kept["task"]) == {"dtd", "pets"}


def test_a_missing_dense_baseline_is_refused_or_left_out(tmp_path: Path):
    alone = read(tmp_path, FULL[2:])
    kept, gaps = coverage.complete(alone)
    with pytest.raises(UserError, match="line 2: resnet50, linear-sgd: no dense baseline"):
        coverage.refuse_empty(kept, gaps)
    files = [written(tmp_path, FULL), written(tmp_path, FULL[2:], "full_a.txt")]
    kept, gaps = coverage.complete(sets.read(files, sets.Reading()))
    coverage.refuse_empty(kept, gaps)
    assert set(kept["mode"]) == {"linear-sgd"}
    assert str(gaps[0]).startswith("full_a.txt, line 2:")


def test_files_that_hold_no_sparse_result_are_refused(tmp_path: Path, capsys):
    kept, gaps = coverage.complete(read(tmp_path, FULL[:2]))
    assert gaps == []
    with pytest.raises(UserError, match="nothing that can be compared") as error:
        coverage.refuse_empty(kept, gaps)
    assert "dense" in error.value.why
    runs = tmp_path / "runs"
    assert call("import-results", str(tmp_path / "linear_a.txt"), "--runs", str(runs)) == 2
    assert "nothing that can be compared" in capsys.readouterr().err and not runs.exists()


def test_two_sparsities_that_align_across_files_are_refused(tmp_path: Path):
    other = FULL[2].replace("0.9,seed_1", "0.89,seed_2")
    files = [written(tmp_path, FULL), written(tmp_path, [other], "linear_b.txt")]
    assert len(sets.read(files, sets.Reading())) == 5
    with pytest.raises(UserError, match=r"STR 0.89 and 0.9 on dtd") as error:
        sets.read(files, sets.Reading(levels=(0.9,)))
    assert "linear_b.txt, line 2: 0.89" in error.value.why
    assert "linear_a.txt, line 4: 0.9" in error.value.why


def test_a_mobilenet_and_a_resnet_file_are_separate_models(tmp_path: Path):
    lines = [line.replace("0.64", "0.61") for line in FULL]
    files = [written(tmp_path, FULL), written(tmp_path, lines, "linear_mobilenet_a.txt")]
    kept, gaps = coverage.complete(sets.read(files, sets.Reading()))
    table = coverage.summary(kept).set_index("model")["mean_of_ratios"]
    assert gaps == [] and set(table.index) == {"resnet50", "mobilenetv1_100"}
    assert table["resnet50"] == pytest.approx(0.05)
    assert table["mobilenetv1_100"] == pytest.approx(0.10)


def test_equal_keys_are_kept_in_the_table_and_averaged_when_compared(tmp_path: Path):
    frame = read(tmp_path, [*FULL, "dtd,STR,0.9,seed_1,0.60"])
    files = [tmp_path / "linear_a.txt"]
    sets.write(tmp_path / "runs", "a", frame, files, sets.Reading())
    table = pd.read_parquet(tmp_path / "runs" / "imported" / "a" / "linear_a.txt.parquet")
    assert table["occurrence"].tolist() == [0, 0, 0, 0, 1]
    loaded, _ = sets.load(tmp_path / "runs", "a")
    assert loaded.loc[
        (loaded["method"] == "STR") & (loaded["task"] == "dtd"), "value"
    ].tolist() == [pytest.approx(0.62)]
    assert sets.sources(frame)[0]["repeated"] == 1
    for how, expected in (("first", 0.64), ("last", 0.60)):
        chosen = read(tmp_path, [*FULL, "dtd,STR,0.9,seed_1,0.60"], duplicates=how)
        assert expected in chosen["value"].tolist() and len(chosen) == 4


def test_a_run_in_two_files_is_refused_with_both_lines(tmp_path: Path):
    files = [written(tmp_path, FULL), written(tmp_path, FULL[3:], "linear_b.txt")]
    with pytest.raises(UserError, match=r"linear_b.txt, line 2: .* linear_a.txt, line 5"):
        sets.read(files, sets.Reading())
    with pytest.raises(UserError, match="Two files are named linear_a.txt"):
        sets.read([files[0], files[0]], sets.Reading())


def test_importing_again_replaces_the_set(tmp_path: Path):
    runs = tmp_path / "runs"
    for lines, name in ((FULL, "linear_a.txt"), (FULL, "linear_b.txt")):
        path = written(tmp_path, lines, name)
        how = sets.Reading(levels=(0.9,))
        folder = sets.write(runs, "a", sets.read([path], how), [path], how)
    assert sorted(path.name for path in folder.iterdir()) == ["linear_b.txt.parquet", "set.json"]
    noted = json.loads((folder / "set.json").read_text())
    assert noted["origin"] == "imported: declared, not verified"
    assert noted["sources"][0]["rows"] == 4 and len(noted["sources"][0]["sha256"]) == 64
    assert noted["read_with"]["levels"] == [0.9]
    assert sets.names(runs) == ["a"]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["x/linear_transfer_results.txt", "x/full_mobilenet_transfer_results.txt"], "paper"),
        (["x/Their Results.csv"], "their-results"),
        (["made up/linear.txt", "made up/full.txt"], "made-up"),
    ],
)
def test_the_default_name(files: list[str], name: str):
    assert sets.default_name([Path(file) for file in files]) == name


def test_bad_names_and_levels(tmp_path: Path):
    path = written(tmp_path, FULL)
    frame = sets.read([path], sets.Reading())
    with pytest.raises(UserError, match="cannot name a set"):
        sets.write(tmp_path, "A b", frame, [path], sets.Reading())
    with pytest.raises(UserError, match="0.8,0.9"):
        sets.levels("0.8;0.9")
    with pytest.raises(UserError, match="0.8,0.9"):
        sets.levels("80,90")
    assert sets.levels("0.8, .9") == (0.8, 0.9) and sets.levels("") == ()


def own(**accuracies: float) -> pd.DataFrame:
    """Own linear results of a dense model and of gmp at 89.6 %, 5 points below it."""
    rows = []
    for task, value in accuracies.items():
        about = {"model": "resnet50", "image_size": 224, "metric": METRICS[task]}
        rows += [row("dense", 0.0, task, 0, value, **about)]
        rows += [row("gmp", 0.896, task, 0, value - 0.05, **about)]
        rows += [row("dense", 0.0, task, 0, value, **about, mode="linear-lbfgs")]
    return pd.DataFrame(rows)


def test_agreeing_results_form_one_group_over_the_shared_tasks(tmp_path: Path):
    imported = read(tmp_path, [*FULL, "cars,Dense,0,seed_1,0.5", "cars,STR,0.9,seed_1,0.4"])
    made = join(own(dtd=0.705, pets=0.895), imported, "paper", {"stanford_cars": "no card"})
    assert made.drifted == []
    (group,) = [g for g in groups(checked(made.frame)) if g.key["mode"] == "linear-sgd"]
    assert {cell[0] for cell in group.cells()} == {"dense", "gmp", "STR (imported)"}
    assert {task for task, _ in group.tasks} == {"dtd", "pets"}
    table = compare(made.frame, allow_unequal=True).methods.set_index(["mode", "method"])["mor"]
    # each against the dense model of its own side
    assert table["linear-sgd", "gmp"] == pytest.approx((0.05 / 0.295 + 0.05 / 0.105) / 2)
    assert table["linear-sgd", "STR (imported)"] == pytest.approx(0.05)
    assert set(made.frame.loc[made.frame["method"] == "gmp", "sparsity"]) == {0.9}
    absent = made.drift.set_index("task").loc["stanford_cars"]
    assert absent["verdict"] == "no card" and absent["published_dense"] == 0.5


def test_one_drifting_task_keeps_all_apart(tmp_path: Path):
    made = join(own(dtd=0.705, pets=0.85), read(tmp_path, FULL), "paper", {})
    assert made.drifted == ["linear-sgd"]
    parts = [g for g in groups(checked(made.frame)) if g.key["mode"] == "linear-sgd"]
    cells = {g.key["arm"]: {cell[0] for cell in g.cells()} for g in parts}
    assert cells == {
        "main": {"dense", "gmp"},
        "paper (imported): protocol drift": {"dense", "STR (imported)"},
    }
    assert made.drift.set_index("task")["verdict"].to_dict() == {
        "dtd": "within one point",
        "pets": "protocol drift",
    }


def test_an_own_run_under_another_profile_is_never_ranked_with_them(tmp_path: Path):
    frame = own(dtd=0.7, pets=0.9).assign(profile="modern-linear")
    made = join(frame, read(tmp_path, FULL), "paper", {})
    assert made.drifted == ["linear-sgd"]
    assert set(made.drift["verdict"]) == {"run here under another profile or size"}


def test_own_methods_and_imported_ones_are_contrasted_by_task(tmp_path: Path):
    made = join(own(dtd=0.7, pets=0.9), read(tmp_path, FULL), "paper", {})
    (found,) = contrast(made.frame, "gmp", "STR (imported)", allow_unequal=True).to_dict("records")
    gmp, str_ = (0.05 / 0.3 + 0.05 / 0.1) / 2, 0.05
    assert found["difference"] == pytest.approx(gmp - str_)
    assert (found["n_tasks"], found["n_seeds"], found["conditional"]) == (2, 1, True)
    assert found["interval_over"] == "tasks"


def test_import_report_and_their_marks(tmp_path: Path, capsys):
    path = written(tmp_path, [*FULL, "dtd,GMP,0.9,seed_1,0.69"])
    runs = str(tmp_path / "runs")
    assert call("import-results", str(path), "--name", "theirs", "--runs", runs) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "imported: declared, not verified" in out
    assert "5 rows, 5 cells, 1 seed per cell" in out and "GMP 0.9 has 1 of 2 tasks" in out
    assert "+5.0" in out
    assert call("import-results", str(path), "--name", "theirs", "--runs", runs, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["summary"][0]["mean_of_ratios"] == pytest.approx(0.05) and told["rows"] == 5
    assert call("report", "theirs", "--runs", runs) == 0
    folder = tmp_path / "runs" / "report" / "theirs"
    tables = [pd.read_csv(path) for path in folder.glob("*.csv")]
    assert tables and all(set(t["origin"]) == {"imported: declared, not verified"} for t in tables)
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "<title>theirs (imported: declared, not verified)</title>" in page
    assert page.count("<table") <= page.count("Imported: declared, not verified.")
    incomplete = pd.read_csv(folder / "incomplete.csv")
    assert incomplete[["source", "line", "method"]].values.tolist() == [["linear_a.txt", 6, "GMP"]]
    assert "GMP" not in set(pd.read_csv(next(folder.glob("summary-*.csv")))["method"])


def test_every_bad_file_is_refused_and_the_old_set_stays(tmp_path: Path, capsys):
    runs = str(tmp_path / "runs")
    good = written(tmp_path, FULL)
    assert call("import-results", str(good), "--name", "a", "--runs", runs) == 0
    before = (tmp_path / "runs" / "imported" / "a" / "set.json").read_bytes()
    for line, words in {
        "dtd,GMP,0.9,seed_1,64": "line 6",
        "dtd,GMP,0.9,seed_1,nan": "line 6",
        "dtdd,GMP,0.9,seed_1,0.64": "line 6: There is no task named 'dtdd'",
    }.items():
        bad = written(tmp_path, [*FULL, line], "linear_bad.txt")
        capsys.readouterr()
        assert call("import-results", str(good), str(bad), "--name", "a", "--runs", runs) == 2
        error = capsys.readouterr().err
        assert "linear_bad.txt" in error and words.lower() in error.lower(), error
    assert (tmp_path / "runs" / "imported" / "a" / "set.json").read_bytes() == before


def test_names_of_experiments_and_of_sets_do_not_mix(tmp_path: Path, capsys):
    path, runs = written(tmp_path, FULL), tmp_path / "runs"
    assert call("report", "theirs", "--runs", str(runs)) == 2
    (runs / "experiments").mkdir(parents=True)
    (runs / "experiments" / "tiny.json").write_text("{}")
    assert call("import-results", str(path), "--name", "tiny", "--runs", str(runs)) == 2
    assert "--name tiny-imported" in capsys.readouterr().err
    assert call("import-results", str(path), "--name", "mine", "--runs", str(runs)) == 0
    (runs / "experiments" / "mine.json").write_text("{}")
    assert call("report", "mine", "--runs", str(runs)) == 2
    assert "Both an experiment and an imported set are named mine" in capsys.readouterr().err

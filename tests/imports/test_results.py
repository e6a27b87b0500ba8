"""The importer of raw result files: the study's own files, oddities made small, and bad input."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from sparse_transfer.errors import UserError
from sparse_transfer.imports.coverage import complete, summary
from sparse_transfer.imports.lines import read_lines
from sparse_transfer.imports.results import (
    METRICS,
    ORIGIN,
    align_sparsities,
    read_results,
    resolve_duplicates,
    write_table,
)
from sparse_transfer.statistics import compare

HEADER = "dset,model,sparsity,seed,val_acc"
LINES = [
    "aircraft,Dense,0.0,seed_21,0.5",
    "aircraft,AC/DC,0.8,seed_21,0.6",
    "SUN,Dense,0.0,seed_21,0.75",
    "SUN,AC/DC,0.8,seed_21,0.797",
]


def written(folder: Path, lines: list[str], *, header: str = HEADER, name: str = "linear_a.txt"):
    path = folder / name
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "mode", "rows", "runs_per_cell"),
    [
        ("full_transfer_results.txt", "full", 723, {3: 237, 4: 3}),
        ("linear_transfer_results.txt", "linear-sgd", 1200, {5: 240}),
    ],
)
def test_the_studys_files(shared: Path, name, mode, rows, runs_per_cell):
    frame = read_results(shared / "paper" / name)
    assert len(frame) == rows
    assert set(frame["mode"]) == {mode}
    assert set(frame["model"]) == {"resnet50"}
    assert set(frame["origin"]) == {ORIGIN}
    assert set(frame["task"]) == set(METRICS)
    assert frame["occurrence"].max() == 0
    cells = frame.groupby(["task", "method", "sparsity"]).size()
    assert len(cells) == 240
    assert cells.value_counts().to_dict() == runs_per_cell
    assert frame["value"].between(0.0222, 0.9743).all()
    assert frame["line"].tolist() == list(range(2, rows + 2))


@pytest.mark.real
def test_the_three_uneven_cells(shared: Path):
    frame = read_results(shared / "paper" / "full_transfer_results.txt")
    seeds = frame.groupby(["task", "method", "sparsity"])["transfer_seed"].agg(sorted)
    assert seeds[seeds.map(len) == 4].to_dict() == {
        ("cifar10", "LTH-T", 0.8): [31, 51, 53, 55],
        ("food101", "AC/DC", 0.8): [23, 25, 45, 47],
        ("pets", "AC/DC", 0.8): [21, 23, 25, 41],
    }


def test_a_file_becomes_rows_of_the_results_frame(tmp_path: Path):
    frame = read_results(written(tmp_path, LINES))
    row = frame.iloc[3]
    assert row["task"] == "sun397"
    assert (row["method"], row["sparsity"], row["transfer_seed"]) == ("AC/DC", 0.8, 21)
    assert (row["value"], row["metric"]) == (0.797, "top1")
    assert (row["mode"], row["profile"]) == ("linear-sgd", "paper-linear")
    assert (row["origin"], row["source"], row["line"]) == (ORIGIN, "linear_a.txt", 5)
    assert np.isnan(row["measured_sparsity"])
    assert frame.iloc[0]["method"] == "dense"
    table = compare(frame).methods.set_index("method")
    assert table.loc["AC/DC", "mor"] == pytest.approx((-0.2 - 0.188) / 2)
    assert table.loc["AC/DC", "conditional"]


@pytest.mark.parametrize(
    ("header", "lines"),
    [
        (HEADER + ",", LINES),
        (HEADER + ",", [line + "," for line in LINES]),
        ("Dataset,Method,Sparsity,Seed,Accuracy", LINES),
        ("task, model , sparsity,seed,ACC", [line.replace(",", " , ") for line in LINES]),
        (HEADER.replace(",", "\t"), [line.replace(",", "\t") for line in LINES]),
        (HEADER + ",note", [line + "," for line in LINES]),
        ("\ufeff" + HEADER, [*LINES, "", " "]),
        (HEADER, [line.replace("seed_", "") for line in LINES]),
        (HEADER, [line + "\r" for line in LINES]),
    ],
    ids=[
        "trailing comma",
        "both trailing",
        "aliases",
        "spaces",
        "tabs",
        "more",
        "BOM",
        "seed",
        "CR",
    ],
)
def test_other_files_of_the_family_read_alike(tmp_path: Path, header, lines):
    expected = read_results(written(tmp_path, LINES))
    found = read_results(written(tmp_path, lines, header=header))
    pd.testing.assert_frame_equal(found, expected)


def test_percent_is_recognised_and_exact(tmp_path: Path):
    lines = ["dtd,Dense,0.0,seed_1,49.23", "dtd,STR,0.9,seed_1,7.1"]
    assert read_results(written(tmp_path, lines))["value"].tolist() == [0.4923, 0.071]


def test_mixed_units_are_refused_with_both_lines(tmp_path: Path):
    path = written(tmp_path, [*LINES, "dtd,Dense,0.0,seed_1,49.23"])
    with pytest.raises(UserError, match="mixes percent and fractions") as caught:
        read_results(path)
    assert "Line 2: 0.5. Line 6: 49.23. 1 of 5" in caught.value.why
    assert str(path) in caught.value.what


def test_a_named_unit_settles_it(tmp_path: Path):
    path = written(tmp_path, ["dtd,Dense,0.0,seed_1,49.23", "dtd,LTH-T,0.95,seed_1,0.9"])
    assert read_results(path, unit="percent")["value"].tolist() == [0.4923, 0.009]
    with pytest.raises(UserError, match="line 2"):
        read_results(path, unit="fraction")
    small = written(tmp_path, ["dtd,Dense,0.0,seed_1,0.9"])
    assert read_results(small)["value"].tolist() == [0.9]
    assert read_results(small, unit="percent")["value"].tolist() == [0.009]


@pytest.mark.parametrize(
    ("name", "mode", "model"),
    [
        ("full_transfer_results.txt", "full", "resnet50"),
        ("linear_mobilenet_transfer_results.txt", "linear-sgd", "mobilenetv1_100"),
        ("Full-MobileNet.csv", "full", "mobilenetv1_100"),
    ],
)
def test_setting_and_architecture_come_from_the_file_name(tmp_path: Path, name, mode, model):
    frame = read_results(written(tmp_path, LINES, name=name))
    assert set(frame["mode"]) == {mode}
    assert set(frame["model"]) == {model}


def test_or_from_columns_or_from_the_caller(tmp_path: Path):
    path = written(tmp_path, LINES, name="mine.csv")
    with pytest.raises(UserError, match="linear or full"):
        read_results(path)
    named = read_results(path, setting="full", architecture="resnet18")
    assert (named["mode"].iloc[0], named["model"].iloc[0]) == ("full", "resnet18")
    columns = written(
        tmp_path,
        [LINES[0] + ",full,vgg19", LINES[1] + ",LINEAR,"],
        header=HEADER + ",setting,arch",
        name="mine.csv",
    )
    frame = read_results(columns)
    assert frame["mode"].tolist() == ["full", "linear-sgd"]
    assert frame["model"].tolist() == ["vgg19", "resnet50"]


def test_equal_keys_are_kept_counted_and_warned_of(tmp_path: Path, caplog):
    lines = [*LINES, "aircraft,AC/DC,0.8,seed_21,0.7"]
    with caplog.at_level(logging.WARNING):
        frame = read_results(written(tmp_path, lines))
    assert "1 lines repeat" in caplog.text
    assert "first line 6" in caplog.text
    assert frame["occurrence"].tolist() == [0, 0, 0, 0, 1]
    with pytest.raises(UserError, match="occurs twice"):
        compare(frame)
    for how, value in [("first", 0.6), ("last", 0.7), ("mean", 0.65)]:
        resolved = resolve_duplicates(frame, how)
        assert len(resolved) == 4
        cell = resolved[(resolved["method"] == "AC/DC") & (resolved["task"] == "aircraft")]
        assert cell["value"].tolist() == pytest.approx([value])
    with pytest.raises(UserError, match="linear_a.txt, line 6: this run occurs twice"):
        resolve_duplicates(frame, "error")
    clean = read_results(written(tmp_path, LINES))
    pd.testing.assert_frame_equal(resolve_duplicates(clean, "error"), clean)


def test_single_seeds_have_no_spread(tmp_path: Path):
    tasks = compare(read_results(written(tmp_path, LINES))).tasks
    assert tasks["value_sd"].isna().all()
    assert tasks["seeds_low"].isna().all()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("aircraft,AC/DC,0.8,seed_23", "4 fields, the header has 5"),
        ("aircraft,AC/DC,0.8,seed_23,0.5,0.6", "6 fields"),
        ("aircraft,AC/DC,0.8,seed_23,nan", "accuracy is nan"),
        ("aircraft,AC/DC,0.8,seed_23,", "accuracy '' is not a number"),
        ("aircraft,AC/DC,0.8,seed_23,0.5x", "'0.5x' is not a number"),
        ("aircraft,AC/DC,0.8,seed_23,-0.5", "neither a fraction nor percent"),
        ("aircraft,AC/DC,0.8,seed_23,150", "neither a fraction nor percent"),
        ("aircraft,AC/DC,80,seed_23,0.5", "not a share of zeros"),
        ("aircraft,Dense,0.8,seed_23,0.5", "dense model of sparsity 0.8"),
        ("aircraft,,0.8,seed_23,0.5", "method is empty"),
        ("aircraft,AC/DC,0.8,first,0.5", "seed 'first'"),
        ("aircrat,AC/DC,0.8,seed_23,0.5", "Did you mean aircraft"),
        ('aircraft,"AC/DC,0.8,seed_23,0.5', "unexpected end of data"),
    ],
)
def test_bad_lines_are_refused_with_file_and_line(tmp_path: Path, line, message):
    path = written(tmp_path, [*LINES, line])
    with pytest.raises(UserError, match=message) as caught:
        read_results(path)
    assert f"{path}, line 6" in caught.value.what


def test_other_tasks_are_accepted_by_name(tmp_path: Path):
    path = written(tmp_path, ["digits,Dense,0.0,seed_1,0.9"])
    with pytest.raises(UserError, match="no task named 'digits'"):
        read_results(path)
    assert read_results(path, tasks=["digits"])["task"].tolist() == ["digits"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column|No column"),
        (HEADER + "\n", "no results"),
        ("a,b,c\n1,2,3\n", "not the header"),
        ("dset,dataset,model,sparsity,seed,acc\n", "Two columns mean 'task'"),
    ],
)
def test_files_that_are_no_results_files(tmp_path: Path, text, message):
    path = tmp_path / "linear.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_results(path)


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "linear.txt")
    (tmp_path / "linear.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "linear.txt")


def test_nominal_sparsities_align_only_when_asked(tmp_path: Path):
    lines = [f"dtd,{m},{s},seed_1,0.5" for m, s in [("M-FAC", 0.89), ("STR", 0.9), ("X", 0.75)]]
    frame = read_results(written(tmp_path, lines))
    assert frame["sparsity"].tolist() == [0.89, 0.9, 0.75]
    aligned = align_sparsities(frame, [0.8, 0.9])
    assert aligned["sparsity"].tolist() == [0.9, 0.9, 0.75]
    assert aligned["nominal_sparsity"].tolist() == [0.89, 0.9, 0.75]
    edge = align_sparsities(frame.assign(sparsity=0.885), [0.9])
    assert set(edge["sparsity"]) == {0.9}


def test_two_sparsities_of_one_method_never_become_one(tmp_path: Path):
    def aligned(*lines: str):
        return align_sparsities(read_results(written(tmp_path, [*lines])), [0.9])

    for seed in (1, 2):  # of one seed or of two: the mean would be over two checkpoints
        with pytest.raises(UserError, match="M-FAC 0.89 and 0.9 on dtd") as caught:
            aligned("dtd,M-FAC,0.89,seed_1,0.5", f"dtd,M-FAC,0.9,seed_{seed},0.6")
        for words in ("linear_a.txt, line 2: 0.89", "linear_a.txt, line 3: 0.9"):
            assert words in caught.value.why
    lines = ["dtd,M-FAC,0.89,seed_1,0.5", "pets,M-FAC,0.9,seed_1,0.6", "dtd,STR,0.9,seed_1,0.7"]
    assert set(aligned(*lines)["sparsity"]) == {0.9}
    assert len(aligned(lines[0], lines[0])) == 2  # one label that occurs twice is no such case


def test_the_table_is_written_whole_and_read_back(tmp_path: Path):
    frame = read_results(written(tmp_path, LINES))
    write_table(frame, tmp_path / "tables" / "linear.parquet")
    back = pd.read_parquet(tmp_path / "tables" / "linear.parquet")
    pd.testing.assert_frame_equal(back, frame)
    assert [path.name for path in (tmp_path / "tables").iterdir()] == ["linear.parquet"]


def test_imported_names_and_metrics_are_those_of_the_task_cards():
    cards = {}
    for path in (Path(__file__).parents[2] / "tasks").glob("*.yaml"):
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
        cards[card["name"]] = card["metric"]
    shared_names = set(cards) & set(METRICS)
    assert {"caltech101", "cifar10", "cifar100", "dtd", "flowers102", "pets"} <= shared_names
    assert {name: METRICS[name] for name in shared_names} == {
        name: cards[name] for name in shared_names
    }


def test_many_lines_cost_little(tmp_path: Path):
    """20,000 lines, 333 cells: every distinct text is parsed once, means are taken by columns."""
    tasks = list(METRICS)
    cells = [("Dense", 0.0)] + [(f"m{number}", 0.5) for number in range(332)]
    lines = [
        f"{task},{method},{sparsity},seed_{seed},0.{5000 + (number * 7 + seed) % 4000}"
        for number, (method, sparsity) in enumerate(cells)
        for task in tasks
        for seed in range(5)
    ]
    path = written(tmp_path, lines)
    start = time.process_time()
    kept, gaps = complete(read_results(path))
    table = summary(kept)
    comparison = compare(kept)
    seconds = time.process_time() - start
    assert (len(kept), len(table), gaps) == (19_980, 332, [])
    assert len(comparison.methods) == 333
    assert seconds < 5  # CPU time; about one second where this was written


def test_each_distinct_text_is_parsed_once_and_named_by_its_first_line(tmp_path: Path):
    lines = read_lines(written(tmp_path, [*LINES, *LINES]))
    seen: list[tuple[int, str]] = []
    found = lines.each("task", lambda number, text: seen.append((number, text)) or text.upper())
    assert found == ["AIRCRAFT", "AIRCRAFT", "SUN", "SUN"] * 2
    assert seen == [(2, "aircraft"), (4, "SUN")]

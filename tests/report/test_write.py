"""The written report: complete, free of the network, deterministic, robust to odd experiments."""

from __future__ import annotations

import io
import re
import time

import pandas as pd
import pytest
from rich.console import Console

from sparse_transfer.report.terminal import print_report
from sparse_transfer.report.write import _contrasts, build, save, write
from tests.statistics.results import made

EMPTY = pd.DataFrame()


def sections(report) -> list[str]:
    return [section.name for section in report.sections]


@pytest.fixture(scope="module")
def report(study):
    return build(study.frame, study.bench, study.facts, None)


def test_a_full_study_has_every_section_and_every_file(report, tmp_path):
    path = save(report, tmp_path / "report")
    expected = ["summary", "increase", "ranks", "tasks", "difficulty", "modes", "behaviour"]
    expected += ["bought", "cost"]
    expected += ["correlation", "inside", "missing", "provenance"]
    assert sections(report) == expected
    assert path == tmp_path / "report" / "index.html"
    page = path.read_text()
    for link in re.findall(r'href="([^"#:]+)"', page):
        assert (path.parent / link).is_file(), link
    names = [one.name for one in [*report.tables, *report.drawings]]
    assert len(names) == len(set(names))
    assert "A made-up study" in (path.parent / "summary.md").read_text()
    assert path.stat().st_size < 1_000_000


def test_the_page_asks_nothing_of_the_network(report, tmp_path):
    page = save(report, tmp_path).read_text()
    addresses = set(re.findall(r"https?://[^\"' )<]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<(script|img|iframe)[^>]* src=|@import|url\((?!#)", page)


def test_equal_input_gives_equal_files(make_study, tmp_path):
    study = make_study(seeds=(0, 1), tasks=("birds",), modes=("full",))
    for name in ("one", "two"):
        write(study.frame, study.bench, study.facts, None, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_text_of_the_user_is_escaped(make_study, tmp_path):
    small = make_study(methods=("gmp",), sparsities=(0.8,), seeds=(0,), modes=())
    evil = "<script>alert(1)</script>"
    frame = small.frame.replace({"gmp": evil})
    facts = {"title": evil, "notes": evil, "labels": [evil], "failures": [{"error": evil}]}
    page = write(frame, EMPTY, facts, None, tmp_path).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_files_of_an_earlier_report_do_not_stay(report, make_study, tmp_path):
    save(report, tmp_path)
    (tmp_path / "my-notes.txt").write_text("mine")
    assert (tmp_path / "heat-main-full.svg").is_file()
    small = make_study(modes=(), seeds=(0,))
    write(small.frame, EMPTY, {}, None, tmp_path)
    assert not (tmp_path / "heat-main-full.svg").exists()
    assert (tmp_path / "my-notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"seeds": (0,)}, "conditional on one checkpoint per method"),
        ({"tasks": ("birds",)}, "1 downstream task"),
        ({"methods": ("gmp",), "sparsities": (0.8,)}, "(gmp)"),
        ({"modes": ("full",)}, "with full fine-tuning"),
        ({"modes": ()}, "there is no transfer here"),
        ({"dense": False}, "There is no dense result"),
        ({"methods": (), "sparsities": ()}, "nothing was pruned"),
        ({"seeds": (0,), "tasks": ("birds",), "modes": ("full",)}, "1 downstream task"),
    ],
)
def test_odd_shapes_still_give_a_verdict(make_study, tmp_path, shape, says):
    small = {"seeds": (0, 1), "tasks": ("birds", "digits"), "modes": ("linear-sgd",)} | shape
    study = make_study(**small)
    report = build(study.frame, study.bench, study.facts, study.predictions)
    assert says in " ".join(report.verdict)
    assert not re.search(r"\b(nan|None|inf)\b", " ".join(report.verdict))
    page = save(report, tmp_path).read_text()
    assert not re.search(r">\s*[+−]?nan\b", page)


def test_without_a_dense_model_the_accuracies_are_shown(make_study):
    study = make_study(
        methods=("gmp",), sparsities=(0.8,), seeds=(0,), tasks=("birds", "digits"),
        modes=("full",), dense=False,
    )  # fmt: skip
    report = build(study.frame, study.bench, study.facts, study.predictions)
    (table,) = [table for table in report.summary if table.name.endswith("full")]
    (row,) = table.frame.to_dict("records")
    accuracy = study.frame[study.frame["mode"] == "full"]["value"].mean()
    assert row["mean_value"] == pytest.approx(accuracy)
    assert row["coverage"] == "2 × 1"
    console = Console(width=80, record=True, file=io.StringIO())
    print_report("made", report.verdict, report.summary, console)
    shown = console.export_text()
    assert "accuracy %" in shown and f"{100 * accuracy:.1f}" in shown and "2 × 1" in shown


def test_failures_only(tmp_path):
    failed = [{"stage": "prune", "run": "abc", "error": "The disk is full."}]
    report = build(EMPTY, EMPTY, {"failures": failed}, None)
    assert report.verdict[0] == "There is no finished result to report."
    assert sections(report) == ["missing"]
    assert "The disk is full." in save(report, tmp_path).read_text()
    assert (tmp_path / "failures.csv").is_file()


def test_nothing_at_all(tmp_path):
    assert write(EMPTY, EMPTY, {}, None, tmp_path).is_file()


def test_bench_only(study, tmp_path):
    report = build(EMPTY, study.bench, {}, None)
    assert sections(report) == ["bought"]
    assert save(report, tmp_path).is_file()


def test_a_demo_shows_no_interval_and_no_verdict(make_study):
    study = make_study(seeds=(0,), tasks=("birds", "digits"), modes=("full",))
    facts = study.facts | {"labels": ["demo: no intervals"]}
    report = build(study.frame, EMPTY, facts, study.predictions)
    words = " ".join(report.verdict)
    assert "Demo: one upstream seed and no intervals" in words
    assert "worse" not in words and "undecided" not in words
    table = report.summary[0]
    assert not any("[" in cell.plain for row in table.rows for cell in row)
    place = [column.key for column in table.columns].index("verdict_short")
    assert {row[place].plain for row in table.rows} == {"reference", "not decided"}
    assert not any(one.name.startswith("contrasts") for one in report.tables)


def test_two_arms_are_kept_apart(make_study, tmp_path):
    one, two = (
        make_study(arm=arm, tasks=("birds", "signs"), modes=("full",)) for arm in ("small", "large")
    )
    frame, bench = pd.concat([one.frame, two.frame]), pd.concat([one.bench, two.bench])
    report = build(frame, bench, one.facts, None)
    assert report.verdict[0].startswith("small, made_net: At 95 % sparsity")
    assert any(text.startswith("large, made_net: At 95 % sparsity") for text in report.verdict)
    names = [one.name for one in [*report.tables, *report.drawings]]
    assert len(names) == len(set(names))
    assert save(report, tmp_path).is_file()


def test_a_smaller_dense_model_is_a_rival_in_time(make_study):
    study = make_study(methods=("gmp",), tasks=("birds", "signs"), modes=("full",))
    bench = study.bench[study.bench["backend"] == "dense"]
    dense = study.frame["method"] == "dense"
    frame = pd.concat([study.frame, study.frame[dense].assign(model="tiny_net", run="tiny")])
    small = bench[bench["method"] == "dense"].assign(model="tiny_net", median_s=0.01)
    report = build(frame, pd.concat([bench, small]), study.facts, None)
    drawing = next(one for one in report.drawings if one.name.startswith("time-"))
    assert set(drawing.data["model"]) == {"made_net", "tiny_net"}
    assert "tiny_net dense" in drawing.inline


def test_the_summary_is_markdown_and_the_terminal_has_the_same_numbers(report, tmp_path):
    text = (save(report, tmp_path).parent / "summary.md").read_text()
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("| acdc |")]
    assert rows and all(line.count("|") == rows[0].count("|") for line in rows[:2])
    console = Console(record=True, width=220, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    print_report("A made-up study", report.verdict, report.summary, console)
    printed = console.export_text()
    table = report.summary[0]
    for key in ("method", "sparsity", "upstream", "mor"):
        place = [column.key for column in table.columns].index(key)
        assert table.rows[1][place].text in printed and table.rows[1][place].text in text
    assert "Held fixed: last epoch" in text and "held fixed" in printed


def test_two_thousand_rows_take_seconds_and_stay_small(make_study, tmp_path):
    study = make_study(
        methods=("gmp", "fggp", "acdc", "magnitude"),
        sparsities=(0.8, 0.9, 0.95),
        seeds=(0, 1),
        tasks=("birds", "digits"),
    )
    base = study.frame[study.frame["task"] == "birds"]
    more = [base.assign(task=f"task{n}", split_hash=f"{n:08d}") for n in range(23)]
    frame = pd.concat([study.frame, *more], ignore_index=True)
    assert len(frame) > 1900
    start = time.perf_counter()
    path = write(frame, study.bench, study.facts, study.predictions, tmp_path)
    assert time.perf_counter() - start < 60  # seconds alone; machines that test share their cores
    assert path.stat().st_size < 5_000_000


def test_of_very_many_methods_only_declared_pairs_are_contrasted():
    made_up = made({(f"m{number}", 0.9): 0.1 for number in range(41)}, seeds=[0, 1])
    assert _contrasts(made_up, []).empty
    named = _contrasts(made_up, [("m3", "m1")])
    assert named[["first", "second", "declared"]].values.tolist() == [["m3", "m1", "in advance"]]
    few = made_up[made_up["method"].isin(["dense", "m1", "m2", "m3"])]
    assert len(_contrasts(few, [])) == 3

"""The report of the study's own raw results: its main points are there, in words and in tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sparse_transfer.imports.results import read_results, resolve_duplicates
from sparse_transfer.report.write import Report, build

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def report(shared: Path) -> Report:
    names = ["linear_transfer_results.txt", "full_transfer_results.txt"]
    parts = [resolve_duplicates(read_results(shared / "paper" / name), "mean") for name in names]
    facts = {"contrasts": [("WoodFisher", "AC/DC")]}
    return build(pd.concat(parts, ignore_index=True), pd.DataFrame(), facts, None)


def frame(report: Report, name: str) -> pd.DataFrame:
    return next(table.frame for table in report.tables if table.name == name)


def test_what_has_no_data_in_the_raw_files_has_no_section(report):
    names = [section.name for section in report.sections]
    expected = ["summary", "increase", "ranks", "tasks", "difficulty", "modes", "provenance"]
    assert names == expected


def test_mean_ranks_of_the_protocol_at_80_percent(report):
    found = frame(report, "ranks-imported").query("sparsity == 0.8")
    ranks = found.set_index(["mode", "method"])["mean_rank"].round(2)
    assert ranks["full"].to_dict() == {
        "WoodFisher": 1.42, "AC/DC": 2.58, "LTH-T": 2.92,
        "RigL ERK 5x": 4.33, "STR": 4.67, "RigL ERK 1x": 5.08,
    }  # fmt: skip
    assert ranks["linear-sgd"]["AC/DC"] == 1.75 and ranks["linear-sgd"]["LTH-T"] == 6


def test_the_reversal_as_an_interaction(report):
    found = frame(report, "reversal-imported").set_index("sparsity")
    assert found["interaction"].round(3).to_dict() == {0.8: 0.255, 0.9: 0.240, 0.95: 0.232}
    assert set(found["sign"]) == {"12 of 12"} and set(found["places"]) == {"yes"}
    assert set(found["declared"]) == {"in advance"}


def test_full_is_below_linear_in_34_cells(report):
    found = frame(report, "worse-than-linear-imported")
    counts = found.groupby(["method", "sparsity"]).size()
    assert counts["RigL ERK 1x"].tolist() == [4, 5, 5]
    assert counts["RigL ERK 5x"].tolist() == [5, 4, 5]
    assert counts["STR"].tolist() == [2, 2, 1, 1]
    assert len(found) == 34


def test_difficulty_matters_to_rigl_and_acdc_95_in_linear_transfer(report):
    found = frame(report, "difficulty-correlation-imported")
    linear = found[(found["mode"] == "linear-sgd") & (found["method"] != "LTH-T")]
    passed = linear[linear["reading"] == "loses less on difficult tasks"]
    pairs = set(zip(passed["method"], passed["sparsity"], strict=True))
    rigl = {(name, s) for name in ("RigL ERK 1x", "RigL ERK 5x") for s in (0.8, 0.9, 0.95)}
    assert pairs == rigl | {("AC/DC", 0.95)}
    assert found["needed"].round(3).unique() == [0.576]


def test_the_verdict_says_what_matters_and_no_more(report):
    text = " ".join(report.verdict)
    assert len(text.replace(" %", "%").split()) <= 120
    assert report.verdict[0].startswith(
        "At 95 % sparsity the error on 12 downstream tasks rises relative to dense by 1.7 % (AC/DC)"
    )
    reversal = "AC/DC is ahead of WoodFisher with linear probes and behind it with full fine-tuning"
    assert f"Which method is better depends on the mode: {reversal}." in text
    assert "Of 38 comparisons with dense, 27 are worse, and 11 are undecided" in text
    assert text.endswith("All of this is conditional on one checkpoint per method.")

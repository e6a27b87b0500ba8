"""One small study with every mode and measurement: run, run again, and read its report."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.test_main import call

FILE = str(Path(__file__).with_name("protocols.yaml"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("protocols")
    assert call("run", FILE, "--runs", str(folder)) == 0
    return folder


def results(runs: Path, stage: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in runs.glob(f"{stage}/*/result.json")]


def test_every_mode_has_run(runs: Path):
    counts = {stage: len(results(runs, stage)) for stage in ("linear", "few_shot", "online")}
    assert counts == {"linear": 4, "few_shot": 4, "online": 4}
    assert len(results(runs, "full")) == 4 and len(results(runs, "tune")) == 1


def test_every_section_is_there_with_its_numbers(runs: Path):
    report = runs / "report" / "protocols"
    page = (report / "index.html").read_text(encoding="utf-8")
    for name in ("behaviour", "few-shot", "training-time"):
        assert f'<section id="{name}">' in page
    agreement = pd.read_csv(report / "agreement-main.csv")
    assert set(agreement["mode"]) == {"linear-sgd", "linear-online", "full"}
    calibration = pd.read_csv(report / "calibration-main.csv")
    assert calibration["temperature"].notna().all() and len(calibration) == 8
    worst = pd.read_csv(report / "worst-class-main.csv")
    assert not worst["worst_class"].str.startswith("class ").any()  # they have names
    times = pd.read_csv(report / "training-time-main-tiny-net.csv")
    assert (times["step_s"] > 0).all()


def test_probes_that_disagree_are_the_two_of_one_table_of_features(runs: Path):
    tasks = pd.read_csv(runs / "report" / "protocols" / "tasks-main.csv")
    online = tasks[tasks["mode"] == "linear-online"]
    assert not online["marks"].fillna("").str.contains("probe-dependent").any()


def test_a_second_run_does_nothing_twice(runs: Path, capsys):
    before = {path: path.stat().st_mtime_ns for path in runs.glob("*/*/result.json")}
    assert call("run", FILE, "--runs", str(runs)) == 0
    assert {path: path.stat().st_mtime_ns for path in runs.glob("*/*/result.json")} == before


def test_a_plan_forecasts_every_mode(runs: Path, capsys):
    assert call("plan", FILE, "--runs", str(runs), "--json") == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    stages = {row["stage"] for row in rows}
    assert {"few_shot", "online"} <= stages and all(row["seconds"] > 0 for row in rows)


def test_a_checkpoint_is_transferred_on_line_by_one_command(runs: Path, tmp_path: Path, capsys):
    dense = next(
        path.parent / "checkpoint"
        for path in runs.glob("prune/*/manifest.json")
        if json.loads(path.read_text())["subject"]["method"] == "dense"
    )
    code = call(
        "transfer", str(dense), "--task", "textures", "--mode", "linear-online", "--set",
        "transfer.online.epochs=1", "--set", "transfer.tasks=[{name: textures, train_images: 64}]",
        "--runs", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    (result,) = results(tmp_path, "online")
    assert result["rows"][0]["profile"].startswith("paper-linear-online")

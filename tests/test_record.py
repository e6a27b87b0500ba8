"""What `collect` gathers for the report from run folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sparse_transfer import evaluation, expansion, experiment_file, plan, plugins, record
from sparse_transfer.errors import UserError
from sparse_transfer.report.write import write
from sparse_transfer.store import Store, read_json, write_json
from tests.test_plan import NET, raw, split_hash

SMALL = {"name": "dense", "label": "small", "model": NET | {"kwargs": {"channels": [4, 8, 8]}}}
MACS = {"dense": (100.0, 100.0), "gmp": (30.0, 100.0), "small": (25.0, 25.0)}


def row(out: Path, mode: str, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return evaluation.row(
        out,
        mode,
        ids=np.array([f"test/{i}" for i in range(40)]),
        labels=np.arange(40) % 4,
        logits=generator.normal(size=(40, 4)) + 2 * np.eye(4)[np.arange(40) % 4],
        classes=4,
        write=True,
        task="digits",
        metric="top1",
        mode=mode,
        transfer_seed=0,
        profile="p",
        image_size=32,
        split_hash="s",
        measured_sparsity=0.5,
    )


def finish(store: Store, run: plan.Run, number: int) -> None:
    out = store.folder(run.stage, run.id)
    result: dict[str, Any] = {"rows": []}
    if run.stage == "prune":
        sparse, dense = MACS[run.subject.method]
        result = {"rows": [row(out, "upstream", number)], "macs": sparse, "macs_dense": dense}
        result["measured_sparsity"] = run.subject.sparsity
        result |= {"layers": [{"layer": "conv1.weight", "weights": 4, "kept": 2}], "raw": "0.1000"}
    elif run.stage in ("linear", "full"):
        result = {"rows": [row(out, run.stage, number)], "skipped": {"digits": {"test: cut": 2}}}
    elif run.stage == "bench":
        result = {"bench": [{"backend": "dense", "median_s": 0.1}]}
    manifest = {
        "versions": {"torch": "1"},
        "machine": {"system": "Linux"},
        "device": "cpu",
        "threads": 1,
        "parents": {role: {"id": parent.id} for role, parent in run.parents.items()},
    }
    result["cost"] = {"seconds": 10.0 + number}
    write_json(out / "manifest.json", manifest)
    write_json(out / "result.json", result)


@pytest.fixture
def finished(tmp_path: Path) -> tuple[Store, plan.Plan]:
    study = raw(prune__methods=["gmp", SMALL], transfer__full=None, transfer__modes=["linear"])
    made = expansion.make(experiment_file.build(study), split_hash)
    store = Store(tmp_path)
    record.save(made, store)
    for number, run in enumerate(made.runs):
        finish(store, run, number)
    return store, made


def test_every_row_is_there_once_with_its_subject(finished: tuple[Store, plan.Plan]):
    store, made = finished
    results = record.collect(store, "made")
    assert len(results.frame) == 6 and len(results.bench) == 3
    assert set(results.frame["run"]) == {r.id for r in made.runs if r.stage != "bench"}
    for _, found in results.frame.iterrows():
        stored = results.predictions(found)
        assert found["value"] == found["top1"] == np.mean(stored.prediction == stored.label)
    assert results.facts["skipped"] == {"digits": {"test: cut": 2}}
    assert results.facts["versions"] == {"torch": "1"}
    assert any("0.1000" in line for line in results.facts["held_fixed"]["main"])


def test_mac_ratios_are_relative_to_the_dense_model_of_the_arm(finished):
    store, _ = finished
    results = record.collect(store, None)
    for frame in (results.frame, results.bench):
        ratios = frame.groupby("method")["mac_ratio"].unique()
        assert {name: list(found) for name, found in ratios.items()} == {
            "dense": [1.0], "gmp": [0.3], "small": [0.25],
        }  # fmt: skip


def test_the_time_and_the_macs_of_every_run_reach_the_report(finished):
    store, made = finished
    results = record.collect(store, "made")
    frame = results.frame.set_index("method")
    assert set(frame.loc["small", "macs"]) == {25.0} and set(frame.loc["gmp", "macs"]) == {30.0}
    costs = results.facts["costs"]
    assert [row["seconds"] for row in costs] == [10.0 + n for n in range(len(made.runs))]
    assert {row["stage"]: row["task"] for row in costs}["linear"] == "digits"
    assert all("seconds" in row and "sparsity" in row for row in costs)
    facts = results.facts | {"layers": ()}
    page = write(results.frame, pd.DataFrame(), facts, None, store.root / "r").read_text()
    assert "What the study cost" in page


def test_without_a_dense_model_the_ratio_is_to_the_model_itself(finished):
    store, made = finished
    dense = made.runs[0]
    assert dense.subject.method == "dense"
    (store.folder("prune", dense.id) / "result.json").unlink()
    frame = record.collect(store, None).frame
    assert frame[frame["method"] == "gmp"]["mac_ratio"].unique() == [0.3]


def test_metrics_are_computed_anew_when_their_version_is_raised(finished, monkeypatch):
    store, _ = finished
    before = record.collect(store, None).frame
    load, asked = plugins.load, []

    def raised(kind: str, name: str) -> Any:
        found = load(kind, name)
        if (kind, name) != ("metric", "top1"):
            return found
        return replace(found, version=found.version + 1, function=lambda p, c: asked.append(c) or 7)

    monkeypatch.setattr(plugins, "load", raised)
    after = record.collect(store, None).frame
    assert (after["top1"] == 7).all() and (after["value"] == 7).all() and set(asked) == {4}
    assert (after["log_loss"] == before["log_loss"]).all()


def test_metrics_of_todays_version_are_read_not_computed(finished, monkeypatch):
    store, _ = finished
    values = record.collect(store, None).frame["top1"]

    def refuse(*_: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(evaluation, "measure", refuse)
    assert (record.collect(store, None).frame["top1"] == values).all()


def test_failures_reach_the_facts_and_their_results_do_not(finished, tmp_path: Path):
    store, made = finished
    run = next(r for r in made.runs if r.stage == "linear" and r.subject.method == "gmp")
    folder = store.folder(run.stage, run.id)
    (folder / "result.json").unlink()
    write_json(folder / "failure.json", {"error": "It broke."})
    results = record.collect(store, None)
    (failure,) = results.facts["failures"]
    expected = {"stage": "linear", "run": run.id, "task": "digits", "error": "It broke."}
    assert expected.items() <= failure.items() and failure["method"] == "gmp"
    assert run.id not in set(results.frame["run"])


@pytest.mark.parametrize(
    ("change", "task", "words"),
    [
        ({"transfer__tasks": [{"name": "missing"}]}, "missing", "not available"),
        ({"upstream__task": {"name": "missing"}}, "missing", "not available"),
        ({"upstream__models": [NET | {"weights": "nowhere.pth"}]}, "", "nowhere.pth"),
    ],
)
def test_what_is_not_here_is_in_the_report(tmp_path: Path, change, task, words):
    made = expansion.make(experiment_file.build(raw(**change)), split_hash)
    store = Store(tmp_path)
    record.save(made, store)
    results = record.collect(store, "made")
    (failure,) = results.facts["failures"]
    assert failure["task"] == task and words in failure["error"] and failure["arm"] == "main"
    page = write(results.frame, results.bench, results.facts, results.predictions, tmp_path / "r")
    assert words in page.read_text(encoding="utf-8")


def test_a_run_that_is_not_finished_is_no_row(finished):
    store, made = finished
    for run in made.runs:
        if run.stage == "linear":
            (store.folder(run.stage, run.id) / "result.json").unlink()
    results = record.collect(store, None)
    assert set(results.frame["mode"]) == {"upstream"} and results.facts["failures"] == []


def test_nothing_to_report_is_said(tmp_path: Path):
    store = Store(tmp_path)
    with pytest.raises(UserError, match="no experiment"):
        record.collect(store, None)
    record.save(expansion.make(experiment_file.build(raw()), split_hash), store)
    with pytest.raises(UserError, match="nothing to report"):
        record.collect(store, None)
    with pytest.raises(UserError, match="Did you mean made"):
        record.collect(store, "mode")


def test_the_last_recorded_experiment_is_the_default_and_a_file_name_will_do(finished):
    store, _ = finished
    path = store.root / "experiments" / "made.json"
    other = json.loads(path.read_text()) | {"title": "Other"}
    write_json(path.with_name("other.json"), other)
    import os

    os.utime(path, (1, 1))
    assert record.collect(store, None).facts["title"] == "Other"
    assert record.collect(store, "studies/made.yaml").facts["title"] == "made"


def test_curves_over_shots_and_the_names_of_classes_reach_the_facts(finished):
    store, made = finished
    run = next(r for r in made.runs if r.stage == "linear" and r.subject.method == "gmp")
    path = store.folder(run.stage, run.id) / "result.json"
    points = [{"shots": 2, "draw": 0, "images": 8, "value": 0.5, "notes": []}]
    known = {"metric": "top1", "n_test": 40, "split_hash": "s", "image_size": 32, "c": 0.1}
    curve = {"few_shot": points, "task": "digits", "left_out": [64], **known}
    curve |= {"short_classes": {"2": ["nine"]}, "class_names": {"digits": ["zero", "one"]}}
    write_json(path, read_json(path) | curve)
    facts = record.collect(store, None).facts
    (row,) = facts["few_shot"]
    assert (row["method"], row["task"], row["shots"], row["value"]) == ("gmp", "digits", 2, 0.5)
    assert row["short_classes"] == ["nine"] and row["left_out"] == [64]
    assert facts["class_names"] == {"digits": ["zero", "one"]}


def test_the_images_of_a_card_given_by_path_can_be_found_again(tmp_path: Path):
    text = (Path(__file__).parents[1] / "tasks" / "digits.yaml").read_text(encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("name: digits", "name: mine"), encoding="utf-8")
    card = str(path)
    study = raw(transfer__tasks=[card], transfer__full=None, transfer__modes=["linear"])
    made = expansion.make(experiment_file.build(study), split_hash)
    store = Store(tmp_path)
    record.save(made, store)
    for number, run in enumerate(made.runs):
        finish(store, run, number)
    runs = read_json(tmp_path / "experiments" / f"{made.experiment.name}.json")["arms"]
    shown = [
        run["task"] for arm in runs.values() for run in arm["runs"] if run["stage"] == "linear"
    ]
    assert set(shown) == {"mine"}  # for people, without its folder
    assert record.collect(store, None).facts["references"]["digits"] == card


def test_every_mode_says_what_it_holds_fixed():
    modes = ["linear", "linear-online", "full"]
    fields = {"transfer__modes": modes, "transfer__online": {"epochs": 1}}
    arm = experiment_file.build(raw(transfer__few_shot={}, **fields)).arms[0]
    lines = {line.partition(":")[0]: line for line in record.held_fixed(arm)}
    assert "cached features" in lines["Linear"]
    assert "recomputed each step" in lines["Linear-online"]
    assert "C 0.1 at every number of shots; 5 nested draws" in lines["Few-shot"]
    assert "Full" in lines


def test_an_arm_without_dense_does_not_claim_that_dense_chose_the_learning_rate():
    of_dense = experiment_file.build(raw()).arms[0]
    alone = experiment_file.build(raw(prune__dense=False)).arms[0]
    assert "on the dense model" in " ".join(record.held_fixed(of_dense))
    assert "dense model" not in " ".join(record.held_fixed(alone))


def test_a_damaged_result_names_its_file(finished):
    store, made = finished
    path = store.folder("prune", made.runs[0].id) / "result.json"
    path.write_text('{"rows": [')
    with pytest.raises(UserError, match="result.json"):
        record.collect(store, None)
    assert read_json(path.with_name("manifest.json"))

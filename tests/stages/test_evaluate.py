"""Further upstream test sets: class order, ReaL lists, foreign heads, runs of their own, the page.

The model is made so that it tells twelve plain images apart without an error: its classifier is
solved for, not trained. So accuracies are known exactly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image

from sparse_transfer import expansion, experiment_file, label_lists, preflight, record
from sparse_transfer.commands.steps import make_context, make_plan
from sparse_transfer.errors import UserError
from sparse_transfer.execute import execute
from sparse_transfer.predictions import Predictions
from sparse_transfer.report.write import build
from sparse_transfer.stages.evaluate import check_head
from sparse_transfer.store import Store, read_json
from tests.test_main import call

CLASSES, SIZE = 12, 32


def pixels(number: int) -> np.ndarray:
    """(32, 32, 3) uint8: the image that the made model takes for class `number`."""
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A state dict of a network that is right on all twelve images."""
    torch.manual_seed(0)
    model: Any = timm.create_model("test_resnet", num_classes=CLASSES).eval()
    images = np.stack([pixels(number) for number in range(CLASSES)]).transpose(0, 3, 1, 2)
    with torch.no_grad():
        inputs = torch.from_numpy(images).float() / 255
        features = model.forward_head(model.forward_features(inputs), pre_logits=True)
        centred = features - features.mean(0)
        head = torch.linalg.lstsq(centred, torch.eye(CLASSES), driver="gelsd").solution
        model.fc.weight.copy_(head.T)
        model.fc.bias.copy_(-head.T @ features.mean(0))
        assert model(inputs).argmax(1).tolist() == list(range(CLASSES))
    path = tmp_path_factory.mktemp("weights") / "made.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ImageNet-V2's layout for twelve classes, and cards that number its folders."""
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path / "cache"))
    for number in range(CLASSES):
        path = tmp_path / "v2" / str(number) / "x.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels(number)).save(path)
    for name, order in (("v2", "number"), ("scrambled", "name")):
        (tmp_path / f"{name}.yaml").write_text(
            f"name: {name}\nclasses: {CLASSES}\nsizes: {{train: 0, test: {CLASSES}}}\n"
            f"sources: [{{folder: v2, parts: {{test: .}}, class_order: {order}}}]\n",
            encoding="utf-8",
        )
    return tmp_path


def experiment(weights: Path, evaluate: list[str], **changes: Any):
    cfg = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    model = {"name": "test_resnet", "label": "net", "weights": str(weights), "pretrained_cfg": cfg}
    return experiment_file.build(
        {
            "name": "further",
            "upstream": {
                "models": [model],
                "evaluate": evaluate,
                "preprocess": {"image_size": SIZE, "crop": "none"},
            },
            "recipe": "one-shot",
            "prune": {"methods": ["magnitude"], "sparsities": [0.9]},
            **changes,
        },
        [],
    )


def carried_out(made, runs: Path):
    """Run an experiment; the outcome and its rows by task and method."""
    context = make_context(runs, None, True)
    planned, store = make_plan(made, None, runs), Store(runs)
    record.save(planned, store)
    outcome = execute(planned, store, context)
    rows = {}
    for item in planned.runs:
        if item.stage == "evaluate":
            (row,) = read_json(store.folder(item.stage, item.id) / "result.json")["rows"]
            rows[row["task"], item.subject.method] = row
    return outcome, rows


def accuracy(row: dict[str, Any]) -> float:
    return row["metrics"]["top1"]["value"]


def test_folders_are_numbered_not_sorted(weights: Path, place: Path) -> None:
    cards = [str(place / "v2.yaml"), str(place / "scrambled.yaml")]
    _, rows = carried_out(experiment(weights, cards), place / "runs")
    assert accuracy(rows["v2", "dense"]) == 1.0
    # 0, 1, 10, 11, 2, …: the order of names puts two folders of twelve under their own number
    assert accuracy(rows["scrambled", "dense"]) == pytest.approx(2 / 12)
    row = rows["v2", "magnitude"]
    assert row["mode"] == "upstream" and row["n_test"] == CLASSES and row["metric"] == "top1"
    assert row["measured_sparsity"] == pytest.approx(0.9, abs=0.01)
    assert accuracy(row) < 1.0


def test_a_test_set_added_later_needs_no_pruning(weights: Path, place: Path) -> None:
    runs = place / "runs"
    before, _ = carried_out(experiment(weights, []), runs)
    assert {item.stage for item in before.finished} == {"prune"}
    after, rows = carried_out(experiment(weights, [str(place / "v2.yaml")]), runs)
    assert {item.stage for item in after.finished} == {"evaluate"}
    assert {item.id for item in after.skipped} == {item.id for item in before.finished}
    folder = next((runs / "evaluate").glob("*/predictions/v2.parquet"))
    assert len(Predictions.load(folder)) == CLASSES and len(rows) == 2


def test_real_labels_count_every_right_class(weights, place: Path, monkeypatch) -> None:
    def name(number: int) -> str:
        return f"ILSVRC2012_val_{number + 1:08d}.JPEG"

    # image n shows class n: right with {n}, with {n, other}, wrong with {other}, out with {}
    lists = {name(0): (0,), name(1): (7, 1), name(2): (3,), name(3): (), name(11): (11, 2)}
    monkeypatch.setitem(label_lists.LISTS, "imagenet_real", lambda: lists)
    for number in (0, 1, 2, 3, 11):
        path = place / "val" / "n00000000" / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(path, format="PNG")
    for number in range(1, CLASSES):  # the other classes have no image
        (place / "val" / f"n{number:08d}").mkdir()
        Image.fromarray(pixels(0)).save(place / "val" / f"n{number:08d}" / f"{number}.png")
        lists[f"{number}.png"] = ()
    (place / "real.yaml").write_text(
        f"name: real\nclasses: {CLASSES}\nsizes: {{train: 0, test: 4}}\nempty_classes: true\n"
        "label_lists: imagenet_real\n"
        "sources: [{folder: ., parts: {test: val}, class_order: wnid}]\n",
        encoding="utf-8",
    )
    _, rows = carried_out(experiment(weights, [str(place / "real.yaml")]), place / "runs")
    row = rows["real", "dense"]
    assert row["n_test"] == 4 and accuracy(row) == pytest.approx(3 / 4)
    stored = {path.parts[-3]: Predictions.load(path) for path in place.rglob("real.parquet")}
    labels = [made.label.tolist() for made in stored.values()]
    assert labels == [[0, 1, 3, 2]] * 2  # one label per image, whatever a model predicts


def test_a_head_of_other_classes_is_refused(weights: Path, place: Path) -> None:
    with pytest.raises(UserError, match="tells 10 classes apart; imagenet1k has 1,000"):
        check_head(10, "imagenet1k", 1000)
    (place / "eleven.yaml").write_text("name: eleven\nsources: [{folder: e, parts: {test: .}}]\n"
                                       "sizes: {train: 0, test: 11}\n")  # fmt: skip
    for number in range(11):
        (place / "e" / f"c{number:02d}").mkdir(parents=True)
        Image.fromarray(pixels(number)).save(place / "e" / f"c{number:02d}" / "x.png")
    made = experiment(weights, [str(place / "eleven.yaml")])
    with pytest.raises(UserError, match=r"tells 12 classes apart; eleven has 11"):
        carried_out(made, place / "runs")  # known only when the file is opened
    assert preflight.check(made, None, place / "cache") == []
    imagenet = {"models": [{"name": "resnet18", "weights": "random"}]}
    random = experiment(weights, [], upstream=imagenet | {"evaluate": [str(place / "v2.yaml")]})
    problems = preflight.check(random, None, place / "cache")
    assert [where for where, _ in problems] == ["main, evaluate resnet18"]
    assert "tells 1,000 classes apart" in str(problems[0][1])


def test_names_of_test_sets_are_checked_and_unique(weights: Path, place: Path) -> None:
    problems = preflight.check(experiment(weights, ["imagenet_v3"]), None, place / "cache")
    assert "Did you mean imagenet_v2" in str(problems[0][1])
    with pytest.raises(UserError, match="more than once"):
        experiment(weights, ["imagenet1k", "imagenet1k"])
    model = {"models": [{"name": "resnet18"}], "task": {"name": "imagenet1k_halves"}}
    with pytest.raises(UserError, match=r"imagenet1k_halves.*scored anyway"):
        experiment(weights, [], upstream=model | {"evaluate": ["imagenet1k_halves"]})


def test_identity_of_a_pruning_run_does_not_see_them(weights: Path, place: Path) -> None:
    def ids(evaluate: list[str]) -> set[str]:
        made = expansion.make(experiment(weights, evaluate), lambda ref: f"hash of {ref.name}")
        return {run.id for run in made.runs if run.stage == "prune"}

    assert ids([]) == ids([str(place / "v2.yaml")])


def test_the_report_has_a_column_per_set_and_no_mean_over_them(weights, place: Path) -> None:
    cards = [str(place / "v2.yaml"), str(place / "scrambled.yaml")]
    carried_out(experiment(weights, cards), place / "runs")
    results = record.collect(Store(place / "runs"), "further")
    # an upstream task of its own, as a study on ImageNet has one
    own = results.frame[results.frame["task"] == "v2"].assign(
        task="pictures", profile="", stage="prune", run=lambda rows: "p" + rows["run"]
    )
    frame = pd.concat([own, results.frame], ignore_index=True)
    report = build(frame, results.bench, results.facts, results.predictions)
    tables = {table.name: table for table in report.tables}
    shown = tables["upstream-main-net"]
    titles = [column.title for column in shown.columns[2:]]
    assert titles == ["pictures, %", "v2, %", "scrambled, %"]
    dense = shown.frame[shown.frame["method"] == "dense"].iloc[0]
    assert (dense["v2"], dense["scrambled"]) == (1.0, pytest.approx(2 / 12))
    assert dense["v2_low"] < 1.0 == dense["v2_high"]  # Wilson, over twelve images
    summaries = [name for name in tables if name.startswith("summary")]
    assert summaries == ["summary-main-upstream"]
    means = tables[summaries[0]].frame.set_index("method")["mean_value"]
    assert means["dense"] == 1.0  # of `pictures` alone; with `scrambled` it would be lower
    assert any("scored on" in line and "v2" in line for line in results.facts["held_fixed"]["main"])
    alone = build(results.frame, results.bench, results.facts, results.predictions)
    assert "upstream-main-net" in {table.name for table in alone.tables}


def test_one_checkpoint_from_the_command_line(weights: Path, place: Path, capsys) -> None:
    carried_out(experiment(weights, []), place / "runs")
    (sparse,) = [path.parent for path in (place / "runs").rglob("mask.safetensors")]
    (dense,) = set((place / "runs").glob("prune/*/checkpoint")) - {sparse}
    arguments = ["--on", str(place / "v2.yaml"), "--runs", str(place / "other")]
    assert call("evaluate", str(dense), *arguments) == 0
    assert "v2: 100.00 % top1 of 12 images" in capsys.readouterr().out
    assert call("evaluate", str(sparse), *arguments) == 0
    assert call("evaluate", str(dense), "--on", "imagenet_v2_matched") == 2
    said = capsys.readouterr().err
    assert "imagenetv2-matched-frequency.tar.gz" in said and "not available" in said


@pytest.mark.real
@pytest.mark.slow
def test_the_real_mobilenet_on_the_sample(shared: Path, tmp_path: Path, monkeypatch) -> None:
    """86.2 % ± 0.3 top-1 on one image for each of ImageNet's classes (centre crop 224 of 256)."""
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path / "cache"))
    file = shared / "data/weights/mobilenetv2_100.tf_in1k_int8dequant.safetensors"
    model = {
        "name": "mobilenetv2_100",
        "weights": str(file),
        "kwargs": {"pad_type": "same", "bn_eps": 1e-3},
        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
    }
    made = experiment_file.build(
        {
            "name": "mobilenet",
            "upstream": {"models": [model], "evaluate": ["imagenet1k_sample"]},
            "recipe": "one-shot",
            "prune": {"methods": ["dense"]},
        },
        [],
    )
    root = shared / "data/datasets"
    planned, store = make_plan(made, root, tmp_path / "runs"), Store(tmp_path / "runs")
    assert not preflight.check(made, root, tmp_path / "cache")
    outcome = execute(planned, store, make_context(tmp_path / "runs", root, True))
    assert not outcome.failed
    (run,) = [run for run in planned.runs if run.stage == "evaluate"]
    (row,) = read_json(store.folder("evaluate", run.id) / "result.json")["rows"]
    assert row["n_test"] == 1000 and accuracy(row) == pytest.approx(0.862, abs=0.003)

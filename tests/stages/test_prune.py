"""What the prune stage refuses or does not score: false dense references, foreign heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from sparse_transfer import checkpoint
from tests.test_main import call


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of one model, dense and pruned, by method."""
    runs = tmp_path_factory.mktemp("runs")
    code = call(
        "prune", "test_resnet", "--weights", "random", "--task", "textures", "--method",
        "magnitude", "--recipe", "one-shot", "--sparsity", "0.5", "--image-size", "16", "--crop",
        "none", "--runs", str(runs),
    )  # fmt: skip
    assert code == 0
    found = {}
    for path in runs.glob("prune/*/manifest.json"):
        found[json.loads(path.read_text())["subject"]["method"]] = path.parent / "checkpoint"
    return found


def test_a_sparse_model_is_no_dense_reference(folders, tmp_path, capsys):
    sparse = str(folders["magnitude"])
    arguments = ["--task", "textures", "--runs", str(tmp_path)]
    assert call("transfer", sparse, "--dense", sparse, *arguments) == 2
    assert "not a dense model" in capsys.readouterr().err


def test_the_crop_of_a_checkpoint_is_used_when_it_is_transferred(folders, tmp_path):
    code = call(
        "transfer", str(folders["magnitude"]), "--dense", str(folders["dense"]), "--task",
        "textures", "--runs", str(tmp_path),
    )  # fmt: skip
    assert code == 0
    (path, _) = tmp_path.glob("linear/*/manifest.json")
    preprocess = json.loads(path.read_text())["transform"]["preprocess"]
    assert preprocess["crop"] == "none" and preprocess["image_size"] == 16


def test_a_dense_checkpoint_that_was_changed_is_refused(folders, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folders["dense"].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    state = load_file(copy / "model.safetensors")
    state["fc.bias"] += 1
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    code = call(
        "transfer", str(folders["magnitude"]), "--dense", str(copy), "--task", "textures",
        "--runs", str(tmp_path / "r"),
    )  # fmt: skip
    assert code == 1
    failures = [json.loads(p.read_text()) for p in (tmp_path / "r").glob("prune/*/failure.json")]
    assert len(failures) == 1 and "SHA-256" in failures[0]["error"]


def test_a_head_of_other_classes_is_kept_and_not_scored(tmp_path, capsys):
    model = timm.create_model("test_resnet", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "seven.pth")
    code = call(
        "prune", "test_resnet", "--weights", str(tmp_path / "seven.pth"), "--task", "textures",
        "--method", "magnitude", "--recipe", "one-shot", "--sparsity", "0.5", "--image-size",
        "16", "--crop", "none", "--recalibrate-bn", "50", "--runs", str(tmp_path / "r"),
    )  # fmt: skip
    results = [json.loads(p.read_text()) for p in (tmp_path / "r").glob("prune/*/result.json")]
    assert code == 0 and [result["rows"] for result in results] == [[], []]
    for path in (tmp_path / "r").glob("prune/*/checkpoint/model.safetensors"):
        assert load_file(path)["fc.weight"].shape[0] == 7


def test_a_checkpoint_records_the_task_its_classifier_was_trained_on(tmp_path):
    def made(model: str, weights: str, task: str, recipe: str, *options: str) -> Path:
        runs = tmp_path / f"{task}-{weights}-{recipe}"
        code = call(
            "prune", model, "--weights", weights, "--task", task, "--method", "magnitude",
            "--recipe", recipe, "--sparsity", "0.5", "--image-size", "16", "--crop", "none",
            "--runs", str(runs), *options,
        )  # fmt: skip
        assert code == 0
        (dense,) = [
            path.parent / "checkpoint"
            for path in runs.glob("prune/*/manifest.json")
            if json.loads(path.read_text())["subject"]["method"] == "dense"
        ]
        return dense

    def recorded(folder: Path) -> str | None:
        known = checkpoint.open_checkpoint(folder).loaded.trained_on
        return None if known is None else known["name"]

    short = ["--set", "recipe.steps=2", "--set", "recipe.schedule={warmup_steps: 1}"]
    trained = made("test_resnet", "random", "digits", "demo", *short)
    assert recorded(trained) == "digits"
    # cut without training, for images of another task of ten classes: the classifier is the old one
    again = made(f"local-dir:{trained}", "pretrained", "textures", "one-shot")
    assert recorded(again) == "digits"
    assert recorded(made(f"local-dir:{trained}", "random", "digits", "one-shot")) is None

"""The verb `try` on a made folder: the plan, a run, its resumption, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_transfer import estimate
from sparse_transfer.commands import tryout
from tests.test_main import call

MODEL = ("resnet20_cifar", "--weights", "random", "--smaller", "none")
SHORT = [
    "--image-size", "8", "--sparsity", "0.5", "--variant", "quick", "--threads", "1",
    "--set", "recipe.epochs=6", "--set", "recipe.schedule.warmup_steps=1",
    "--set", "recipe.batch_size=16", "--set", "bench.backends=[dense]",
    "--set", "bench.repeats=3",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _quick_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forecast from one forward pass, not from a second of them."""
    monkeypatch.setattr(estimate, "_CALIBRATION_SECONDS", 0.0)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve noisy images, told apart by their colour."""
    root = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for name, colour in {
        "red": (200, 60, 60),
        "green": (60, 200, 60),
        "blue": (60, 60, 200),
    }.items():
        (root / name).mkdir()
        for number in range(12):
            noisy = np.array(colour) + generator.normal(0, 50, (8, 8, 3))
            pixels = noisy.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def test_plan_prints_the_times_and_runs_nothing(colours: Path, tmp_path: Path, capsys):
    runs = tmp_path / "runs"
    assert call("try", *MODEL, str(colours), *SHORT, "--plan", "--runs", str(runs)) == 0
    printed = capsys.readouterr().out
    assert "3 classes; images: 22 training, 7 validation, 7 test." in printed
    assert "Only 7 test images: the interval of an error will be about ± 30 points." in printed
    assert "quick" in printed and "<- this one" in printed
    for row in ("dense continued", "gmp", "fggp", "one-shot, then fine-tuned", "linear only"):
        assert row in printed
    assert "Left out: a smaller dense model: not wanted." in printed
    assert not (runs / "prune").exists() and not (runs / "experiments").exists()


def test_a_run_ends_in_sentences_and_is_not_done_twice(
    colours: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    runs = tmp_path / "runs"
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path / "cache"))
    assert call("try", *MODEL, str(colours), *SHORT, "--yes", "--runs", str(runs)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Pruned on the downstream task (not transfer)" in printed
    assert "Recommended: " in printed and "against dense continued" in printed
    assert "of 7 images" in printed and "ms per image" in printed
    assert "MB with the zeros compressed" in printed
    assert "no choice was made on the test images" in printed
    results = {p: p.stat().st_mtime_ns for p in runs.glob("*/*/result.json")}
    pruned = [json.loads(p.read_text()) for p in results if p.parent.parent.name == "prune"]
    assert {round(one["measured_sparsity"], 2) for one in pruned} == {0.0, 0.5}
    pages = list(runs.glob("report/try-*/index.html"))
    assert len(pages) == 1 and "not transfer" in pages[0].read_text()
    # lost: the last row and its measurement; everything else is kept
    lost = next(p for p in results if "fine-tuned" in json.loads(p.read_text())["title"])
    lost.unlink()
    assert call("try", *MODEL, str(colours), *SHORT, "--yes", "--runs", str(runs)) == 0
    again = {p: p.stat().st_mtime_ns for p in runs.glob("*/*/result.json")}
    assert {p for p in again if again[p] != results[p]} == {lost}
    # the row with the given mask kept it through its training
    manifests = {p.parent: json.loads((p.parent / "manifest.json").read_text()) for p in again}
    for manifest in manifests.values():
        if manifest["subject"]["method"] == "one-shot, then fine-tuned" and "mask_hash" in manifest:
            parent = runs / "prune" / manifest["parents"]["model"]["id"]
            assert manifest["mask_hash"] == manifests[parent]["mask_hash"]


def test_without_a_terminal_it_asks_for_yes(colours: Path, tmp_path: Path, capsys):
    assert call("try", *MODEL, str(colours), *SHORT, "--runs", str(tmp_path)) == 2
    assert "Add --yes" in capsys.readouterr().err
    assert not (tmp_path / "prune").exists()


def test_no_is_an_answer(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tryout, "_agreed", lambda: False)
    assert call("try", *MODEL, str(colours), *SHORT, "--runs", str(tmp_path)) == 0
    assert not (tmp_path / "prune").exists()


def test_a_budget_is_kept_to_and_remembered(
    colours: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    asked = [option for option in SHORT if option not in ("--variant", "quick")]
    arguments = ("try", *MODEL, str(colours), *asked, "--plan", "--runs", str(tmp_path))
    assert call(*arguments, "--budget", "1s") == 2
    said = capsys.readouterr().err
    assert "Nothing fits a budget of 1 s" in said and "quick, takes about" in said
    assert call(*arguments, "--budget", "20h") == 0
    first = capsys.readouterr().out
    # the machine is a thousand times slower now, and the choice is still the same
    monkeypatch.setattr(
        "sparse_transfer.estimate.estimate",
        lambda made, *more: (dict.fromkeys((r.id for r in made.runs), 1e6), {}),
    )
    assert call(*arguments, "--budget", "20h") == 0
    marked = [line.split()[0] for line in first.splitlines() if "this one" in line]
    assert [
        line.split()[0] for line in capsys.readouterr().out.splitlines() if "this one" in line
    ] == marked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("resnet20_cifer", "--weights", "random"), "Did you mean resnet20_cifar"),
        (("mobilenetv2_100",), "could not be loaded"),
        ((*MODEL, "--sparsity", "90"), "Write --sparsity 0.9 for 90 %"),
        ((*MODEL, "--budget", "soon"), "cannot be read"),
        ((*MODEL, "--variant", "fast"), "There is no variant named 'fast'"),
        (("resnet20_cifar", "--weights", "random", "--smaller", "resnet19"), "resnet"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: tuple[str, ...], said: str, colours: Path, tmp_path: Path, capsys
):
    model, *options = arguments
    assert call("try", model, str(colours), *options, "--plan", "--runs", str(tmp_path)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.real
def test_the_real_model_and_folder_have_a_plan(shared: Path, tmp_path: Path, capsys):
    weights = shared / "data/weights/mobilenetv2_100.tf_in1k_int8dequant.safetensors"
    folder = shared / "data/datasets/dtd_first10"
    options = ["--weights", str(weights), "--kwarg", "pad_type=same", "--kwarg", "bn_eps=1e-3"]
    options += ["--cfg", "mean=[.5,.5,.5]", "--cfg", "std=[.5,.5,.5]", "--image-size", "64"]
    runs = ["--plan", "--runs", str(tmp_path)]
    assert call("try", "mobilenetv2_100", str(folder), *options, *runs) == 0
    printed = capsys.readouterr().out
    assert "10 classes; images: 300 training, 100 validation, 200 test." in printed
    assert "Left out: a smaller dense model: no weights of mobilenetv2_035" in printed

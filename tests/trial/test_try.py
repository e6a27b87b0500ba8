"""The verb `try` on a made folder: the plan, a run, its resumption, and what is refused."""

from __future__ import annotations

import json
import re
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
    # a second small net is the rival, from random weights as the first one is
    model = [*MODEL[:-1], "test_resnet"]
    assert call("try", *model, str(colours), *SHORT, "--yes", "--runs", str(runs)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Pruned on the downstream task (not transfer)" in printed
    assert "Recommended: " in printed and "against dense continued" in printed
    assert "of 7 images" in printed and "ms per image" in printed
    assert "MB with the zeros compressed" in printed
    rival = r"test_resnet: error [^;]* of 7 images;[^;]*;[^;]*, paired, \w+\); [\d.]+ ms per image"
    assert re.search(rival, printed)
    assert "Left out" not in printed and "no result" not in printed
    assert "no choice was made on the test images" in printed
    results = {p: p.stat().st_mtime_ns for p in runs.glob("*/*/result.json")}
    pruned = [json.loads(p.read_text()) for p in results if p.parent.parent.name == "prune"]
    assert {round(one["measured_sparsity"], 2) for one in pruned} == {0.0, 0.5}
    pages = list(runs.glob("report/try-*/index.html"))
    assert len(pages) == 1 and "not transfer" in pages[0].read_text()
    # lost: the last row and its measurement; everything else is kept
    lost = next(p for p in results if "fine-tuned" in json.loads(p.read_text())["title"])
    lost.unlink()
    assert call("try", *model, str(colours), *SHORT, "--yes", "--runs", str(runs)) == 0
    again = {p: p.stat().st_mtime_ns for p in runs.glob("*/*/result.json")}
    assert {p for p in again if again[p] != results[p]} == {lost}
    # the rival was trained twice as well, dense, from its own first fine-tuning
    manifests = [json.loads(p.read_text()) for p in runs.glob("prune/*/manifest.json")]
    rivals = [m for m in manifests if m["subject"]["method"] == "test_resnet"]
    first, second = sorted(rivals, key=lambda manifest: len(manifest["parents"]))
    assert first["parents"] == {} and second["parents"]["model"]["id"] == first["id"]
    # the row with the given mask kept it through its training
    tuned = [m for m in manifests if m["subject"]["method"] == "one-shot, then fine-tuned"]
    assert len(tuned) == 1
    parent = tuned[0]["parents"]["model"]["id"]
    before = json.loads((runs / "prune" / parent / "manifest.json").read_text())
    assert before["subject"]["method"] == "magnitude"
    assert tuned[0]["mask_hash"] == before["mask_hash"] is not None


def test_without_a_terminal_it_asks_for_yes(colours: Path, tmp_path: Path, capsys):
    assert call("try", *MODEL, str(colours), *SHORT, "--runs", str(tmp_path)) == 2
    assert "Add --yes" in capsys.readouterr().err
    assert not (tmp_path / "prune").exists()


def test_no_is_an_answer(colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tryout, "_agreed", lambda: False)
    assert call("try", *MODEL, str(colours), *SHORT, "--runs", str(tmp_path)) == 0
    assert not (tmp_path / "prune").exists()


def without_variant(colours: Path, runs: Path) -> tuple[str, ...]:
    asked = [option for option in SHORT if option not in ("--variant", "quick")]
    return ("try", *MODEL, str(colours), *asked, "--runs", str(runs))


def run_seconds(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A machine on which every run takes so long."""
    monkeypatch.setattr(
        "sparse_transfer.estimate.estimate",
        lambda made, *more: (dict.fromkeys((run.id for run in made.runs), seconds), {}),
    )


def marked(printed: str) -> str:
    return next(line.split()[0] for line in printed.splitlines() if "this one" in line)


def test_a_budget_is_kept_to(colours: Path, tmp_path: Path, capsys):
    arguments = (*without_variant(colours, tmp_path), "--plan")
    assert call(*arguments, "--budget", "1s") == 2
    said = capsys.readouterr().err
    assert "Nothing fits a budget of 1 s" in said and "quick, takes about" in said
    assert call(*arguments, "--budget", "20h") == 0
    assert marked(capsys.readouterr().out) == "full"


def test_a_run_remembers_what_its_budget_chose_and_a_plan_does_not(
    colours: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tryout, "run_plan", lambda *given: 0)
    arguments = (*without_variant(colours, tmp_path), "--budget", "20h")
    run_seconds(monkeypatch, 1.0)
    assert call(*arguments, "--plan") == 0
    assert call(*arguments) == 2  # no --yes, so not agreed to
    assert not list(tmp_path.glob("try/*.json"))
    assert call(*arguments, "--yes") == 0
    printed = capsys.readouterr().out
    assert marked(printed) == "full" and "budget" not in printed
    # the machine is slower now: what was begun is gone on with, and the excess is said
    run_seconds(monkeypatch, 7200.0)
    assert call(*arguments, "--plan") == 0
    printed = capsys.readouterr().out
    assert marked(printed) == "full"
    assert "`full` was begun under this budget of 20 h 00 min" in printed
    assert "takes more now, about 34 h 00 min" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("resnet20_cifer", "--weights", "random"), "Did you mean resnet20_cifar"),
        (("mobilenetv2_100",), "could not be loaded"),
        ((*MODEL, "--sparsity", "90"), "Write --sparsity 0.9 for 90 %"),
        ((*MODEL, "--budget", "soon"), "cannot be read"),
        ((*MODEL, "--variant", "fast"), "There is no variant named 'fast'"),
        (("resnet20_cifar", "--weights", "random", "--smaller", "resnet19"), "resnet"),
        ((*MODEL, "--image-size", "0"), "Invalid value for '--image-size'"),
        ((*MODEL, "--image-size", "-5"), "Invalid value for '--image-size'"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: tuple[str, ...], said: str, colours: Path, tmp_path: Path, capsys
):
    model, *options = arguments
    assert call("try", model, str(colours), *options, "--plan", "--runs", str(tmp_path)) == 2
    assert said in capsys.readouterr().err


def real_question(shared: Path) -> tuple[str, ...]:
    """The pretrained MobileNetV2 on ten classes of textures, at few pixels."""
    weights = shared / "data/weights/mobilenetv2_100.tf_in1k_int8dequant.safetensors"
    folder = shared / "data/datasets/dtd_first10"
    options = ["--weights", str(weights), "--kwarg", "pad_type=same", "--kwarg", "bn_eps=1e-3"]
    options += ["--cfg", "mean=[.5,.5,.5]", "--cfg", "std=[.5,.5,.5]", "--image-size", "64"]
    return ("try", "mobilenetv2_100", str(folder), *options)


@pytest.mark.real
def test_the_real_model_and_folder_have_a_plan(shared: Path, tmp_path: Path, capsys):
    assert call(*real_question(shared), "--plan", "--runs", str(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "10 classes; images: 300 training, 100 validation, 200 test." in printed
    assert "Left out: a smaller dense model: no weights of mobilenetv2_035" in printed


@pytest.mark.real
@pytest.mark.slow
def test_the_real_model_is_tried_to_its_answer(
    shared: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path / "cache"))
    tiny = ["--variant", "quick", "--sparsity", "0.5", "--threads", "1", "--yes"]
    for change in ("recipe.epochs=2", "bench.backends=[dense]", "bench.repeats=3"):
        tiny += ["--set", change]
    assert call(*real_question(shared), *tiny, "--runs", str(tmp_path)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "is the best of the 3 pruned models" in printed and "no result" not in printed
    sentence = r"([\w, -]+): error (?:[\d.]+ % → )?[\d.]+ % \((?:\d+ → )?(\d+) of 200"
    wrong = {name.strip(): int(count) for name, count in re.findall(sentence, printed)}
    assert list(wrong) == [
        "dense before 2nd fine-tune", "dense continued", "gmp", "fggp",
        "one-shot, then fine-tuned",
        "one-shot, not fine-tuned", "linear only",
    ]  # fmt: skip
    # ten classes of twenty images: a guess is wrong on 180 with a standard deviation of 4
    for name in ("dense continued", "gmp", "fggp", "one-shot, then fine-tuned"):
        assert wrong[name] < 160, name
    assert wrong["linear only"] < 100  # the pretrained features are ImageNet's

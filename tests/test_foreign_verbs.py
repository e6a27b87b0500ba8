"""import and inspect on the command line, and imported checkpoints through the other verbs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision

from sparse_transfer import checkpoint, data, evaluation, features, layer_sensitivity
from sparse_transfer.config import Preprocess, TaskRef
from sparse_transfer.imports.checkpoints import convert
from tests.imports import foreign_files as foreign
from tests.test_main import call

TRAIN = ["--set", "transfer.linear={base: model-linear, epochs: 2, lbfgs_c: [1.0]}"]
FULL = "transfer.full={base: demo-full, steps: 3, batch_size: 16, schedule: {warmup_steps: 1}}"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A RigL checkpoint, its dense counterpart, and a torchvision SqueezeNet."""
    model = foreign.network("resnet50_rigl", classes=6)
    paths = {name: tmp_path / f"{name}.pth" for name in ("dense", "rigl", "squeezenet")}
    torch.save(foreign.rigl(model.state_dict()), paths["dense"])  # before it is pruned
    foreign.prune(model, 0.9)
    torch.save({"state_dict": foreign.rigl(model.state_dict())}, paths["rigl"])
    torch.save(torchvision.models.squeezenet1_1(num_classes=6).state_dict(), paths["squeezenet"])
    return paths


def brought_in(files: dict[str, Path], name: str, *options: str) -> Path:
    arch = "squeezenet1_1" if name == "squeezenet" else "resnet50"
    narrow = [] if name == "squeezenet" else ["--kwarg", "channels=[8, 16, 16, 32]"]
    out = files[name].parent / f"{name}-checkpoint"
    assert (
        call("import", str(files[name]), "--arch", arch, "--out", str(out), *narrow, *options) == 0
    )
    return out


def test_import_says_what_it_found(files, capsys):
    folder = brought_in(files, "rigl", "--sparse", "0.9", "--cfg", "std=[1, 1, 1]")
    printed = capsys.readouterr().out
    for words in ("layout: rigl", "resnet50_rigl", "bicubic", "std [1, 1, 1]", "claimed 90.00%"):
        assert words in printed
    assert "layer1.0.conv1" in printed and f"transfer {folder}" in printed
    assert call("import", str(files["rigl"]), "--arch", "resnet50", "--out", str(folder)) == 2
    assert "fits no layout" in capsys.readouterr().err  # the widths were not given
    assert brought_in(files, "rigl", "--sparse", "0.9", "--force", "--json") == folder
    assert json.loads(capsys.readouterr().out)["facts"]["imported"]["layout"] == "rigl"


def test_an_imported_checkpoint_goes_through_transfer_bench_and_prune(files, tmp_path, capsys):
    sparse = brought_in(files, "rigl", "--sparse", "0.9")
    dense = brought_in(files, "dense", "--dense")
    runs = ["--runs", str(tmp_path / "runs"), "--image-size", "32"]
    code = call(
        "transfer", str(sparse), "--dense", str(dense), "--task", "digits", "--mode", "linear",
        "--mode", "full", *TRAIN, "--set", FULL, *runs,
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    opened = checkpoint.open_checkpoint(sparse)
    masks = opened.masks
    assert masks is not None
    results = [json.loads(p.read_text()) for p in (tmp_path / "runs/full").glob("*/result.json")]
    assert len(results) == 2 and len(list((tmp_path / "runs/linear").glob("*/result.json"))) == 2
    # the features of the sparse one stayed as sparse: the mask was held
    shares = sorted(row["measured_sparsity"] for result in results for row in result["rows"])
    assert shares[0] == 0 and shares[-1] > 0.89
    bench = ["bench", str(sparse), "--dense", str(dense), "--batch-size", "1", "--image-size", "32"]
    assert call(*bench, "--repeats", "6", "--json") == 0
    code = call(
        "prune", f"local-dir:{dense}", "--task", "digits", "--method", "magnitude", "--recipe",
        "one-shot", "--sparsity", "0.5", *runs,
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err


def test_a_torchvision_model_is_pruned_transferred_and_timed(files, tmp_path, capsys):
    runs = ["--runs", str(tmp_path / "runs"), "--image-size", "32"]
    code = call(
        "prune", "torchvision:squeezenet1_1", "--weights", str(files["squeezenet"]), "--task",
        "digits", "--method", "magnitude", "--recipe", "one-shot", "--sparsity", "0.8", *runs,
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    printed = capsys.readouterr().out.splitlines()
    folders = [Path(line.rpartition(": ")[2]) for line in printed if line.endswith("checkpoint")]
    kinds = {checkpoint.open_checkpoint(folder).masks is None: folder for folder in folders}
    code = call(
        "transfer", str(kinds[False]), "--dense", str(kinds[True]), "--task", "digits", "--mode",
        "linear", "--mode", "full", *TRAIN, "--set", FULL, *runs,
    )  # fmt: skip
    assert code == 0, capsys.readouterr().err
    capsys.readouterr()
    assert call("bench", str(kinds[False]), "--batch-size", "1", "--repeats", "6", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["image_size"] == 32


def test_inspect_prints_a_table_totals_and_the_sentences(files, tmp_path, capsys):
    sparse = brought_in(files, "rigl", "--sparse", "0.9")
    dense = brought_in(files, "dense", "--dense")
    capsys.readouterr()
    size, runs = ["--image-size", "32"], ["--runs", str(tmp_path / "runs")]
    assert call("inspect", str(sparse), "--dense", str(dense), *size, *runs) == 0
    out, err = capsys.readouterr()
    assert "ms dense" in out and "ms full model" in out and "layer4.2.conv3" in out
    assert "54 layers" in out and "10.0" in out
    assert ("ms sparse" in out) != ("No backend here uses zeros" in err)  # by what is compiled
    code = call(
        "inspect", "resnet20_cifar", "--weights", "random", "--kwarg", "channels=[8, 8, 8]",
        "--sensitivity", "digits", "--images", "100", "--json", *runs,
    )  # fmt: skip
    assert code == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["sensitivity"]["judged_by"] == "probe" and "--judge head" in err
    assert set(found) == {"inspected", "sensitivity"}
    assert set(found["sensitivity"]["layers"]["conv1"]) == {"0.8", "0.9", "0.95"}
    assert "magnitude-pruned" in found["sensitivity"]["sentence"]
    code = call(
        "inspect", "resnet20_cifar", "--weights", "random", "--kwarg", "channels=[8, 8, 8]",
        "--sensitivity", "digits", "--images", "20", "--judge", "head", *runs,
    )  # fmt: skip
    assert code == 0 and "no better than chance" in capsys.readouterr().out


@pytest.mark.parametrize("size", ["-5", "0", "7"])
@pytest.mark.parametrize(
    "verb",
    [
        ["inspect", "resnet20_cifar", "--weights", "random"],
        ["prune", "resnet18", "--task", "digits", "--method", "magnitude"],
        ["transfer", "nowhere", "--task", "digits"],
        ["evaluate", "nowhere", "--on", "digits"],
        ["bench", "nowhere"],
    ],
    ids=lambda verb: verb[0],
)
def test_an_image_size_below_eight_pixels_is_refused_by_name(verb, size, capsys):
    assert call(*verb, "--image-size", size) == 2
    printed = capsys.readouterr().err
    assert "--image-size" in printed and "mistake of the program" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "resnet181"], "no model named"),
        (["inspect", "resnet20_cifar", "--weights", "random", "--sensitivity", "dgits"], "digits"),
        (["import", "nothing.pth", "--arch", "resnet50"], "no such file"),
        (["import", "nothing.doc", "--arch", "resnet50"], "safetensors"),
        (["import", "nothing.pth", "--arch", "resnett50"], "Did you mean"),
    ],
)
def test_what_is_mistyped_is_explained(arguments, message, capsys):
    assert call(*arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


@pytest.mark.real
@pytest.mark.slow
def test_the_pruned_squeezenet_scores_what_is_known_of_it(shared, tmp_path):
    """60.4 % ± 0.3 top-1 on the thousand sample images, through every step of the import."""
    from accelerate import Accelerator

    from sparse_transfer import inputs

    path = shared / "data/weights/squeezenet1_0.deepcompression_in1k_sparse67.safetensors"
    convert(path, "squeezenet1_0", sparse=0.6658).save(tmp_path / "checkpoint")
    opened = checkpoint.open_checkpoint(tmp_path / "checkpoint")
    ref, root = TaskRef(name="imagenet1k_sample"), shared / "data/datasets"
    task = data.open_task(ref, data_root=root, cache=tmp_path)
    preprocess = layer_sensitivity.own_preprocess(opened.loaded)
    assert preprocess == Preprocess(image_size=224, resize=256)
    images = inputs.transform(preprocess, opened.loaded, task, tmp_path).images(task.test, tmp_path)
    logits = features.logits(opened.model, images, accelerator=Accelerator(cpu=True), batch_size=50)
    row = evaluation.row(
        tmp_path, "p", ids=images.ids, labels=images.labels.numpy(), logits=logits, classes=1000,
        write=True,
    )  # fmt: skip
    assert row["metrics"]["top1"]["value"] == pytest.approx(0.604, abs=0.003)

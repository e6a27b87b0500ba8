"""Two CPU processes that work on one run together: the loop, and the command line end to end.

Run by torchrun, this file is the worker of both tests.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparse_transfer import checkpoint, config, data, features, inputs, loop, plugins, signals
from sparse_transfer.devices import accelerator
from sparse_transfer.errors import StopRequested, TrainingDiverged
from sparse_transfer.predictions import Predictions
from sparse_transfer.pruning.driver import FixedMask, Pruner
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.methods import gmp
from sparse_transfer.pruning.structured.driver import StructuredPruner
from sparse_transfer.store import read_json
from tests.test_loop import Blobs, net, settings

TINY = str(Path(__file__).with_name("tiny.yaml"))


def without_bn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


# The last batch of an epoch has 3, 1 and 2 examples: an odd one, one joined to the batch before,
# and one in which a process has a single example.
CASES = {
    "frozen": (net, "3.weight", {"freeze_bn": True}, {}, 19),
    "no_bn": (without_bn, "2.weight", {}, {"accumulation": 2, "clip_norm": 0.5}, 25),
    "adam": (without_bn, "2.weight", {}, {"optimizer": {"name": "adam", "lr": 1e-3}}, 18),
}


def trained(case: str) -> tuple[nn.Module, dict[str, Any]]:
    """A pruning and then a fine-tuning with its mask held fixed."""
    build, pruned, options, changes, n = CASES[case]
    changes = {"steps": 7, "batch_size": 8, "optimizer": {"lr": 0.02}} | changes
    model, facts = build(), {}
    recipe = settings(**changes)
    pruner = Pruner(
        model, method=gmp.Method(gmp.Method.Options(updates=3)), sparsity=0.7, seed=3,
        layers={pruned: model.get_parameter(pruned)}, total_steps=7, steps_per_epoch=3,
    )  # fmt: skip
    for keeper in (pruner, None):
        keeper = keeper or FixedMask(model, pruner.masks)
        done = loop.train(
            model, Blobs(n), recipe, keeper=keeper, seed=3, accelerator=accelerator(), **options
        )
        assert isinstance(keeper.masks, Masks)
        facts |= {"mask": keeper.masks.digest(), "losses": list(done.losses)}
    return model, facts


METHODS = [name for name in plugins.names("pruner") if name != "given"]
STEPS = 28
# one that needs batch norm, and one that reads its running statistics in the middle of training
WITH_BN = ("slimming", "woodfisher")
OPTIONS: dict[str, dict[str, Any]] = {
    "woodfisher": {"gradients": 8, "updates": 2}, "progressive": {"min_channels": 1},
    "slimming": {"strength": 0.01},
}  # fmt: skip


def pruned(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A whole pruning run by a method; batch norm, where it must be, has statistics per process."""
    blobs = Blobs(18)
    model = net() if name in WITH_BN else without_bn()
    method = plugins.load("pruner", name)
    sparsity = (0.5 if name in ("nm", "sr_ste") else 0.7) if method.has_target else 0.0

    def examples(step: int, number: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(100 * step + number)
        indices = torch.randperm(len(blobs), generator=generator)[:count]
        return blobs.batch(indices, step), blobs.labels[indices]

    shared: dict[str, Any] = {
        "method": method(method.Options(**OPTIONS.get(name, {}))), "total_steps": STEPS,
        "steps_per_epoch": 3, "seed": 3, "examples": examples, "image_size": 8,
    }  # fmt: skip
    if method.removes_channels:
        keeper: Any = StructuredPruner(model, sparsity=0.3, keep_dense=(), **shared)
    else:
        layers = prunable(model, ["first_conv", "head"])
        keeper = Pruner(model, sparsity=sparsity, layers=layers, **shared)
    recipe = settings(steps=STEPS, batch_size=8, optimizer={"lr": 0.02})
    loop.train(model, blobs, recipe, keeper=keeper, seed=3, accelerator=accelerator())
    return model, keeper.summary()


def launch(*arguments: str) -> str:
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }  # fmt: skip
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--module", "tests.test_two_processes"]
    done = subprocess.run(
        [sys.executable, *command, *arguments], env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[Path]:
    """The folder that each process of one launch wrote."""
    out = tmp_path_factory.mktemp("two")
    launch("loop", str(out))
    return [out / str(rank) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_one_process(ranks: list[Path], case: str):
    model, facts = trained(case)
    for folder in ranks:
        found = load_file(folder / f"{case}.safetensors")
        for name, expected in model.state_dict().items():
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
        said = read_json(folder / "facts.json")[case]
        assert said["mask"] == facts["mask"]
        assert said["losses"] == pytest.approx(facts["losses"], rel=1e-5)
    first, second = (load_file(folder / f"{case}.safetensors") for folder in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_alike_in_both_processes_and_in_one(ranks: list[Path], method: str):
    first, second = (load_file(folder / f"{method}.safetensors") for folder in ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    said = [read_json(folder / "facts.json")[method] for folder in ranks]
    assert said[0] == said[1]
    if method in WITH_BN:
        return  # which sees other batches in one process
    model, summary = pruned(method)
    assert json.loads(json.dumps(summary))["digest"] == said[0]["digest"]
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(first[name], expected, rtol=0, atol=1e-5)


def test_a_signal_to_one_process_stops_both_after_the_same_step(ranks: list[Path]):
    steps = [read_json(folder / "facts.json")["stopped_after"] for folder in ranks]
    assert steps == [3, 3]


def test_a_loss_that_is_no_number_in_one_process_ends_both(ranks: list[Path]):
    assert [read_json(folder / "facts.json")["diverged"] for folder in ranks] == [True, True]


def test_no_model_is_held_after_its_training(ranks: list[Path]):
    assert [read_json(folder / "facts.json")["held"] for folder in ranks] == [0, 0]


def test_the_command_line_runs_under_torchrun(tmp_path: Path):
    small = ["--set", "prune.seeds=[0]", "--set", "transfer.seeds=[0]", "--set", "bench=null"]
    said = launch("command", "run", TINY, "--runs", str(tmp_path), *small)
    assert said.count("7 runs done, 0 finished before, 0 failed") == 1, said
    assert (tmp_path / "report" / "tiny" / "index.html").is_file()
    found = [path.parent for path in tmp_path.glob("*/*/result.json")]
    assert len(found) == 7
    for folder in found:
        manifest = read_json(folder / "manifest.json")
        assert manifest["processes"] == manifest["identity"]["processes"] == 2
        for row in read_json(folder / "result.json").get("rows", ()):
            stored = Predictions.load(folder / row["predictions"])
            examples = stored.example.tolist()
            assert len(set(examples)) == len(examples) == row["n_test"] > 100
    masks = {
        manifest["mask_hash"]
        for path in tmp_path.glob("*/*/manifest.json")
        if (manifest := read_json(path))["subject"]["method"] == "gmp"
    }
    assert len(masks) == 1 and None not in masks
    _stored_scores_are_those_of_the_checkpoint(tmp_path)


def _stored_scores_are_those_of_the_checkpoint(runs: Path) -> None:
    """Batch-norm statistics are each process's own after the last step; one model must be left."""
    task = data.open_task(
        config.TaskRef(name="textures", train_images=200, validation=0.1),
        data_root=None,
        cache=runs / "cache",
    )
    folders = list(runs.glob("prune/*"))
    assert folders
    for folder in folders:
        opened = checkpoint.open_checkpoint(folder / "checkpoint")
        transform = inputs.transform(
            config.Preprocess(image_size=16, crop="none"), opened.loaded, task, runs / "cache"
        )
        images = transform.images(task.test, runs / "cache")
        logits = features.logits(opened.model, images, accelerator=accelerator(), batch_size=128)
        stored = Predictions.load(folder / "predictions" / "upstream.parquet")
        again = Predictions.from_logits(images.ids, stored.label, logits)
        np.testing.assert_allclose(again.log_prob, stored.log_prob, atol=1e-4)


def _loop(out: Path) -> None:
    own = accelerator()
    rank, facts = own.process_index, {}
    assert own.num_processes == 2
    folder = out / str(rank)
    folder.mkdir()
    for case in CASES:
        model, facts[case] = trained(case)
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / f"{case}.safetensors")
    for name in METHODS:
        model, facts[name] = pruned(name)
        state = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / f"{name}.safetensors")

    def train(n_bad: int = 0, **options: Any) -> None:
        model, data = without_bn(), Blobs(16)
        data.images[:n_bad] = torch.nan
        recipe = settings(steps=options.pop("steps"), batch_size=16)
        loop.train(
            model, data, recipe, keeper=FixedMask(model, None), seed=3, accelerator=own, **options
        )

    def stop(done: int, total: int) -> None:
        facts["stopped_after"] = done
        if done == 3 and rank == 1:
            signals._received.append(15)

    try:
        train(steps=9, progress=stop)
    except StopRequested:
        signals._received.clear()
    try:
        train(steps=1, n_bad=1)
    except TrainingDiverged:
        facts["diverged"] = True
    facts["held"] = len(own._models)
    (folder / "facts.json").write_text(json.dumps(facts))
    own.end_training()


def _command(arguments: list[str]) -> None:
    """What `python -m sparse_transfer` does, and a look at what it leaves behind."""
    sys.argv = ["sparse-transfer", *arguments]
    try:
        runpy.run_module("sparse_transfer", run_name="__main__")
    finally:
        assert not torch.distributed.is_initialized(), "the process group was not ended"


if __name__ == "__main__":
    if sys.argv[1] == "loop":
        _loop(Path(sys.argv[2]))
    else:
        _command(sys.argv[2:])

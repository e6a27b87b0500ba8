"""Full fine-tuning of real checkpoints: the new head is dense, whatever the old one was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from sparse_transfer import checkpoint, config, data, loop, models, plan, predictions, resume
from sparse_transfer.devices import accelerator
from sparse_transfer.errors import StopRequested, UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.sparse import library
from sparse_transfer.stages import full
from sparse_transfer.stages.context import Context

needs_kernels = pytest.mark.skipif(
    library.available() is not None, reason=library.available() or "they are here"
)
SIZE = config.Preprocess(image_size=16, crop="none")


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A checkpoint of ten classes whose classifier was pruned too."""
    spec = config.ModelSpec(name="test_resnet", weights="random")
    loaded = models.build(spec, num_classes=10, image_size=16, seed=0)
    named = dict(loaded.model.named_parameters())
    masks = Masks({n: torch.rand_like(p) > 0.6 for n, p in named.items() if p.ndim in (2, 4)})
    masks.apply(named.items())
    assert "fc.weight" in masks
    facts = {"summary": {"measured_sparsity": masks.sparsity(), "digest": masks.digest()}}
    checkpoint.save(tmp_path / "checkpoint", loaded, loaded.model, masks, facts)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(("name", "classes"), [("textures", 10), ("shapes", 15)])
@pytest.mark.parametrize("bn", ["train", "frozen", "recalibrated"])
def test_a_new_head_is_dense_and_the_backbone_keeps_its_zeros(
    tmp_path: Path, pruned: Path, monkeypatch, name: str, classes: int, bn: str
):
    profile = config.FullProfile(steps=3, batch_size=16, bn=bn)  # type: ignore[arg-type]
    ref = config.TaskRef(name=name, train_images=60)
    task = data.open_task(ref, data_root=None, cache=tmp_path / "cache")
    assert len(task.classes) == classes
    seen = []
    original = models.new_head
    monkeypatch.setattr(
        models, "new_head", lambda model, *rest: (seen.append(model), original(model, *rest))
    )
    spec = plan.FullSpec(ref, SIZE, profile, 0)
    context = Context(accelerator(), None, tmp_path / "cache")
    result = full.fine_tune(pruned, task, task.train, task.test, spec, 0.01, None, context)
    assert result["logits"].shape == (len(task.test), classes)
    model = seen[-1]
    assert torch.count_nonzero(model.fc.weight) == model.fc.weight.numel()
    masks = checkpoint.open_checkpoint(pruned).masks
    assert masks is not None
    before = timm.create_model("local-dir:" + str(pruned), pretrained=True).state_dict()
    for layer, mask in masks.items():
        if layer != "fc.weight":
            weight = model.get_parameter(layer)
            assert torch.count_nonzero(weight[~mask]) == 0
            assert not torch.equal(weight, before[layer])


def test_the_same_seed_gives_the_same_head_to_every_checkpoint(pruned: Path):
    heads = []
    for _ in range(2):
        model = checkpoint.open_checkpoint(pruned).model
        models.new_head(model, 7, 5)
        heads.append(model.get_parameter("fc.weight"))
    assert torch.equal(*heads)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_temperature_comes_from_images_that_the_task_holds_out(
    tmp_path: Path, half_pruned: Path, share: float
):
    ref = config.TaskRef(name="textures", train_images=80, validation=share)
    profile = config.FullProfile(steps=3, batch_size=16)
    spec = plan.FullSpec(ref, SIZE, profile, 0, calibrate=True)
    run = plan.Run("full", plan.Subject("net", "gmp", 0.5, 0), spec, {})
    context = Context(accelerator(), None, tmp_path / "cache")
    row = full.run(run, {"checkpoint": half_pruned}, tmp_path, context)["rows"][0]
    if share:
        assert row["temperature_images"] == 20
        task = data.open_task(ref, data_root=None, cache=tmp_path / "cache")
        assert not set(task.validation.ids) & set(task.train.ids)
    else:
        assert "`validation`" in row["not_calibrated"] and "temperature" not in row


def carry_out(parent: Path, out: Path, cache: Path, **changes) -> dict:
    """A full run of four epochs of four batches with whatever the loop has."""
    settings = {
        "epochs": 4,
        "batch_size": 16,
        "accumulation": 2,
        "clip_norm": 1.0,
        "ema": 0.5,
        "augment": "flip",
        "optimizer": config.Optimizer(name="adamw", lr=1e-3),
        "engine": "sparse",
    }
    profile = config.FullProfile(**settings | changes)  # type: ignore[arg-type]
    ref = config.TaskRef(name="textures", train_images=64)
    spec = plan.FullSpec(ref, SIZE, profile, 3)
    run = plan.Run("full", plan.Subject("net", "gmp", 0.5, 0), spec, {})
    return full.run(run, {"checkpoint": parent}, out, Context(accelerator(), None, cache))


def logits(out: Path) -> np.ndarray:
    stored = predictions.Predictions.load(out / "predictions" / "full.parquet")
    assert stored.logits is not None
    return stored.logits


@needs_kernels
@pytest.mark.parametrize("bn", ["train", "frozen", "recalibrated"])
def test_both_engines_train_the_same_network(half_pruned, tmp_path, bn):
    results = {
        engine: carry_out(half_pruned, tmp_path / engine, tmp_path / "cache", engine=engine, bn=bn)
        for engine in ("dense", "sparse", "auto")
    }
    dense, sparse, auto = results.values()
    assert [r["rows"][0]["engine"] for r in results.values()] == ["dense", "sparse", "dense"]
    assert "small" in auto["training"]["engine"]["reason"]
    assert dense["manifest"]["mask_hash"] == sparse["manifest"]["mask_hash"] is not None
    sparsities = [result["rows"][0]["measured_sparsity"] for result in (dense, sparse)]
    assert sparsities[0] == sparsities[1] > 0.4
    np.testing.assert_allclose(sparse["training"]["losses"], dense["training"]["losses"], rtol=1e-4)
    assert np.array_equal(logits(tmp_path / "dense"), logits(tmp_path / "auto"))
    # stored as float16
    np.testing.assert_allclose(logits(tmp_path / "dense"), logits(tmp_path / "sparse"), atol=2e-2)


@needs_kernels
def test_the_sparse_engine_trains_the_non_zeros_alone(half_pruned, tmp_path, monkeypatch):
    sizes = []
    original = loop.train

    def train(model, *rest, **settings):
        trained = original(model, *rest, **settings)
        sizes.append(sum(p.numel() for p in model.parameters()))
        return trained

    monkeypatch.setattr(full.loop, "train", train)
    for engine in ("dense", "sparse"):
        carry_out(half_pruned, tmp_path / engine, tmp_path / "cache", engine=engine, epochs=1)
    masks = checkpoint.open_checkpoint(half_pruned / "checkpoint").masks
    assert masks is not None
    assert sizes[0] - sizes[1] == masks.total - masks.kept()


def stopped(parent: Path, out: Path, cache: Path, monkeypatch, **changes) -> None:
    """A run that is interrupted in its third epoch."""
    out.mkdir()
    calls = {"left": 5}

    def received() -> bool:
        calls["left"] -= 1
        return calls["left"] < 0

    monkeypatch.setattr(loop.signals, "received", received)
    with pytest.raises(StopRequested):
        carry_out(parent, out, cache, **changes)
    monkeypatch.undo()


@needs_kernels
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_resumed_sparse_run_is_an_uninterrupted_one_to_the_last_bit(
    pruned, tmp_path, monkeypatch, optimizer
):
    whole, halves, cache = tmp_path / "whole", tmp_path / "halves", tmp_path / "cache"
    changes = {"optimizer": config.Optimizer(name=optimizer, lr=1e-3)}
    expected = carry_out(pruned.parent, whole, cache, **changes)
    stopped(pruned.parent, halves, cache, monkeypatch, **changes)
    assert resume.facts_of(halves) is not None
    # the rule would take the dense engine for so small a network; the run goes on as it began
    found = carry_out(pruned.parent, halves, cache, engine="auto", **changes)
    assert np.array_equal(logits(whole), logits(halves))
    assert found["training"]["engine"] == expected["training"]["engine"]
    assert len(found["training"]["losses"]) < len(expected["training"]["losses"])


@needs_kernels
def test_a_sparse_run_is_not_resumed_where_there_are_no_kernels(half_pruned, tmp_path, monkeypatch):
    stopped(half_pruned, tmp_path / "out", tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(library, "available", lambda: "the sparse kernels were not compiled")
    with pytest.raises(UserError, match="began with the sparse engine") as error:
        carry_out(half_pruned, tmp_path / "out", tmp_path / "cache", engine="auto")
    assert "not compiled" in str(error.value)


def test_a_run_that_began_before_there_was_a_choice_goes_on_densely(
    half_pruned, tmp_path, monkeypatch
):
    dense = {"engine": "dense"}
    stopped(half_pruned, tmp_path / "out", tmp_path / "cache", monkeypatch, **dense)
    monkeypatch.setattr(resume, "facts_of", lambda folder: {})
    result = carry_out(half_pruned, tmp_path / "out", tmp_path / "cache", engine="auto")
    assert result["training"]["engine"]["name"] == "dense"

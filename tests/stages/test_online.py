"""The on-line linear mode: only the head trains, on features that are recomputed each step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sparse_transfer import (
    checkpoint,
    config,
    data,
    inference,
    inputs,
    loop,
    models,
    plan,
    predictions,
)
from sparse_transfer.devices import accelerator
from sparse_transfer.errors import StopRequested, UserError
from sparse_transfer.seeds import derive
from sparse_transfer.sparse import library
from sparse_transfer.stages import online
from sparse_transfer.stages.context import Context

SIZE = config.Preprocess(image_size=16, crop="none")
REF = config.TaskRef(name="textures", train_images=100)
PROFILE = config.OnlineProfile(
    epochs=3,
    batch_size=32,
    augment="random_resized_crop",
    normalise="dataset",
    interpolation="paper",
    optimizer=config.Optimizer(
        lr=0.05, momentum=0.9, nesterov=False, weight_decay=5e-4, decay_norm_and_bias=True
    ),
    schedule=config.LrSchedule(name="step", milestones=(2,)),
)


def spec(profile: config.OnlineProfile = PROFILE, **fields: Any) -> plan.OnlineSpec:
    return plan.OnlineSpec(
        fields.get("task", REF), SIZE, profile, 21, fields.get("calibrate", False)
    )


def carry_out(made: plan.OnlineSpec, parent: Path, out: Path, cache: Path) -> dict[str, Any]:
    subject = plan.Subject("net", "gmp", 0.5, 0)
    run = plan.Run("online", subject, made, {})
    return online.run(run, {"checkpoint": parent}, out, Context(accelerator(), None, cache))


def logits(out: Path) -> np.ndarray:
    stored = predictions.Predictions.load(out / "predictions" / "online.parquet")
    assert stored.logits is not None
    return stored.logits


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_only_the_head_changes_and_the_backbone_is_never_in_training_mode(
    half_pruned, tmp_path, cache, monkeypatch
):
    seen: dict[str, Any] = {}
    original = loop.train

    def spy(model, *arguments, **options):  # noqa: ANN001, ANN002, ANN003, ANN202
        seen["model"] = model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes: list[bool] = []
        handles = [
            module.register_forward_pre_hook(lambda m, _: modes.append(m.training))
            for module in model.model.modules()
        ]
        trained = original(model, *arguments, **options)
        for handle in handles:
            handle.remove()
        seen["modes"] = modes
        seen["changed"] = [
            name
            for name, value in model.state_dict().items()
            if not torch.equal(value, before[name])
        ]
        return trained

    monkeypatch.setattr(loop, "train", spy)
    result = carry_out(spec(), half_pruned, tmp_path, cache)
    assert seen["modes"] and not any(seen["modes"])
    assert sorted(seen["changed"]) == ["model.fc.bias", "model.fc.weight"]
    wrapped = seen["model"].model
    needs = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert needs == models.head_name(wrapped)
    assert all(p.grad is None for p in wrapped.parameters())
    masks = checkpoint.open_checkpoint(half_pruned / "checkpoint").masks
    assert masks is not None
    for name, mask in masks.items():
        assert torch.count_nonzero(wrapped.get_parameter(name)[~mask]) == 0
    assert result["rows"][0]["measured_sparsity"] == pytest.approx(masks.sparsity())


def test_without_augmentation_it_is_a_linear_layer_trained_on_cached_features(
    half_pruned, tmp_path, cache
):
    profile = PROFILE.model_copy(update={"augment": "none"})
    carry_out(spec(profile), half_pruned, tmp_path, cache)
    # the same by hand: torch's own layer, optimizer and schedule on features extracted once
    opened = checkpoint.open_checkpoint(half_pruned / "checkpoint")
    task = data.open_task(REF, data_root=None, cache=cache)
    transform = inputs.transform(SIZE, opened.loaded, task, cache, profile)
    models.new_head(opened.model, len(task.classes), derive(21, "transfer"))
    tables = {}
    for part, split in (("train", task.train), ("test", task.test)):
        images = inputs.AugmentedImages(transform.images(split, cache), 0)
        with torch.no_grad():
            opened.model.eval()
            x = images.batch(torch.arange(len(images)), 0)
            tables[part] = models.features(opened.model, x), images.labels
    head: nn.Module = opened.model.get_submodule("fc")
    optimizer = torch.optim.SGD(head.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.1)
    x, y = tables["train"]
    for epoch in range(3):
        for rows in loop.epoch_batches(len(x), 32, derive(21, "online"), epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(x[rows]), y[rows]).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        expected = head(tables["test"][0]).numpy()
    np.testing.assert_allclose(logits(tmp_path), expected, atol=5e-3)  # stored as float16


def test_a_resumed_run_is_an_uninterrupted_one_to_the_last_bit(
    half_pruned, tmp_path, cache, monkeypatch
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    carry_out(spec(), half_pruned, whole, cache)
    stopped.mkdir()
    calls = {"left": 6}  # the first step of the second epoch but one: four batches in each

    def received() -> bool:
        calls["left"] -= 1
        return calls["left"] < 0

    monkeypatch.setattr(loop.signals, "received", received)
    with pytest.raises(StopRequested):
        carry_out(spec(), half_pruned, stopped, cache)
    monkeypatch.undo()
    assert (stopped / "resume.safetensors").is_file()
    result = carry_out(spec(), half_pruned, stopped, cache)
    assert np.array_equal(logits(whole), logits(stopped))
    assert 0 < result["rows"][0]["timed_steps"] < 12


@pytest.mark.skipif(library.available() is not None, reason=library.available() or "")
def test_the_sparse_engine_trains_the_same_head(thin, tmp_path, cache):
    made, results = {}, {}
    for engine in ("dense", "sparse", "auto"):
        profile = PROFILE.model_copy(update={"engine": engine})
        results[engine] = carry_out(spec(profile), thin, tmp_path / engine, cache)
        made[engine] = logits(tmp_path / engine)
    names = {asked: result["rows"][0]["engine"] for asked, result in results.items()}
    assert names == {"dense": "dense", "sparse": "sparse", "auto": "dense"}
    assert "small" in results["auto"]["engine"]["reason"]
    assert np.array_equal(made["auto"], made["dense"])
    np.testing.assert_allclose(made["sparse"], made["dense"], atol=5e-3)  # stored as float16
    losses = [results[name]["training"]["losses"] for name in ("sparse", "dense")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != losses[1]


@pytest.mark.skipif(library.available() is not None, reason=library.available() or "")
def test_a_resumed_run_goes_on_with_the_engine_it_began_with(thin, tmp_path, cache, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    sparse = spec(PROFILE.model_copy(update={"engine": "sparse"}))
    carry_out(sparse, thin, whole, cache)
    stopped.mkdir()
    calls = {"left": 6}

    def received() -> bool:
        calls["left"] -= 1
        return calls["left"] < 0

    monkeypatch.setattr(loop.signals, "received", received)
    with pytest.raises(StopRequested):
        carry_out(sparse, thin, stopped, cache)
    monkeypatch.undo()
    inference._COMPILED.clear()
    with monkeypatch.context() as without:
        without.setattr(library, "available", lambda: "the sparse kernels were not compiled")
        with pytest.raises(UserError, match="began with the sparse engine") as error:
            carry_out(spec(), thin, stopped, cache)
        assert "not compiled" in str(error.value)
        assert "delete" in str(error.value)
    # the rule would take PyTorch for so small a network
    result = carry_out(spec(), thin, stopped, cache)
    assert result["rows"][0]["engine"] == "sparse"
    assert np.array_equal(logits(whole), logits(stopped))


def test_its_row_says_what_a_step_cost(half_pruned, tmp_path, cache):
    result = carry_out(spec(), half_pruned, tmp_path, cache)
    row = result["rows"][0]
    assert row["mode"] == "linear-online" and row["timed_steps"] == 12
    parts = [row[f"{part}_s"] for part in ("loading", "forward", "backward", "update", "step")]
    assert all(value > 0 for value in parts)
    assert row["forward_s"] <= row["step_s"]
    assert row["backward_s"] < row["forward_s"]  # it ends at the head
    assert row["epoch_s"] == pytest.approx(4 * (row["step_s"] + row["loading_s"]))
    assert result["training"]["regime"] == "backbone recomputed each step"


def test_a_temperature_needs_images_that_were_held_out(half_pruned, tmp_path, cache):
    without = carry_out(spec(calibrate=True), half_pruned, tmp_path / "a", cache)["rows"][0]
    assert "validation" in without["not_calibrated"] and "temperature" not in without
    held = config.TaskRef(name="textures", train_images=100, validation=0.2)
    row = carry_out(spec(calibrate=True, task=held), half_pruned, tmp_path / "b", cache)["rows"][0]
    task = data.open_task(held, data_root=None, cache=cache)
    assert row["temperature_images"] == len(task.validation)
    assert row["temperature"] > 0 and row["ece_calibrated"] >= 0


def test_laps_are_summed_into_parts_and_loading_is_left_out(monkeypatch):
    # one step per row: between, loading, forward, backward, update (in the seconds they take)
    steps = [(9, 5, 2, 1, 0.5), (9, 7, 4, 1, 0.5), (9, 6, 3, 2, 0.5)]
    clock = np.cumsum([second for step in steps for second in step])
    ticks = iter(clock)
    monkeypatch.setattr(online.time, "perf_counter", lambda: float(next(ticks)))
    times = online.StepTimes(torch.device("cpu"))
    for _ in steps:
        for part in ("between", "loading", "forward", "backward", "update"):
            times.lap(part)
    assert times.medians() == {
        "steps": 3,
        "loading": 6,
        "forward": 3,
        "backward": 1,
        "update": 0.5,
        "step": 5.5,
    }


def test_a_training_without_steps_has_no_times():
    assert online.StepTimes(torch.device("cpu")).medians() == {"steps": 0}

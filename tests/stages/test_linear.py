"""The temperature of linear probes is fitted on held-out training features, never on test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_transfer import checkpoint, config, plan, probes
from sparse_transfer.calibration import fit_temperature, scores
from sparse_transfer.devices import accelerator
from sparse_transfer.stages import frozen, linear
from sparse_transfer.stages.context import Context

SIZE = config.Preprocess(image_size=16, crop="none")
PROFILE = config.LinearProfile(epochs=4, lr=0.05, lbfgs_c=(0.01, 1.0))
SEEDS = (21, 51)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def carry_out(
    parent: Path, out: Path, cache: Path, calibrate: bool, images: int = 80
) -> dict[str, Any]:
    ref = config.TaskRef(name="textures", train_images=images)
    spec = plan.LinearSpec(ref, SIZE, PROFILE, SEEDS, calibrate)
    run = plan.Run("linear", plan.Subject("net", "gmp", 0.5, 0), spec, {})
    return linear.run(run, {"checkpoint": parent}, out, Context(accelerator(), None, cache))


def test_it_is_that_of_a_twin_on_what_the_twin_has_not_seen(half_pruned, tmp_path, cache):
    result = carry_out(half_pruned, tmp_path, cache, calibrate=True)
    context = Context(accelerator(), None, cache)
    ref = config.TaskRef(name="textures", train_images=80)
    found = frozen.extract(half_pruned / "checkpoint", ref, SIZE, PROFILE, context)
    x, y = found.train, found.train_labels
    is_held = probes.held_out(y, PROFILE.lbfgs_validation, seed=0)
    assert is_held.sum() == 16
    twin = probes.sgd(x[~is_held], y[~is_held], x[is_held], 10, PROFILE, SEEDS)
    rows = {(row["mode"], row["transfer_seed"]): row for row in result["rows"]}
    for place, seed in enumerate(SEEDS):
        row = rows["linear-sgd", seed]
        expected = fit_temperature(twin.logits[place], y[is_held])
        assert row["temperature"] == pytest.approx(expected.value, rel=1e-4)
        assert row["temperature_images"] == 16
    given = PROFILE.model_copy(update={"lbfgs_c": (result["lbfgs"]["c"],)})
    regression = probes.lbfgs(x[~is_held], y[~is_held], x[is_held], 10, given)
    row = rows["linear-lbfgs", None]
    assert row["temperature"] == pytest.approx(
        fit_temperature(regression.logits, y[is_held]).value, rel=1e-4
    )
    # the scored head saw all training images; its own logits are what is divided
    full = probes.lbfgs(x, y, found.test, 10, PROFILE)
    after = scores(full.logits, found.test_labels, row["temperature"])
    assert row["ece_calibrated"] == pytest.approx(after.ece)
    assert row["log_loss_calibrated"] == pytest.approx(after.log_loss)
    assert row["brier_calibrated"] == pytest.approx(after.brier)


def test_scores_are_the_same_with_and_without(half_pruned, tmp_path, cache):
    plain = carry_out(half_pruned, tmp_path / "a", cache, calibrate=False)["rows"]
    asked = carry_out(half_pruned, tmp_path / "b", cache, calibrate=True)["rows"]
    for one, other in zip(plain, asked, strict=True):
        assert one["metrics"] == other["metrics"] and one["brier"] == other["brier"]
        assert "temperature" not in one and "not_calibrated" not in one


def test_brier_is_that_of_the_stored_probabilities(half_pruned, tmp_path, cache):
    from sparse_transfer.predictions import Predictions

    row = carry_out(half_pruned, tmp_path, cache, calibrate=False)["rows"][0]
    stored = Predictions.load(tmp_path / row["predictions"])
    assert stored.logits is not None
    probs = np.exp(stored.logits.astype(float))
    probs /= probs.sum(axis=1, keepdims=True)
    truth = np.eye(10)[stored.label]
    assert row["brier"] == pytest.approx(np.square(probs - truth).sum(axis=1).mean(), abs=2e-3)


def test_without_two_images_of_a_class_it_is_said_why_there_is_none(half_pruned, tmp_path, cache):
    profile = PROFILE.model_copy(update={"lbfgs_c": (1.0,)})
    ref = config.TaskRef(name="textures", train_images=10)
    spec = plan.LinearSpec(ref, SIZE, profile, SEEDS, calibrate=True)
    run = plan.Run("linear", plan.Subject("net", "gmp", 0.5, 0), spec, {})
    context = Context(accelerator(), None, cache)
    rows = linear.run(run, {"checkpoint": half_pruned}, tmp_path, context)["rows"]
    assert len(rows) == 3
    for row in rows:
        assert "held out" in row["not_calibrated"] and "temperature" not in row


@pytest.mark.parametrize(("layout", "expected"), [("rigl", "bicubic"), ("acdc", "bilinear")])
def test_images_are_resized_as_the_study_did_for_the_weights_layout(
    half_pruned, tmp_path, cache, layout, expected
):
    opened = checkpoint.open_checkpoint(half_pruned / "checkpoint")
    facts = opened.facts | {"imported": {"layout": layout, "file": "made.pth"}}
    folder = tmp_path / "imported" / "checkpoint"
    checkpoint.save(folder, opened.loaded, opened.model, opened.masks, facts)
    ref = config.TaskRef(name="textures", train_images=40)
    profile = PROFILE.model_copy(update={"interpolation": "paper", "normalise": "imagenet"})
    spec = plan.LinearSpec(ref, SIZE, profile, SEEDS)
    run = plan.Run("linear", plan.Subject("net", "gmp", 0.5, 0), spec, {})
    context = Context(accelerator(), None, cache)
    result = linear.run(run, {"checkpoint": tmp_path / "imported"}, tmp_path, context)
    assert result["manifest"]["transform"]["interpolation"] == expected
    # and what is made from such a checkpoint says so, too
    passed_on = checkpoint.imported(config.ModelSpec(name=f"local-dir:{folder}"))
    assert passed_on == {"imported": facts["imported"]}
    for given in ("random", "/tmp/other.pth"):  # the folder gives the architecture alone
        other = config.ModelSpec(name=f"local-dir:{folder}", weights=given)
        assert checkpoint.imported(other) == {}
    own = config.ModelSpec(name=f"local-dir:{half_pruned / 'checkpoint'}")
    assert checkpoint.imported(own) == checkpoint.imported(config.ModelSpec(name="resnet18")) == {}

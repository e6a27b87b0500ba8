"""Bench rows of real checkpoints, with and without a dense model beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_transfer import checkpoint, config, models
from sparse_transfer.errors import UserError
from sparse_transfer.stages.bench import measure_checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    spec = config.ModelSpec(name="resnet20_cifar", weights="random", kwargs={"channels": [4, 8, 8]})
    loaded = models.build(spec, num_classes=3, image_size=16, seed=0)
    folder = tmp_path_factory.mktemp("bench") / "checkpoint"
    checkpoint.save(folder, loaded, loaded.model, None, {})
    return folder


def test_beside_a_dense_model_there_is_a_speedup(saved: Path):
    (row,), reasons = measure_checkpoints(saved, saved, ("dense",), 2, None, 6)
    assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    assert row["p10_s"] <= row["median_s"] <= row["p90_s"]
    assert (row["batch_size"], row["image_size"], row["repeats"]) == (2, 16, 6)
    assert row["device"] == "cpu" and row["threads"] >= 1 and reasons == []


def test_alone_there_is_a_latency_and_no_speedup(saved: Path):
    (row,), reasons = measure_checkpoints(saved, None, ("dense",), 1, 24, 4)
    assert row["median_s"] > 0 and row["image_size"] == 24 and reasons == []
    assert row["speedup"] is row["speedup_low"] is row["speedup_high"] is None


def test_a_backend_that_does_not_exist_is_said(saved: Path):
    with pytest.raises(UserError, match="Did you mean dense"):
        measure_checkpoints(saved, None, ("dens",), 1, None, 4)

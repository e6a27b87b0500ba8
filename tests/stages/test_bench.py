"""Bench rows of real checkpoints, with and without a dense model beside them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparse_transfer import checkpoint, config, models
from sparse_transfer.errors import UserError
from sparse_transfer.latency import Prepared
from sparse_transfer.stages import bench
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


class Slowed:
    """PyTorch with a pause in every call."""

    def __init__(self, pause: float, uses_zeros: str) -> None:
        self.pause, self.uses_zeros = pause, uses_zeros

    def available(self) -> None:
        return None

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        def run(images: Tensor) -> Tensor:
            time.sleep(self.pause)
            return model(images)

        return Prepared(torch.inference_mode()(run))


def test_zeros_are_compared_with_the_fastest_dense_backend(saved: Path, monkeypatch):
    backends = {
        "slow": Slowed(0.06, "does not use zeros"),
        "fast": Slowed(0.0, "does not use zeros"),
        "zeros": Slowed(0.03, "uses zeros"),
    }
    monkeypatch.setattr(bench.plugins, "load", lambda kind, name: lambda: backends[name])
    rows, reasons = measure_checkpoints(saved, saved, tuple(backends), 2, None, 8)
    found = {row["backend"]: row for row in rows}
    assert reasons == [] and list(found) == list(backends)
    assert [found[name]["over"] for name in backends] == ["slow", "fast", "fast"]
    assert found["zeros"]["speedup"] < 1 < 2 * found["slow"]["speedup"]

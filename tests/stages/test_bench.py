"""Bench rows of real checkpoints, with and without a dense model beside them."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparse_transfer import checkpoint, config, latency, models
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


def bench_of(*backends: str, **settings: Any) -> config.Bench:
    return config.Bench(backends=backends, **settings)


def test_beside_a_dense_model_there_is_a_speedup(saved: Path):
    (row,), reasons = measure_checkpoints(saved, saved, bench_of("dense", batch_size=2, repeats=6))
    assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    assert row["over"] == "dense"
    assert row["over_p10_s"] <= row["over_median_s"] <= row["over_p90_s"] <= row["over_p99_s"]
    assert row["p10_s"] <= row["median_s"] <= row["p90_s"] <= row["p99_s"]
    assert row["images_per_s"] == pytest.approx(2 / row["median_s"])
    assert (row["batch_size"], row["idle_ms"], row["image_size"], row["repeats"]) == (2, 0, 16, 6)
    assert row["device"] == "cpu" and row["threads"] >= 1 and reasons == []
    assert 0 <= row["relative_error"] < 1e-5


def test_alone_there_is_a_latency_and_no_speedup(saved: Path):
    (row,), reasons = measure_checkpoints(
        saved, None, bench_of("dense", batch_size=1, repeats=4), 24
    )
    assert row["median_s"] > 0 and row["image_size"] == 24 and reasons == []
    assert row["speedup"] is row["speedup_low"] is row["speedup_high"] is row["over"] is None


def test_every_batch_size_has_a_row_and_batch_1_one_after_idling(saved: Path, monkeypatch):
    slept = []
    monkeypatch.setattr(latency.time, "sleep", slept.append)
    settings = bench_of("dense", batch_size=(1, 3), repeats=3, idle_ms=30)
    rows, _ = measure_checkpoints(saved, saved, settings)
    assert [(row["batch_size"], row["idle_ms"]) for row in rows] == [(1, 0), (1, 30), (3, 0)]
    assert slept == [0.03] * 2 * (3 + 3)  # two models, warm-up rounds included
    rows, _ = measure_checkpoints(saved, None, bench_of("dense", repeats=3, idle_ms=5))
    assert [(row["batch_size"], row["idle_ms"]) for row in rows] == [(16, 0), (1, 5)]


def test_a_network_that_is_cut_through_is_noticed(saved: Path, tmp_path: Path):
    opened = checkpoint.open_checkpoint(saved)
    folder = tmp_path / "checkpoint"
    with torch.no_grad():
        next(m for m in opened.model.modules() if isinstance(m, nn.Conv2d)).weight.zero_()
    checkpoint.save(folder, opened.loaded, opened.model, None, {})
    settings = bench_of("dense", batch_size=1, repeats=3)
    (whole,), _ = measure_checkpoints(saved, None, settings)
    (cut,), _ = measure_checkpoints(folder, None, settings)
    assert not whole["is_constant"] and cut["is_constant"] and cut["dependence"] < 1e-6
    assert cut["zero_layers"] == whole["zero_layers"] + 1


def test_an_image_size_beyond_memory_is_a_clear_error(saved: Path):
    with pytest.raises(UserError, match="cannot be run on images of 1000000 pixels"):
        measure_checkpoints(saved, None, bench_of("dense", batch_size=1, repeats=3), 1_000_000)


def test_a_backend_that_does_not_exist_is_said(saved: Path):
    with pytest.raises(UserError, match="Did you mean dense"):
        measure_checkpoints(saved, None, bench_of("dens", batch_size=1, repeats=4))


class Slowed:
    """PyTorch with a pause in every call, and a factor on its outputs."""

    def __init__(
        self, pause: float, uses_zeros: str, tolerance: float = 1e-4, factor: float = 1.0
    ) -> None:
        self.pause, self.uses_zeros = pause, uses_zeros
        self.tolerance, self.factor = tolerance, factor

    def available(self) -> None:
        return None

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        def run(images: Tensor) -> Tensor:
            time.sleep(self.pause)
            return self.factor * model(images)

        return Prepared(torch.inference_mode()(run))


def measured(saved: Path, monkeypatch, backends: dict[str, Any], repeats: int = 8):
    monkeypatch.setattr(bench.plugins, "load", lambda kind, name: lambda: backends[name])
    rows, reasons = measure_checkpoints(
        saved, saved, bench_of(*backends, batch_size=2, repeats=repeats)
    )
    return {row["backend"]: row for row in rows}, reasons


def test_zeros_are_compared_with_the_fastest_dense_backend(saved: Path, monkeypatch):
    backends = {
        "slow": Slowed(0.06, "does not use zeros"),
        "fast": Slowed(0.0, "does not use zeros"),
        "zeros": Slowed(0.03, "uses zeros"),
    }
    found, reasons = measured(saved, monkeypatch, backends)
    assert reasons == [] and list(found) == list(backends)
    assert [found[name]["over"] for name in backends] == ["slow", "fast", "fast"]
    assert found["zeros"]["speedup"] < 1 < 2 * found["slow"]["speedup"]


def test_nobody_is_compared_with_what_is_less_exact(saved: Path, monkeypatch):
    backends = {
        "float32": Slowed(0.05, "does not use zeros"),
        "bf16": Slowed(0.02, "does not use zeros", 0.05, 1.01),
        "integers": Slowed(0.0, "does not use zeros", math.inf, 3.0),
        "zeros": Slowed(0.08, "uses zeros"),
        "zeros-bf16": Slowed(0.08, "uses zeros", 0.05, 0.99),
    }
    found, _ = measured(saved, monkeypatch, backends, repeats=3)
    assert found["zeros"]["over"] == "float32"
    assert found["zeros-bf16"]["over"] == "bf16"
    assert found["bf16"]["relative_error"] == pytest.approx(0.01, rel=1e-3)
    assert found["integers"]["relative_error"] == pytest.approx(2, rel=1e-3)


def test_a_backend_that_cannot_run_the_model_is_a_reason_and_the_others_are_timed(
    saved: Path, monkeypatch
):
    class Refusing(Slowed):
        def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
            raise UserError("It cannot.", "Because.")

    backends = {"good": Slowed(0.0, ""), "bad": Refusing(0.0, "")}
    found, reasons = measured(saved, monkeypatch, backends, repeats=3)
    assert list(found) == ["good"] and reasons == ["bad: It cannot. Because."]
    with pytest.raises(UserError, match="No backend could be measured"):
        measured(saved, monkeypatch, {"bad": Refusing(0.0, "")}, repeats=3)

"""The tables of `plan` and `bench`: a noisy measurement says that it is."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_transfer.report import console_tables


def row(p90: float) -> dict[str, Any]:
    return {
        "backend": "dense", "uses_zeros": "does not use zeros", "device": "cpu", "threads": 1,
        "batch_size": 4, "image_size": 32, "repeats": 30, "median_s": 0.01, "p10_s": 0.009,
        "p90_s": p90, "p99_s": 2 * p90, "idle_ms": 0, "images_per_s": 400.0,
        "relative_error": 2e-7, "speedup": 1.0, "over": "dense", "speedup_low": 0.9,
        "speedup_high": 1.1,
    }  # fmt: skip


@pytest.mark.parametrize(("p90", "warns"), [(0.012, False), (0.05, True)])
def test_a_busy_machine_is_said(p90: float, warns: bool, capsys):
    console_tables.print_bench([row(p90)])
    assert ("times p10" in capsys.readouterr().out) == warns


def test_the_dense_backend_that_zeros_are_compared_with_is_named(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    console_tables.print_bench([row(0.012) | {"backend": "sparse", "over": "onnxruntime"}])
    assert "onnxruntime" in capsys.readouterr().out


def test_percentiles_throughput_error_and_pause_are_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    idle = {"batch_size": 1, "idle_ms": 30, "images_per_s": 97.0, "relative_error": 3e-6}
    console_tables.print_bench([row(0.012), row(0.013) | idle])
    said = capsys.readouterr().out
    first, second = [line.split() for line in said.splitlines() if line.startswith("  dense")]
    assert first[:7] == ["dense", "4", "10.00", "9.00", "12.00", "24.00", "400"]
    assert second[1:5] == ["1", "after", "30", "ms"] and "97" in second
    assert said.count("dense: does not use zeros; largest error 3e-06 of the largest output") == 1


def test_the_accuracy_of_integers_is_said_once(capsys):
    scored = {"accuracy": 0.875, "accuracy_float32": 0.9, "scored_images": 40}
    console_tables.print_bench([row(0.012) | scored, row(0.012) | scored])
    said = capsys.readouterr().out
    assert said.count("; accuracy 87.5 %, in float32 90.0 % (40 test images)") == 1
    console_tables.print_bench([row(0.012) | {"agreement": 0.975, "scored_images": 40}])
    assert "97.5 % of its predictions are those of float32 (40" in capsys.readouterr().out

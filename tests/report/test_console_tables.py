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
        "speedup_high": 1.1, "over_median_s": 0.02, "over_p10_s": 0.018, "over_p90_s": 0.022,
        "over_p99_s": 0.03,
    }  # fmt: skip


@pytest.mark.parametrize(("p90", "warns"), [(0.012, False), (0.05, True)])
def test_a_busy_machine_is_said(p90: float, warns: bool, capsys):
    console_tables.print_bench([row(p90)])
    assert ("times p10" in capsys.readouterr().out) == warns


def test_the_dense_backend_that_zeros_are_compared_with_is_named(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    zeros = {"backend": "sparse", "uses_zeros": "uses zeros", "over": "sparse", "note": "dense: no"}
    console_tables.print_bench([row(0.012) | zeros])
    said = capsys.readouterr().out
    assert "1.00× [0.90, 1.10] over sparse" in said
    (line,) = [line.split() for line in said.splitlines() if "sparse (dense model)" in line]
    assert line[3:] == ["4", "20.00", "18.00", "22.00", "30.00", "200"]
    assert "sparse: dense, as zeros" in said and "batch 4: dense: no" in said


def test_no_ratio_is_shown_without_zeros_and_none_without_a_dense_model(capsys):
    console_tables.print_bench([row(0.012)])
    said = capsys.readouterr().out
    assert "×" not in said and "--dense" not in said
    console_tables.print_bench([row(0.012) | {"speedup": None, "over": None}])
    assert "--dense" in capsys.readouterr().out


def test_a_network_that_is_cut_through_is_said(capsys):
    console_tables.print_bench([row(0.012) | {"dependence": 1e-9, "is_constant": True}])
    assert "computes a constant" in capsys.readouterr().out
    console_tables.print_bench([row(0.012) | {"zero_layers": 3}])
    assert "3 layers have no weight left" in capsys.readouterr().out


def test_on_a_narrow_terminal_columns_are_left_out_and_names_are_whole(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    zeros = {"backend": "onnxruntime-int8", "uses_zeros": "uses zeros", "over": "onnxruntime-int8"}
    console_tables.print_bench([row(0.012) | zeros])
    said = capsys.readouterr().out
    assert "onnxruntime-int8 (dense model)" in said and "Left out" in said


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

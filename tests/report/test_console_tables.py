"""The tables of `plan` and `bench`: a noisy measurement says that it is."""

from __future__ import annotations

from typing import Any

import pytest

from sparse_transfer.report import console_tables


def row(p90: float) -> dict[str, Any]:
    return {
        "backend": "dense", "uses_zeros": "does not use zeros", "device": "cpu", "threads": 1,
        "batch_size": 4, "image_size": 32, "repeats": 30, "median_s": 0.01, "p10_s": 0.009,
        "p90_s": p90, "speedup": 1.0, "over": "dense", "speedup_low": 0.9, "speedup_high": 1.1,
    }  # fmt: skip


@pytest.mark.parametrize(("p90", "warns"), [(0.012, False), (0.05, True)])
def test_a_busy_machine_is_said(p90: float, warns: bool, capsys):
    console_tables.print_bench([row(p90)])
    assert ("times p10" in capsys.readouterr().out) == warns


def test_the_dense_backend_that_zeros_are_compared_with_is_named(capsys):
    console_tables.print_bench([row(0.012) | {"backend": "sparse", "over": "onnxruntime"}])
    assert "onnxruntime" in capsys.readouterr().out

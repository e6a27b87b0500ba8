"""Measured time in tables: batch sizes, calls after idling, accuracy of integers, old results."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from sparse_transfer.report import cost_tables
from sparse_transfer.report.cells import records


def row(method: str, backend: str, **more: Any) -> dict[str, Any]:
    words = "uses zeros" if backend == "sparse" else "does not use zeros"
    return {
        "arm": "a", "model": "net", "method": method, "sparsity": 0.9 if method == "gmp" else 0.0,
        "upstream_seed": 0, "backend": backend, "uses_zeros": words, "device": "cpu", "threads": 2,
        "batch_size": 16, "image_size": 32, "median_s": 0.02, "p10_s": 0.019, "p90_s": 0.022,
        "speedup": 2.5, "speedup_low": 2.4, "speedup_high": 2.6, "over": "openvino",
        "mac_ratio": 0.1 if method == "gmp" else 1.0,
    } | more  # fmt: skip


NEW = {"idle_ms": 0, "p99_s": 0.03, "images_per_s": 800.0, "relative_error": 2e-7}


def titles(table: Any) -> list[str]:
    return [column.title for column in table.columns]


def test_results_without_the_new_columns_were_back_to_back():
    old = cost_tables.measurements(pd.DataFrame([row("dense", "sparse"), row("gmp", "sparse")]))
    assert old["idle_ms"].tolist() == [0, 0]
    table = cost_tables.speedup_table(old, arm="a", held_fixed="")
    assert not {"p99, ms", "idle before, ms", "images per second"} & set(titles(table))
    assert table.frame["measured"].tolist() == ["reference", "2.50× [2.40, 2.60] over openvino"]
    both = pd.DataFrame([row("gmp", "sparse"), row("gmp", "sparse", upstream_seed=1, **NEW)])
    assert cost_tables.measurements(both)["seeds"].tolist() == [2]  # one regime, old and new


def test_every_batch_size_and_pause_is_a_regime_and_named():
    idle = {"batch_size": 1, "idle_ms": 30, "images_per_s": 50.0}
    rows = [row("gmp", "sparse", **NEW), row("gmp", "sparse", **(NEW | idle))]
    found = cost_tables.measurements(pd.DataFrame(rows))
    assert [cost_tables.regime(each) for each in records(found)] == [
        "sparse backend, cpu, 2 threads, batch 16",
        "sparse backend, cpu, 2 threads, batch 1 after 30 ms idle",
    ]
    assert found["images_per_s"].tolist() == [800, 50]
    table = cost_tables.speedup_table(found, arm="a", held_fixed="")
    assert {"p99, ms", "idle before, ms", "images per second"} <= set(titles(table))


def test_a_model_that_computes_a_constant_has_no_speedup_and_one_that_is_cut_a_note():
    collapsed = {"sparsity": 0.98, "is_constant": True, "zero_layers": 3}
    cut = {"is_constant": False, "zero_layers": 1}
    whole = {"sparsity": 0.5, "is_constant": False, "zero_layers": 0}
    rows = [row("gmp", "sparse", **more) for more in (collapsed, cut, whole)]
    found = cost_tables.measurements(pd.DataFrame(rows)).set_index("sparsity")
    assert found.loc[0.98, "measured"] == cost_tables.CONSTANT
    assert math.isnan(found.loc[0.98, "speedup"]) and found.loc[0.9, "speedup"] == 2.5
    table = cost_tables.speedup_table(found.reset_index(), arm="a", held_fixed="")
    constant, one_layer = table.notes
    assert "collapsed under its mask" in constant and one_layer.startswith("net gmp 0.9: layers")


def test_the_accuracy_of_integers_stands_beside_their_time():
    scored = {"accuracy": 0.7, "accuracy_float32": 0.72, "scored_images": 500}
    rows = [row("gmp", "sparse", **NEW), row("gmp", "onnxruntime-int8", **NEW, **scored)]
    found = cost_tables.measurements(pd.DataFrame(rows)).set_index("backend")
    assert found.loc["onnxruntime-int8", "accuracy"] == pytest.approx(0.7)
    assert found.loc["onnxruntime-int8", "measured"] == cost_tables.NO_ZEROS
    assert pd.isna(found.loc["sparse", "accuracy"])
    table = cost_tables.speedup_table(found.reset_index(), arm="a", held_fixed="")
    assert {"its accuracy, %", "in float32, %", "images scored"} <= set(titles(table))
    assert "predictions as in float32, %" not in titles(table)

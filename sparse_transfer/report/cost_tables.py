"""What the zeros bought: theoretical and measured speedup, kept apart.

A measured ratio is shown only for a backend that uses zeros, never without backend, device, batch
and threads; the others say so in words. The theoretical ratio counts MACs with zeros skipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sparse_transfer.backends import uses_zeros
from sparse_transfer.report.cells import Column, Table, records, with_values
from sparse_transfer.statistics.intervals import t_interval
from sparse_transfer.store import slug

REGIME = ["backend", "device", "threads", "batch_size", "idle_ms", "image_size"]
TIMES = ("p10_s", "p90_s", "p99_s", "images_per_s", "relative_error")
SCORES = ("accuracy", "accuracy_float32", "agreement", "scored_images")
RATIOS = ("speedup", "speedup_low", "speedup_high")
NUMBERS = ("median_s", *TIMES, *SCORES, *RATIOS, "mac_ratio", "zero_layers")
NO_ZEROS = "does not use zeros"
CONSTANT = "computes a constant"
COLUMNS = (
    Column("model", "model", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity"),
    Column("theoretical", "theoretical speedup (MACs, zeros skipped)", "ratio"),
    Column("backend", "backend", choice=True),
    Column("device", "device", choice=True),
    Column("threads", "threads", "count"),
    Column("batch_size", "batch", "count"),
    Column("idle_ms", "idle before, ms", "count"),
    Column("image_size", "px", "count"),
    Column("seconds", "median, ms per batch", "milliseconds", "mean over upstream seeds"),
    Column("p10_s", "p10, ms", "milliseconds"),
    Column("p90_s", "p90, ms", "milliseconds"),
    Column("p99_s", "p99, ms", "milliseconds"),
    Column("images_per_s", "images per second", "count"),
    Column(
        "measured",
        "measured speedup over dense",
        note="paired median; over the fastest dense backend where zeros are used",
    ),
    Column("relative_error", "largest error of its outputs, %", "percent", "of the largest output"),
    Column("accuracy", "its accuracy, %", "percent", "on test images, where it rounds to integers"),
    Column("accuracy_float32", "in float32, %", "percent", "the same model on the same images"),
    Column("agreement", "predictions as in float32, %", "percent"),
    Column("scored_images", "images scored", "count"),
    Column("seeds", "seeds", "count"),
)


def measurements(bench: pd.DataFrame) -> pd.DataFrame:
    """One row per arm, model, method, sparsity and regime, seeds averaged.

    `speedup` (with `_low`, `_high`) is missing for dense models and for backends that do not use
    zeros; `measured` says in words what is to be shown. The interval is over upstream seeds, or
    that of the measurement itself where there is one seed. `beside_s` is the dense model's time,
    on the backend that the speedup is over (`over`). A model that computes a constant has no
    speedup; `zero_layers` counts layers that do, the most of all seeds.
    """
    numbers = {name: _numbers(bench, name) for name in NUMBERS}
    # results of earlier versions were all taken back to back
    bench = bench.assign(**numbers, idle_ms=_numbers(bench, "idle_ms").fillna(0).astype(int))
    rows = []
    by = ["arm", "model", "method", "sparsity", *REGIME]
    for key, part in bench.groupby(by, sort=False, dropna=False):
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        row |= {"seconds": part["median_s"].mean(), "seeds": part["upstream_seed"].nunique()}
        row |= {name: part[name].mean() for name in (*TIMES, *SCORES)}
        # of the dense model in the same rounds; missing for itself and where there is none
        beside = (part["median_s"] * part["speedup"]).mean()
        row["beside_s"] = float("nan") if row["method"] == "dense" else beside
        row["over"] = ", ".join(sorted(set(part["over"].dropna()))) if "over" in part else ""
        row["uses_zeros"] = bool(part["uses_zeros"].map(uses_zeros).all())
        row["theoretical"] = theoretical(part["mac_ratio"], row["method"])
        row["is_constant"] = "is_constant" in part and part["is_constant"].eq(True).any()
        row["zero_layers"] = part["zero_layers"].max()
        rows.append(row | _speedup(part, row))
    made = pd.DataFrame(rows)
    # A dense model has no zeros to use: it is shown where a pruned one beside it gains.
    places = ["arm", "model", *REGIME]
    gains = made.groupby(places, dropna=False)["uses_zeros"].transform("any")
    made["uses_zeros"] = made["uses_zeros"].where(made["method"] != "dense", gains)
    return made


def speedup_table(measured: pd.DataFrame, *, arm: str, held_fixed: str) -> Table:
    """The table of one arm's measurements."""
    part = measured[measured["arm"] == arm].sort_values(["model", "sparsity", "method"])
    columns = with_values(part, COLUMNS)
    if part["model"].nunique() == 1:
        columns = tuple(column for column in columns if column.key != "model")
    if not part["idle_ms"].any():
        columns = tuple(column for column in columns if column.key != "idle_ms")
    silent = sorted(part.loc[~part["uses_zeros"], "backend"].unique())
    notes = []
    if silent:
        notes.append(
            f"Backend {' and '.join(silent)}: {NO_ZEROS}; a pruned model computes as much as a "
            "dense one, so no ratio is given."
        )
    if part["is_constant"].any():
        notes.append(
            "Where a model computes a constant (for one seed at least), its outputs for different "
            "images do not differ: it collapsed under its mask, and its time says nothing."
        )
    cut = part[part["zero_layers"].gt(0) & ~part["is_constant"]]
    if len(cut):
        names = dict.fromkeys(
            f"{row['model']} {row['method']} {row['sparsity']:.4g}" for row in records(cut)
        )
        notes.append(
            f"{', '.join(names)}: layers have no weight left, or a batch norm that multiplies by "
            "zero; whole branches may be skipped, and the time says little of other networks."
        )
    return Table(
        f"speed-{slug(arm)}", "Time per batch", part, columns, "", tuple(notes), held_fixed
    )


def regime(row: Mapping[str, Any]) -> str:
    """Backend, device, threads and batch in words."""
    threads = int(row["threads"])
    words = f"{threads} thread{'s' if threads != 1 else ''}"
    idle = f" after {int(row['idle_ms'])} ms idle" if row["idle_ms"] else ""
    batch = f"batch {int(row['batch_size'])}{idle}"
    return f"{row['backend']} backend, {row['device']}, {words}, {batch}"


def theoretical(mac_ratios: pd.Series, method: str) -> float:
    """Dense MACs over MACs with zeros skipped; missing for the dense model itself."""
    ratio = float(mac_ratios.mean())
    return 1 / ratio if ratio > 0 and method != "dense" else float("nan")


def _numbers(bench: pd.DataFrame, name: str) -> pd.Series:
    """A column as numbers; what is not there (no dense model beside it) is missing."""
    if name not in bench:
        return pd.Series(float("nan"), index=bench.index)
    return pd.to_numeric(bench[name]).astype(float)


def _speedup(part: pd.DataFrame, row: Mapping[str, Any]) -> dict[str, Any]:
    nothing = dict.fromkeys(RATIOS, float("nan"))
    if row["method"] == "dense":
        return nothing | {"measured": "reference"}
    if not row["uses_zeros"]:
        return nothing | {"measured": NO_ZEROS}
    if row["is_constant"]:
        return nothing | {"measured": CONSTANT}
    if len(part) == 1:
        ratio, low, high = (float(part[name].iloc[0]) for name in nothing)
    else:
        ratio, low, high = t_interval(part["speedup"].dropna().to_numpy())
    if math.isnan(ratio):
        return nothing | {"measured": ""}
    words = f"{ratio:.2f}×" + (f" [{low:.2f}, {high:.2f}]" if low == low else "")
    if row["over"] not in ("", row["backend"]):
        words += f" over {row['over']}"
    return dict(zip(nothing, (ratio, low, high), strict=True)) | {"measured": words}

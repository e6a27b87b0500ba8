"""Rows of several arms on one task, compared with one of them image by image, and in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sparse_transfer.report import cost_tables
from sparse_transfer.report.cells import Column, Table, records, with_values
from sparse_transfer.report.material import LoadPredictions, Material
from sparse_transfer.statistics import example_errors
from sparse_transfer.statistics.intervals import wilson_interval
from sparse_transfer.statistics.paired_shares import paired_difference

COLUMNS = (
    Column("row", "row"),
    Column("sparsity", "sparsity, %", "sparsity"),
    Column("errors", "wrong", "count", "test images"),
    Column("n_test", "of", "count", "test images"),
    Column("error", "error, %", "percent", "Wilson interval over test images"),
    Column("points", "against the reference, points", "change", "paired over test images"),
    Column("validation_error", "validation error, %", "percent", "what a row is recommended by"),
    Column("per_image", "ms per image", "milliseconds", "median"),
    Column("dense_per_image", "dense beside it, ms", "milliseconds", "in the same rounds"),
    Column("bytes", "MB", "megabytes", "all values stored"),
    Column("packed", "MB compressed", "megabytes", "a bit per pruned weight, the rest stored"),
    Column("mac_ratio", "MACs, share of dense", "percent", "zeros skipped"),
)
EMPTY = pd.DataFrame(columns=["title", "sparsity"])


def rows(material: Material) -> pd.DataFrame:
    """One row per row of the answer (and sparsity) that has results, in its order.

    Columns: title, row (with the sparsity where a title has several), sparsity, errors, n_test,
    error with _low and _high (Wilson), points with _low and _high (against the reference, absent
    for itself), verdict (better, worse, undecided or ""), validation_error, seconds per image
    (per_image), of the dense model in the same rounds (dense_per_image), the regime in words,
    uses_zeros, bytes, packed, mac_ratio.
    """
    answer = material.facts["answer"]
    if not answer or material.frame.empty:
        return EMPTY
    timed = _timed(material.measured, answer)
    found = [_row(material, one, key, own, timed) for one, key, own in _cells(material, answer)]
    if not found:
        return EMPTY
    made = pd.DataFrame(found)
    reference = made[made["title"] == answer["reference"]]
    if len(reference) == 1 and material.predictions is not None:
        _compare(made, reference.iloc[0]["predicted"])
    return made.drop(columns="predicted")


def table(material: Material, made: pd.DataFrame) -> Table:
    """The rows as a table of the report."""
    answer = material.facts["answer"]
    regimes = [text for text in made.get("regime", pd.Series(dtype=str)).unique() if text]
    notes = [
        f"The reference is {answer['reference']}: the same training, nothing pruned.",
        *(f"Time: {text}." for text in regimes),
    ]
    columns = with_values(made, COLUMNS)
    return Table("answer", answer["headline"], made, columns, "", tuple(notes))


def headline(material: Material, made: pd.DataFrame) -> list[str]:
    """What kind of experiment it is, and the row that the validation images recommend."""
    answer = material.facts["answer"]
    if made.empty:
        return [f"{answer['headline']}. There is no result yet."]
    first = f"{answer['headline']}: {int(made['n_test'].max())} test images."
    chosen = made[made["title"].isin(answer["candidates"]) & made["validation_error"].notna()]
    if chosen.empty:
        return [first]
    best = records(chosen.sort_values("validation_error", kind="stable"))[0]
    return [
        first,
        f"By the validation images the best of the {len(chosen)} pruned models is {best['row']} "
        f"({_percent(best['validation_error'])} wrong there); no choice was made on the test "
        "images.",
    ]


def sentences(material: Material, made: pd.DataFrame) -> list[str]:
    """One sentence for each row, and one for what is not there."""
    answer = material.facts["answer"]
    reference = next((r for r in records(made) if r["title"] == answer["reference"]), None)
    said = [_sentence(row, reference) for row in records(made)]
    there = set(made["title"])
    said += [f"{row['title']}: no result." for row in answer["rows"] if row["title"] not in there]
    return said + [f"Left out: {text}." for text in answer["left_out"]]


def _cells(
    material: Material, answer: Mapping[str, Any]
) -> list[tuple[Mapping[str, Any], float, pd.DataFrame]]:
    frame, found = material.frame, []
    for one in answer["rows"]:
        own = frame[
            (frame["arm"] == one["arm"])
            & (frame["method"] == one["method"])
            & (frame["mode"] == one["mode"])
        ]
        found += [(one, float(key), part) for key, part in own.groupby("sparsity", sort=True)]
    return found


def _row(
    material: Material,
    one: Mapping[str, Any],
    sparsity: float,
    own: pd.DataFrame,
    timed: pd.DataFrame,
) -> dict[str, Any]:
    title = one["title"]
    n, seeds = int(own["n_test"].iloc[0]), len(own)
    errors = float((1 - own["top1"]).mean()) * n
    row: dict[str, Any] = {
        "title": title,
        "row": f"{title} ({seeds} seeds)" if seeds > 1 else title,
        "sparsity": sparsity or float("nan"),
        "errors": errors,
        "n_test": n,
        "error": errors / n,
        "verdict": "",
        "predicted": _predicted(own, material.predictions),
    }
    if seeds == 1:
        limits = wilson_interval(round(errors), n)
        row |= {"error_low": limits.low, "error_high": limits.high}
    for name in ("bytes", "packed", "mac_ratio"):
        row[name] = float(own[name].mean()) if name in own else float("nan")
    value = own["validation_top1"].mean() if "validation_top1" in own else float("nan")
    row["validation_error"] = 1 - float(value)
    time = timed[
        (timed["arm"] == one["arm"])
        & (timed["method"] == one["method"])
        & (timed["sparsity"] == sparsity)
    ] if len(timed) else timed  # fmt: skip
    if len(time):
        first = records(time)[0]
        row |= {
            "per_image": first["seconds"] / first["batch_size"],
            "dense_per_image": first["beside_s"] / first["batch_size"],
            "regime": cost_tables.regime(first),
            "uses_zeros": first["uses_zeros"],
        }
    return row


def _predicted(own: pd.DataFrame, load: LoadPredictions | None) -> Any:
    return None if load is None else example_errors([load(row) for row in records(own)])


def _compare(made: pd.DataFrame, reference: Any) -> None:
    """Fill in the paired difference of every row with the reference, where both have one model."""
    made[["points", "points_low", "points_high"]] = float("nan")
    for place, other in zip(made.index, made["predicted"], strict=True):
        if other is reference:
            continue
        first, second = reference.error, other.error
        if not np.array_equal(reference.example, other.example):
            continue  # another test set: nothing to pair
        made.loc[place, "points"] = float(second.mean() - first.mean())
        whole = all(np.isin(error, (0.0, 1.0)).all() for error in (first, second))
        if not whole:
            continue  # a mean over seeds
        wrong, also = first > 0, second > 0
        limits = paired_difference(
            int((wrong & also).sum()),
            int((wrong & ~also).sum()),
            int((~wrong & also).sum()),
            int((~wrong & ~also).sum()),
        )
        made.loc[place, ["points_low", "points_high"]] = limits.low, limits.high
        made.loc[place, "verdict"] = (
            "worse" if limits.low > 0 else "better" if limits.high < 0 else "undecided"
        )


def _timed(measured: pd.DataFrame, answer: Mapping[str, Any]) -> pd.DataFrame:
    """The measurements on one backend: one that uses zeros, else the fastest for the reference."""
    if measured.empty:
        return measured
    place = next(row for row in answer["rows"] if row["title"] == answer["reference"])
    own = measured[(measured["arm"] == place["arm"])]
    users = own[own["uses_zeros"] & (own["method"] != place["method"])]
    if len(users):
        backend = users.sort_values("seconds").iloc[0]["backend"]
    else:
        same = own[own["method"] == place["method"]]
        if same.empty:
            return measured.iloc[:0]
        backend = same.sort_values("seconds").iloc[0]["backend"]
    return measured[measured["backend"] == backend]


def _sentence(row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> str:
    parts = [_error(row, reference), _time(row), _size(row)]
    return f"{row['row']}: {'; '.join(part for part in parts if part)}."


def _error(row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> str:
    n = row["n_test"]
    if reference is None or row["title"] == reference["title"]:
        limits = _span(row, "error", signed=False)
        return f"error {_percent(row['error'])} ({row['errors']:.4g} of {n:.0f} images{limits})"
    change = f"{_percent(reference['error'])} → {_percent(row['error'])}"
    counts = f"{reference['errors']:.4g} → {row['errors']:.4g} of {n:.0f} images"
    verdict = f", {row['verdict']}" if row["verdict"] else ""
    return f"error {change} ({counts}{_span(row, 'points', signed=True)}{verdict})"


def _span(row: Mapping[str, Any], key: str, *, signed: bool) -> str:
    low, high = row.get(f"{key}_low", math.nan), row.get(f"{key}_high", math.nan)
    if math.isnan(low) or math.isnan(high):
        return ""
    if not signed:
        return f", 95 % interval {_number(low)} to {_number(high)} %"
    middle = f"{100 * row[key]:+.1f}".replace("-", "−")
    ends = [f"{100 * end:+.1f}".replace("-", "−") for end in (low, high)]
    return f"; {middle} points, 95 % interval {ends[0]} to {ends[1]}, paired"


def _time(row: Mapping[str, Any]) -> str:
    own, dense = row.get("per_image", math.nan), row.get("dense_per_image", math.nan)
    if math.isnan(own):
        return ""
    # measured side by side: rows apart differ by what else the machine did
    beside = "" if math.isnan(dense) else f", the dense model beside it {1000 * dense:.3g}"
    zeros = ", which does not use zeros" if not row["uses_zeros"] and row["sparsity"] > 0 else ""
    return f"{1000 * own:.3g} ms per image{beside} ({row['regime']}{zeros})"


def _size(row: Mapping[str, Any]) -> str:
    if math.isnan(row["bytes"]):
        return ""
    text = f"{row['bytes'] / 1e6:.3g} MB"
    if row["packed"] < row["bytes"]:
        text += f", {row['packed'] / 1e6:.3g} MB with the zeros compressed"
    return text


def _percent(share: float) -> str:
    return f"{_number(share)} %"


def _number(share: float) -> str:
    return f"{100 * share:.1f}"

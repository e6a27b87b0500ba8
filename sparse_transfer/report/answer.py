"""Rows of several arms on one task, compared with one of them image by image, and in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    Column("uneven", "timing", note="p90 over twice p10: something else ran"),
    Column("dense_per_image", "dense beside it, ms", "milliseconds", "in the same rounds"),
    Column("bytes", "MB", "megabytes", "all values stored"),
    Column("packed", "MB compressed", "megabytes", "a bit per pruned weight, the rest stored"),
    Column("mac_ratio", "MACs, share of dense", "percent", "zeros skipped"),
)
MOST_SPREAD = 2.0  # p90 over p10 of one measurement
MOST_DISAGREEMENT = 1.2  # between times of one network
DIGITS = 12  # of a share in the file: beyond them there is only rounding
EMPTY = pd.DataFrame(columns=["title", "sparsity"])


def rows(material: Material) -> pd.DataFrame:
    """One row per row of the answer (and sparsity) that has results, in its order.

    Columns: title, row (with the sparsity where a title has several), sparsity, errors, n_test,
    error with _low and _high (Wilson), points with _low and _high (against the reference, absent
    for itself), verdict (better, worse, undecided or ""), validation_error, seconds per image
    (per_image), what is wrong with that time (uneven: p90 over twice p10, else ""), time of the
    dense model in the same rounds on a backend that uses zeros (dense_per_image, on the backend
    `over` if that is another), the regime in words, uses_zeros, same_network (the reference's
    method, so its architecture), bytes, packed, mac_ratio.
    """
    answer = material.facts["answer"]
    if not answer or material.frame.empty:
        return EMPTY
    timed = _timed(material.measured, answer)
    dense = next(one["method"] for one in answer["rows"] if one["title"] == answer["reference"])
    found = [
        _row(material, one, key, own, timed, dense) for one, key, own in _cells(material, answer)
    ]
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
    notes = [
        f"The reference is {answer['reference']}: the same training, nothing pruned.",
        *(f"Times: {text}." for text in _regimes(made)),
    ]
    columns = with_values(made, COLUMNS)
    return Table("answer", answer["headline"], made, columns, "", tuple(notes))


def headline(material: Material, made: pd.DataFrame) -> list[str]:
    """The answer first: the row that the validation images recommend, against the reference; then
    what is dense and makes no more errors; then what kind of experiment it is."""
    answer = material.facts["answer"]
    if made.empty:
        return [f"{answer['headline']}. There is no result yet."]
    kind = f"{answer['headline']}: {int(made['n_test'].max())} test images."
    chosen = made[made["title"].isin(answer["candidates"]) & made["validation_error"].notna()]
    if chosen.empty:
        return [kind]
    best = records(chosen.sort_values("validation_error", kind="stable"))[0]
    reference = _reference(answer, made)
    against = f" against {reference['row']}" if reference else ""
    parts = [f"{_error(best, reference)}{against}", _size(best)]
    return [
        f"Recommended: {best['row']}, {', '.join(part for part in parts if part)}.",
        _dense_instead(made, best),
        f"{kind} By the validation images {best['row']} is the best of the {len(chosen)} pruned "
        f"models ({_percent(best['validation_error'])} wrong there); no choice was made on the "
        "test images.",
    ]


def sentences(material: Material, made: pd.DataFrame) -> list[str]:
    """One sentence for each row, and one for what is not there; the regime of times once."""
    answer = material.facts["answer"]
    reference = _reference(answer, made)
    regimes = _regimes(made)
    said = [_sentence(row, reference, with_regime=len(regimes) > 1) for row in records(made)]
    if len(regimes) == 1:
        said.append(f"Times: {regimes[0]}.")
    said += _time_warnings(made)
    there = set(made["title"])
    said += [f"{row['title']}: no result." for row in answer["rows"] if row["title"] not in there]
    return said + [f"Left out: {text}." for text in answer["left_out"]]


def _reference(answer: Mapping[str, Any], made: pd.DataFrame) -> dict[str, Any] | None:
    return next((row for row in records(made) if row["title"] == answer["reference"]), None)


def _dense_instead(made: pd.DataFrame, best: Mapping[str, Any]) -> str:
    """Which rows with nothing pruned make no more errors than the recommended one."""
    dense = made[made["sparsity"].isna()].sort_values("errors", kind="stable")
    if dense.empty:
        return "There is no dense result to hold it against."
    good = records(dense[dense["errors"] <= best["errors"]])
    if not good:
        return f"Every dense row makes more errors on the test images than {best['row']}."
    first, others = good[0], made.drop(index=dense.index[0])
    if len(others) and first["errors"] < others["errors"].min():
        text = f"{_counted(first)} makes fewer errors than every other row, pruned or not"
        rest = good[1:]
        also = f"; no more than {best['row']} also: {_listed(rest)}" if rest else ""
        return f"{text}{also}."
    return f"Dense, and no more errors than {best['row']}: {_listed(good)}."


def _counted(row: Mapping[str, Any]) -> str:
    size = "" if math.isnan(row["bytes"]) else f", {row['bytes'] / 1e6:.3g} MB"
    return f"{row['row']} ({row['errors']:.4g} wrong{size})"


def _listed(found: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(_counted(row) for row in found)


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
    dense_method: str,
) -> dict[str, Any]:
    title = one["title"]
    n, seeds = int(own["n_test"].iloc[0]), len(own)
    # counted in whole images: what a share holds beyond them is rounding
    errors = round(float((1 - own["top1"]).sum()) * n) / seeds
    row: dict[str, Any] = {
        "title": title,
        "row": f"{title} ({seeds} seeds)" if seeds > 1 else title,
        "sparsity": sparsity or float("nan"),
        "errors": errors,
        "n_test": n,
        "error": errors / n,
        "same_network": one["method"] == dense_method,
        "verdict": "",
        "predicted": _predicted(own, material.predictions),
    }
    if seeds == 1:
        limits = wilson_interval(round(errors), n)
        row |= {"error_low": limits.low, "error_high": limits.high}
    for name in ("bytes", "packed", "mac_ratio"):
        row[name] = float(own[name].mean()) if name in own else float("nan")
    value = own["validation_top1"].mean() if "validation_top1" in own else float("nan")
    row["validation_error"] = round(1 - float(value), DIGITS)
    time = timed[
        (timed["arm"] == one["arm"])
        & (timed["method"] == one["method"])
        & (timed["sparsity"] == sparsity)
    ] if len(timed) else timed  # fmt: skip
    if len(time):
        first = records(time)[0]
        gains = bool(first["uses_zeros"])
        zeros = "" if gains else f", which {cost_tables.NO_ZEROS}"
        row |= {
            "per_image": first["seconds"] / first["batch_size"],
            # beside a model that computes as much, it would read as a speedup
            "dense_per_image": first["beside_s"] / first["batch_size"] if gains else float("nan"),
            "over": first["over"] if first["over"] != first["backend"] else "",
            "uneven": _uneven(first),
            "regime": cost_tables.regime(first) + zeros,
            "uses_zeros": gains,
        }
    return row


def _uneven(time: Mapping[str, Any]) -> str:
    low, high = (1000 * time[name] / time["batch_size"] for name in ("p10_s", "p90_s"))
    return f"uneven (p10 {low:.3g}, p90 {high:.3g})" if high > MOST_SPREAD * low else ""


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
        made.loc[place, "points"] = round(float(second.mean() - first.mean()), DIGITS)
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
    """The measurements of one regime: its backend uses zeros, else the fastest for the reference.

    Of several batch sizes the quickest call is taken: the smallest batch, back to back.
    """
    if measured.empty:
        return measured
    place = next(row for row in answer["rows"] if row["title"] == answer["reference"])
    own = measured[(measured["arm"] == place["arm"])]
    users = own[own["uses_zeros"] & (own["method"] != place["method"])]
    if len(users):
        first = users.sort_values("seconds").iloc[0]
    else:
        same = own[own["method"] == place["method"]]
        if same.empty:
            return measured.iloc[:0]
        first = same.sort_values("seconds").iloc[0]
    alike = [measured[name] == first[name] for name in ("backend", "batch_size", "idle_ms")]
    return measured[alike[0] & alike[1] & alike[2]]


def _sentence(
    row: Mapping[str, Any], reference: Mapping[str, Any] | None, *, with_regime: bool
) -> str:
    parts = [_error(row, reference), _time(row, with_regime=with_regime), _size(row)]
    return f"{row['row']}: {'; '.join(part for part in parts if part)}."


def _error(row: Mapping[str, Any], reference: Mapping[str, Any] | None) -> str:
    n = row["n_test"]
    if reference is None or row["title"] == reference["title"]:
        limits = _span(row, "error", signed=False)
        return f"error {_percent(row['error'])} ({row['errors']:.4g} of {n:.0f} images{limits})"
    verdict = f", {row['verdict']}" if row["verdict"] else ""
    if math.isnan(row["sparsity"]):  # another model, not a change of the reference
        own = f"error {_percent(row['error'])} ({row['errors']:.4g} of {n:.0f} images"
        against = f"; {reference['row']}: {reference['errors']:.4g}"
        return f"{own}{against}{_span(row, 'points', signed=True)}{verdict})"
    change = f"{_percent(reference['error'])} → {_percent(row['error'])}"
    counts = f"{reference['errors']:.4g} → {row['errors']:.4g} of {n:.0f} images"
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


def _time(row: Mapping[str, Any], *, with_regime: bool) -> str:
    own, dense = row.get("per_image", math.nan), row.get("dense_per_image", math.nan)
    if math.isnan(own):
        return ""
    # measured side by side: rows apart differ by what else the machine did
    beside = "" if math.isnan(dense) else f", the dense model beside it {1000 * dense:.3g}"
    over = f" ({row['over']} backend)" if beside and row["over"] else ""
    uneven = f", {row['uneven']}" if row["uneven"] else ""
    regime = f" ({row['regime']})" if with_regime else ""
    return f"{1000 * own:.3g} ms per image{uneven}{beside}{over}{regime}"


def _regimes(made: pd.DataFrame) -> list[str]:
    """Under what the times were taken, in words; one for nearly every answer."""
    if "regime" not in made:
        return []
    return [str(text) for text in made["regime"].dropna().unique()]


def _time_warnings(made: pd.DataFrame) -> list[str]:
    """One network has one time: where its dense rows disagree, the machine was busy."""
    if "per_image" not in made:
        return []
    times = made.loc[made["same_network"] & made["sparsity"].isna(), "per_image"].dropna()
    if len(times) < 2 or times.max() <= MOST_DISAGREEMENT * times.min():
        return []
    return [
        "Times were taken at different moments on a busy machine; they differ by a factor of "
        f"{times.max() / times.min():.2g} between dense rows of one network: do not compare them "
        "between rows."
    ]


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

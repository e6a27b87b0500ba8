"""Upstream accuracy: one column per test set, where checkpoints were scored on further ones."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from sparse_transfer.report.cells import Column, Table
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material
from sparse_transfer.report.tables import CELL
from sparse_transfer.statistics.intervals import Interval, t_interval, wilson_interval
from sparse_transfer.store import slug

PLACE = ["arm", "model"]


def section(material: Material) -> Section | None:
    """One table per arm and upstream model; nothing without a further test set."""
    if material.further.empty:
        return None
    rows = pd.concat([material.frame, material.further])
    rows = rows[rows["mode"] == "upstream"].drop_duplicates(["run", "task"])
    places = list(dict.fromkeys(zip(rows["arm"], rows["model"], strict=True)))
    return Section.of(
        "upstream",
        "Upstream accuracy",
        "Every checkpoint, head and all, on further test sets of the upstream classes. Nothing was "
        "trained or chosen on them.",
        [
            Part(
                " · ".join(place) if len(places) > 1 else "",
                (),
                (_table(rows[(rows[PLACE] == place).all(axis=1)], material, place),),
            )
            for place in places
        ],
    )


def _table(rows: pd.DataFrame, material: Material, place: tuple[str, str]) -> Table:
    tasks = list(dict.fromkeys(rows["task"]))
    made = []
    for (method, sparsity), cell in rows.groupby(CELL, sort=False):
        record: dict[str, object] = {"method": method, "sparsity": sparsity}
        record["measured_sparsity"] = cell["measured_sparsity"].mean() or float("nan")
        for task, own in cell.groupby("task", sort=False):
            found = _interval(own)
            record[f"{task}"] = found.estimate
            if not material.is_demo:
                record |= {f"{task}_low": found.low, f"{task}_high": found.high}
        made.append(record)
    frame = pd.DataFrame(made).sort_values(["sparsity", "method"], kind="stable")
    columns = (
        Column("method", "method"),
        Column("sparsity", "sparsity, % (measured)", "sparsity", beside="measured_sparsity"),
        *(Column(task, f"{task}, %", "percent", _note(rows, task)) for task in tasks),
    )
    seeds = rows["upstream_seed"].nunique()
    over = "upstream seeds" if seeds > 1 else "test examples, conditional on one checkpoint"
    remark = "" if material.is_demo else f"Brackets: 95 % interval over {over}."
    return Table(
        f"upstream-{slug(*place)}",
        "Accuracy by test set",
        frame,
        columns,
        remark,
        tuple(_absent(frame, tasks)),
        material.held(place[0], "upstream"),
    )


def _interval(rows: pd.DataFrame) -> Interval:
    """Over upstream seeds; of a single one, over test examples."""
    if len(rows) > 1:
        found = t_interval(rows["value"].to_numpy())  # of few seeds it leaves the unit interval
        return Interval(found.estimate, max(found.low, 0.0), min(found.high, 1.0))
    one = rows.iloc[0]
    if one["metric"] != "top1":  # a mean over classes is no share of examples
        return Interval(float(one["value"]), float("nan"), float("nan"))
    n = int(one["n_test"])
    return wilson_interval(round(float(one["value"]) * n), n)


def _note(rows: pd.DataFrame, task: str) -> str:
    own = rows[rows["task"] == task].iloc[0]
    return f"{own['metric']} on {int(own['n_test']):,} images"


def _absent(frame: pd.DataFrame, tasks: list[str]) -> Iterator[str]:
    for task in tasks:
        if missing := int(frame[task].isna().sum()):
            yield f"{task}: {missing} of {len(frame)} rows have no result."

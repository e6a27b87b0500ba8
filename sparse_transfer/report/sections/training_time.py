"""What a training step costs where the frozen backbone is recomputed each step (on-line mode)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from sparse_transfer.report.canvas import Drawing, percent, signed
from sparse_transfer.report.cells import Column, Table, records, with_values
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place, is_at
from sparse_transfer.report.scatters import training_scatter
from sparse_transfer.report.tables import CELL
from sparse_transfer.store import slug

MODE = "linear-online"
PARTS = ("forward_s", "backward_s", "update_s", "step_s", "loading_s")
COLUMNS = (
    Column("method", "method"),
    Column("sparsity", "sparsity, %", "sparsity"),
    Column("engine", "engine", note="of the backbone: PyTorch (dense) or the sparse kernels"),
    Column("accuracy", "mean accuracy, %", "percent", "on-line head, mean over tasks"),
    Column("change", "against dense, points", "change", "paired by task and seeds, mean over them"),
    Column("forward_s", "forward, ms", "milliseconds", "backbone, head and loss"),
    Column("backward_s", "backward, ms", "milliseconds", "of the head alone"),
    Column("update_s", "update, ms", "milliseconds", "optimizer step"),
    Column("step_s", "whole step, ms", "milliseconds", "without loading"),
    Column("loading_s", "loading, ms", "milliseconds", "decoding and augmentation, beside a step"),
    Column("epoch_s", "epoch", "duration", "whole steps and loading of one epoch"),
    Column("speedup", "training speedup over dense", "ratio", "whole steps, without loading"),
    Column("pairs", "pairs", "count", "of runs on one task with the same seeds"),
)


def section(material: Material) -> Section | None:
    """One table per place that has on-line runs."""
    frame = material.frame
    if not len(frame) or "step_s" not in frame:
        return None
    timed = frame[(frame["mode"] == MODE) & frame["step_s"].notna()]
    tables = {place: _rows(timed[is_at(timed, place)]) for place in material.places}
    tables = {place: rows for place, rows in tables.items() if len(rows)}
    parts = [
        Part(
            material.title(place),
            _drawings(material, place, rows),
            (_table(material, place, rows),),
        )
        for place, rows in tables.items()
    ]
    return Section.of("training-time", "Training time", _sentence(tables), parts)


def _rows(timed: pd.DataFrame) -> pd.DataFrame:
    """Medians over runs by cell; against the dense runs of the same task and seeds, where there are
    any, the change of accuracy, and dense over sparse steps: geometric mean, least, largest.
    """
    if timed.empty:
        return pd.DataFrame()
    key = ["profile", "image_size", "task", "upstream_seed", "transfer_seed"]
    dense = timed[timed["method"] == "dense"].set_index(key)
    made = []
    for cell, own in timed.groupby(CELL):
        method, sparsity = cell if isinstance(cell, tuple) else (cell, 0.0)
        row = {"method": method, "sparsity": sparsity}
        row |= {"accuracy": own.groupby("task")["value"].mean().mean()}
        row |= {name: own[name].median() for name in (*PARTS, "epoch_s") if name in own}
        if "engine" in own:
            row["engine"] = " and ".join(sorted(own["engine"].dropna().unique()))
        ratios = (dense["step_s"] / own.set_index(key)["step_s"]).dropna()
        changes = (own.set_index(key)["value"] - dense["value"]).dropna()
        if method != "dense" and len(ratios):
            row |= {
                "speedup": float(np.exp(np.log(ratios).mean())),
                "speedup_low": ratios.min(),
                "speedup_high": ratios.max(),
                "pairs": len(ratios),
                "change": changes.groupby("task").mean().mean(),
            }
        made.append(row)
    return pd.DataFrame(made).sort_values(["sparsity", "method"], kind="stable")


def _drawings(material: Material, place: Place, rows: pd.DataFrame) -> tuple[Drawing, ...]:
    """The study's question: how much faster training becomes, and what it costs in accuracy."""
    if "speedup" not in rows or not rows["speedup"].notna().any():
        return ()
    shown = rows[rows["speedup"].notna()]
    drawing = training_scatter(
        shown[["method", "sparsity", "speedup", "change"]].reset_index(drop=True),
        material.looks,
        name=slug("training-time-accuracy", *place),
        title="Training time against accuracy, backbone recomputed each step",
        caption="Speedup: dense over sparse seconds of a whole step without loading, geometric "
        "mean over pairs of runs. Up and to the right is better.",
    )
    return (drawing,)


def _table(material: Material, place: Place, rows: pd.DataFrame) -> Table:
    return Table(
        slug("training-time", *place),
        "Seconds per training step, backbone recomputed each step",
        rows,
        with_values(rows, COLUMNS),
        "Medians over steps, then over runs. Speedup: geometric mean over pairs of runs; brackets: "
        "the least and the largest of them.",
        (
            "Regime: backbone recomputed each step on augmented images (linear-online). With "
            "cached features (the linear probes) the backbone runs once per image, and these "
            "ratios do not apply.",
            _engines(rows),
        ),
        material.held(place[0], MODE),
    )


def _cost(row: Mapping[str, Any]) -> str:
    change = 100 * row["change"]
    return f", accuracy {signed(round(change, 1))} points" if change == change else ""


def _engines(rows: pd.DataFrame) -> str:
    used = set(rows["engine"].dropna()) if "engine" in rows else set()
    if used <= {"dense", ""}:
        return (
            "Backbone and head run in PyTorch here, which does not use unstructured zeros; "
            "evaluation is not timed."
        )
    return (
        "Where the engine is sparse, the backbone's convolutions skip their zeros; the head, and "
        "dense models as a whole, run in PyTorch. Evaluation is not timed."
    )


def _sentence(tables: dict[Place, pd.DataFrame]) -> str:
    for rows in tables.values():
        sparse = rows[(rows["sparsity"] > 0) & rows.get("speedup", pd.Series(dtype=float)).notna()]
        if len(sparse):
            best = max(records(sparse), key=lambda row: row["speedup"])
            return (
                "Where the backbone is recomputed each step, a training step is at best "
                f"{best['speedup']:.2f}× as fast as the dense model's ({best['method']} at "
                f"{percent(best['sparsity'])} sparsity"
                f"{_cost(best)}); about 1 is what an engine gives that does not use zeros."
            )
    return "A training step where the backbone is recomputed each step."

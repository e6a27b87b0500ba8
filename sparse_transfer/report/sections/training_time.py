"""What a training step costs where the frozen backbone is recomputed each step (on-line mode)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sparse_transfer.report.canvas import percent
from sparse_transfer.report.cells import Column, Table, records, with_values
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place, is_at
from sparse_transfer.report.tables import CELL
from sparse_transfer.store import slug

MODE = "linear-online"
PARTS = ("forward_s", "backward_s", "update_s", "step_s", "loading_s")
COLUMNS = (
    Column("method", "method"),
    Column("sparsity", "sparsity, %", "sparsity"),
    Column("accuracy", "mean accuracy, %", "percent", "on-line head, mean over tasks"),
    Column("forward_s", "forward, ms", "milliseconds", "backbone, head and loss"),
    Column("backward_s", "backward, ms", "milliseconds", "of the head alone"),
    Column("update_s", "update, ms", "milliseconds", "optimizer step"),
    Column("step_s", "whole step, ms", "milliseconds", "without loading"),
    Column("loading_s", "loading, ms", "milliseconds", "decoding and augmentation, beside a step"),
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
        Part(material.title(place), (), (_table(material, place, rows),))
        for place, rows in tables.items()
    ]
    return Section.of("training-time", "Training time", _sentence(tables), parts)


def _rows(timed: pd.DataFrame) -> pd.DataFrame:
    """Medians over runs by cell, and dense over sparse steps: geometric mean, least, largest."""
    if timed.empty:
        return pd.DataFrame()
    key = ["profile", "image_size", "task", "upstream_seed", "transfer_seed"]
    dense = timed[timed["method"] == "dense"].set_index(key)["step_s"]
    made = []
    for cell, own in timed.groupby(CELL):
        method, sparsity = cell if isinstance(cell, tuple) else (cell, 0.0)
        row = {"method": method, "sparsity": sparsity}
        row |= {"accuracy": own.groupby("task")["value"].mean().mean()}
        row |= {name: own[name].median() for name in PARTS}
        ratios = (dense / own.set_index(key)["step_s"]).dropna()
        if method != "dense" and len(ratios):
            row |= {
                "speedup": float(np.exp(np.log(ratios).mean())),
                "speedup_low": ratios.min(),
                "speedup_high": ratios.max(),
                "pairs": len(ratios),
            }
        made.append(row)
    return pd.DataFrame(made).sort_values(["sparsity", "method"], kind="stable")


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
            "Backbone and head run in PyTorch here, which does not use unstructured zeros; "
            "evaluation is not timed.",
        ),
        material.held(place[0], MODE),
    )


def _sentence(tables: dict[Place, pd.DataFrame]) -> str:
    for rows in tables.values():
        sparse = rows[(rows["sparsity"] > 0) & rows.get("speedup", pd.Series(dtype=float)).notna()]
        if len(sparse):
            best = max(records(sparse), key=lambda row: row["speedup"])
            return (
                "Where the backbone is recomputed each step, a training step is at best "
                f"{best['speedup']:.2f}× as fast as the dense model's ({best['method']} at "
                f"{percent(best['sparsity'])} sparsity); about 1 is what an engine gives that does "
                "not use zeros."
            )
    return "A training step where the backbone is recomputed each step."

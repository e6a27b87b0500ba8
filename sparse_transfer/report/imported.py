"""What marks imported results in a report, and the tables that only they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from sparse_transfer.imports.beside import MARK
from sparse_transfer.imports.results import ORIGIN
from sparse_transfer.report.canvas import Drawing
from sparse_transfer.report.cells import Column, Table, with_values
from sparse_transfer.report.html import Section
from sparse_transfer.report.tables import mode_title

ALL_NOTE = f"{ORIGIN[0].upper()}{ORIGIN[1:]}."
SOME_NOTE = f"Rows marked{MARK}: declared, not verified."
DRIFT = (
    Column("mode_title", "mode", choice=True),
    Column("task", "task", choice=True),
    Column("own_dense", "own dense, %", "percent"),
    Column("published_dense", "imported dense, %", "percent"),
    Column("difference", "own − imported, points", "change"),
    Column("verdict", "verdict", choice=True),
)
LEFT_OUT = (
    Column("source", "file", choice=True),
    Column("line", "first line", "count"),
    Column("model", "model", choice=True),
    Column("mode", "mode", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity"),
    Column("text", "why it is in no mean"),
)
SOURCES = (
    Column("source", "file"),
    Column("model", "model"),
    Column("mode", "mode"),
    Column("rows", "rows", "count"),
    Column("methods", "methods", "count"),
    Column("tasks", "tasks", "count"),
    Column("transfer_seeds", "transfer seeds"),
    Column("origin", "origin"),
)


def marked(section: Section, imported: str) -> Section:
    """The section with its imported tables and figures marked.

    Args:
        imported: "all" where every result is, "some" where they stand beside own ones, else "".
    """
    if not imported:
        return section
    parts = [
        replace(
            part,
            drawings=tuple(_marked_drawing(one, imported) for one in part.drawings),
            tables=tuple(_marked_table(one, imported) for one in part.tables),
        )
        for part in section.parts
    ]
    return replace(section, parts=tuple(parts))


def drift_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One's own dense model beside the imported one, task by task."""
    frame = pd.DataFrame([dict(row) for row in rows])
    frame["mode_title"] = frame["mode"].map(mode_title)
    return Table("beside", "Dense models", frame, with_values(frame, DRIFT))


def left_out_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Imported lines that no mean is taken over, with file and first line."""
    frame = pd.DataFrame([dict(row) for row in rows])
    frame["mode"] = frame["mode"].map(mode_title)
    title = "Imported results that are incomplete"
    return Table("incomplete", title, frame, with_values(frame, LEFT_OUT))


def sources_table(frame: pd.DataFrame) -> Table:
    """The files that imported rows come from."""
    rows = []
    for (source, model, mode), part in frame.groupby(["source", "model", "mode"], sort=False):
        seeds = sorted({int(seed) for seed in part["transfer_seed"]})
        rows.append(
            {
                "source": source,
                "model": model,
                "mode": mode_title(str(mode)),
                "rows": len(part),
                "methods": part["method"].nunique(),
                "tasks": part["task"].nunique(),
                "transfer_seeds": _few(seeds),
                "origin": ORIGIN,
            }
        )
    made = pd.DataFrame(rows)
    return Table("sources", "Imported files", made, with_values(made, SOURCES))


def _marked_table(table: Table, imported: str) -> Table:
    if imported == "all":
        frame = table.frame.assign(origin=ORIGIN)
        return replace(table, frame=frame, notes=(*table.notes, ALL_NOTE))
    is_marked = _imported_rows(table.frame)
    if not is_marked.any():
        return table
    frame = table.frame.assign(origin=is_marked.map({True: ORIGIN, False: ""}))
    return replace(table, frame=frame, notes=(*table.notes, SOME_NOTE))


def _marked_drawing(drawing: Drawing, imported: str) -> Drawing:
    if imported == "all":
        data = drawing.data.assign(origin=ORIGIN)
        return replace(drawing, data=data, caption=f"{drawing.caption} {ALL_NOTE}".strip())
    is_marked = _imported_rows(drawing.data)
    if not is_marked.any():
        return drawing
    data = drawing.data.assign(origin=is_marked.map({True: ORIGIN, False: ""}))
    return replace(drawing, data=data, caption=f"{drawing.caption} {SOME_NOTE}".strip())


def _imported_rows(frame: pd.DataFrame) -> pd.Series:
    """Which rows are of, or contrast with, an imported method."""
    found = pd.Series(False, index=frame.index)
    for name in ("method", "first", "second"):
        if name in frame:
            found |= frame[name].astype(str).str.endswith(MARK)
    if "arm" in frame:
        found |= frame["arm"].astype(str).str.contains(MARK, regex=False)
    return found


def _few(seeds: Sequence[int]) -> str:
    shown = ", ".join(map(str, seeds[:12]))
    return shown if len(seeds) <= 12 else f"{shown} and {len(seeds) - 12} more"

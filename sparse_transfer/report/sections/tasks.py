"""Task by task: accuracy, heat map of the relative error increase, table."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from sparse_transfer.report import figures as draw
from sparse_transfer.report import tables
from sparse_transfer.report.canvas import MOST_METHODS, Drawing
from sparse_transfer.report.cells import Table
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place
from sparse_transfer.report.tables import CELL, Group
from sparse_transfer.statistics import Comparison

MOST_COLUMNS = 60  # of a heat map, each a method at a sparsity; the table has them all


def section(material: Material) -> Section | None:
    """Two figures per group and one table per place."""
    comparison = material.comparison
    if comparison is None:
        return None
    return Section.of(
        "tasks",
        "Task by task",
        "What the means hide: accuracy on each task, the relative increase of its error, and the "
        "number of errors behind it.",
        [part for place in material.places for part in _task_parts(material, place, comparison)],
    )


def _task_parts(material: Material, place: Place, comparison: Comparison) -> Iterator[Part]:
    groups = [group for group in material.of(place) if group.mode != "upstream"]
    rows = [group.of(comparison.tasks) for group in groups if len(comparison.tasks)]
    order = _easiest_first(pd.concat(rows)) if rows else []
    dots = [_dots(material, group, comparison, order) for group in groups]
    heat = [_heat(material, group, comparison, order) for group in groups]
    yield Part(material.title(place), tuple(one for one in dots if one))
    yield Part("", tuple(one for one in heat if one), (_task_table(material, place, comparison),))


def _dots(
    material: Material, group: Group, comparison: Comparison, order: list[str]
) -> Drawing | None:
    own = group.of(comparison.tasks)
    if own.empty or own["method"].nunique() > MOST_METHODS:
        return None
    seeds = int(own["n_seeds"].max())
    mean = f", mean of {seeds} upstream seeds" if seeds > 1 else ""
    return draw.accuracy_by_task(
        own[[*CELL, "task", "value", "value_sd", "n_test", "n_seeds"]],
        material.looks,
        tasks=order,
        name=f"accuracy-{group.name}",
        title=group.title,
        caption=f"Each task's own metric{mean}. The upright line is the dense model.",
    )


def _heat(
    material: Material, group: Group, comparison: Comparison, order: list[str]
) -> Drawing | None:
    own = group.of(comparison.tasks)
    own = own[~own["is_dense"] & own["r"].notna()] if len(own) else own
    if own.empty or len(own[CELL].drop_duplicates()) > MOST_COLUMNS:
        return None
    shown = own[[*CELL, "task", "r", "examples_low", "examples_high"]]
    return draw.heat_map(
        shown.rename(columns={"r": "increase"}),
        tasks=order,
        name=f"heat-{group.name}",
        title=group.title,
        caption="Relative error increase, task × method; blue is better than dense.",
    )


def _task_table(material: Material, place: Place, comparison: Comparison) -> Table:
    rows = pd.concat([group.of(comparison.tasks) for group in material.of(place)])
    return tables.task_table(
        rows,
        material.frame,
        name=material.slugs[place],
        title="Accuracy, errors and relative error increase",
        held_fixed=material.held(place[0]),
    )


def _easiest_first(tasks: pd.DataFrame) -> list[str]:
    """Tasks by falling accuracy of the dense model (of all, where there is none), over modes."""
    dense = tasks[tasks["is_dense"]]
    rows = dense if len(dense) else tasks
    order = rows.groupby("task")["value"].mean().sort_values(ascending=False).index.tolist()
    return [*order, *(task for task in tasks["task"].unique() if task not in order)]

"""What pruning costs: the summary tables, and the methods against each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pandas as pd

from sparse_transfer.report import interval_tables, tables
from sparse_transfer.report.cells import Table
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place
from sparse_transfer.report.tables import CELL
from sparse_transfer.statistics import Comparison


def section(material: Material) -> Section | None:
    """One summary per group, and all contrasts."""
    comparison = material.comparison
    if comparison is None:
        return None
    return Section.of(
        "summary",
        "What pruning costs",
        "The relative error increase of a task is (sparse error − dense error) / dense error; "
        "positive is worse. The headline is its mean over tasks, the mean of ratios.",
        [
            Part(material.title(place), (), tuple(_summary(material, place, comparison)))
            for place in material.places
        ],
    )


def _summary(material: Material, place: Place, comparison: Comparison) -> Iterator[Table]:
    upstream = material.frame[material.frame["mode"] == "upstream"]
    by_cell = upstream.groupby(["arm", "model", *CELL])["value"].mean().to_dict()
    means = cast("dict[tuple[Any, ...], float]", by_cell)
    groups = material.of(place)
    transfer = [group for group in groups if group.mode != "upstream"]
    for group in transfer or groups:
        yield tables.summary_table(
            group,
            comparison,
            material.contrasts,
            means,
            material.measured,
            material.held(group.arm, group.mode),
        )
    parts = [group.of(material.contrasts) for group in groups if len(material.contrasts)]
    if any(len(part) for part in parts):
        yield tables.contrast_table(
            pd.concat(parts),
            name=material.slugs[place],
            title="Methods against each other",
            held_fixed=material.held(place[0]),
        )
    if not material.is_demo and (every := _intervals(material, place, comparison)):
        yield every


def _intervals(material: Material, place: Place, comparison: Comparison) -> Table | None:
    return interval_tables.table(
        material.of(place),
        comparison,
        material.frame,
        name=material.slugs[place],
        held_fixed=material.held(place[0]),
    )

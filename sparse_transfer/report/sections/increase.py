"""Relative error increase by sparsity, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from sparse_transfer.report import figures as draw
from sparse_transfer.report.canvas import MOST_METHODS, Drawing, common_limits
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place
from sparse_transfer.report.tables import CELL, Group
from sparse_transfer.statistics import Comparison


def section(material: Material) -> Section | None:
    """One figure per group."""
    comparison = material.comparison
    if comparison is None:
        return None
    return Section.of(
        "increase",
        "Relative error increase by sparsity",
        "How the error grows with sparsity: the relative increase over the dense model, as a mean "
        "over tasks.",
        [
            Part(material.title(place), tuple(_increase(material, place, comparison)))
            for place in material.places
        ],
    )


def _increase(material: Material, place: Place, comparison: Comparison) -> Iterator[Drawing]:
    groups = material.of(place)
    rows = pd.concat([group.of(comparison.methods) for group in groups])
    rows = rows[~rows["is_dense"] & rows["mor"].notna()]
    groups = [group for group in groups if len(group.of(rows))]
    limits = _shared_limits(groups, rows) if groups else {}
    for group in groups:
        own = group.of(rows)
        if own["method"].nunique() > MOST_METHODS:
            continue
        data = own[[*CELL, "mor", "low", "high", "n_tasks", "n_seeds", "interval_over"]]
        data = data.rename(columns={"mor": "increase"})
        over = [text for text in own["interval_over"].unique() if text]
        bars = f" Bars: 95 % interval over {' and '.join(over)}." if over else ""
        tasks, seeds = int(own["n_tasks"].max()), int(own["n_seeds"].max())
        count = f"{tasks} task{'s' if tasks != 1 else ''} × "
        count += f"{seeds} upstream seed{'s' if seeds != 1 else ''}"
        yield draw.increase_by_sparsity(
            data,
            material.looks,
            name=f"increase-{group.name}",
            title=group.title,
            caption=f"Mean of ratios, {count}.{bars}",
            limits=limits[group.name],
        )


def _shared_limits(groups: Sequence[Group], rows: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """The axis of each group: shared where that leaves every panel readable, else its own."""
    columns = ["mor", "low", "high"]
    own = {g.name: common_limits(g.of(rows)[columns].to_numpy().ravel()) for g in groups}
    spans = [high - low for low, high in own.values()]
    if max(spans) > 2 * min(spans):
        return own
    return dict.fromkeys(own, common_limits(rows[columns].to_numpy().ravel(), margin=0.05))

"""Whether upstream accuracy tells how well a model transfers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pandas as pd

from sparse_transfer.report import scatters
from sparse_transfer.report.cells import Column, Table, with_values
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material
from sparse_transfer.report.tables import mode_title
from sparse_transfer.statistics.correlations import ACROSS, upstream_correlation, upstream_points
from sparse_transfer.store import slug

CORRELATIONS = (
    Column("mode_title", "mode", choice=True),
    Column("cells", "over"),
    Column("n", "cells", "count"),
    Column("pearson", "Pearson r", "correlation", "interval: Fisher z over cells"),
    Column("spearman", "Spearman ρ", "correlation", "interval: Fisher z, variance 1.06 / (n − 3)"),
    Column("n_tasks", "tasks", "count"),
)


def section(material: Material) -> Section | None:
    """Shown from four cells (model × method × sparsity) with an upstream accuracy."""
    if material.is_demo or material.frame.empty or "upstream" not in set(material.frame["mode"]):
        return None
    found = upstream_points(material.frame)
    correlations = upstream_correlation(found)
    if correlations.empty:
        return None
    return Section.of(
        "correlation",
        "Upstream and downstream accuracy",
        "Whether the model that is better upstream is also better downstream. Accuracies are taken "
        "as logits; those of a task are centred over the cells and then averaged over tasks, so "
        "that no task dominates.",
        _parts(material, found, correlations),
    )


def _parts(material: Material, found: pd.DataFrame, correlations: pd.DataFrame) -> Iterator[Part]:
    arms = list(dict.fromkeys(correlations["arm"]))
    for arm in arms:
        own = correlations[correlations["arm"] == arm]
        own = own.assign(mode_title=own["mode"].map(mode_title))
        drawings = []
        for values, points in found[found["arm"] == arm].groupby(ACROSS, sort=False, dropna=False):
            key = dict(zip(ACROSS, cast("tuple[Any, ...]", values), strict=True))
            fits = (own[list(key)] == pd.Series(key)).all(axis=1) & own["cells"].eq("all")
            if not fits.any() or (key["mode"] == "linear-lbfgs" and own["mode"].nunique() > 1):
                continue
            row = own[fits].iloc[0]
            drawings.append(
                scatters.upstream_scatter(
                    points[["model", "method", "sparsity", "upstream", "downstream"]],
                    material.looks,
                    name=slug("correlation", *key.values()),
                    title=mode_title(str(key["mode"])),
                    caption=f"One dot per method and sparsity, mean over seeds and "
                    f"{row['n_tasks']} tasks.",
                )
            )
        table = Table(
            slug("correlation", arm),
            "Correlation of upstream with downstream accuracy",
            own,
            with_values(own, CORRELATIONS),
            "Over all cells, sparsity drives both accuracies; within one sparsity it is the order "
            "of methods that is compared.",
            tuple(_left_out(found[found["arm"] == arm])),
            material.held(arm),
        )
        yield Part(arm if len(arms) > 1 else "", tuple(drawings), (table,))


def _left_out(points: pd.DataFrame) -> Iterator[str]:
    """Tasks that some cell lacks, or whose accuracy has no logit, said per mode."""
    for mode, part in points[points["n_tasks_left_out"] > 0].groupby("mode", sort=False):
        count = int(part["n_tasks_left_out"].max())
        tasks = "one task" if count == 1 else f"{count} tasks"
        yield f"{mode_title(str(mode))}: {tasks} left out, as not every cell has a result there."

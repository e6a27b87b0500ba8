"""Accuracy by training images per class: whether zeros cost more where images are few."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from sparse_transfer.report import figures as draw
from sparse_transfer.report.canvas import Drawing, percent
from sparse_transfer.report.cells import Column, Table, records, with_values
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place, is_at
from sparse_transfer.statistics import few_shot_areas, few_shot_curves
from sparse_transfer.statistics.few_shot import shared_shots
from sparse_transfer.store import slug

CURVES = (
    Column("shots", "images per class", "count", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("accuracy", "mean accuracy, %", "percent", "mean over tasks of their own metric"),
    Column("increase", "relative error increase, %", "change", "mean of ratios over tasks"),
    Column("n_tasks", "tasks", "count"),
    Column("n_draws", "draws", "count"),
    Column("n_seeds", "seeds", "count"),
)
AREAS = (
    Column("method", "method"),
    Column("sparsity", "sparsity, %", "sparsity"),
    Column("area", "area under the curve, %", "percent", "a mean accuracy over log2 of the shots"),
    Column("difference", "area − dense, points", "change"),
    Column("n_tasks", "tasks", "count"),
)


def section(material: Material) -> Section | None:
    """A figure per sparsity, the area under the curve, and every point."""
    if material.few_shot.empty or (curves := few_shot_curves(material.few_shot)).empty:
        return None
    areas = few_shot_areas(material.few_shot)
    if material.is_demo:
        curves, areas = (frame.filter(regex="^(?!.*_(low|high)$)") for frame in (curves, areas))
    places = list(dict.fromkeys(zip(curves["arm"], curves["model"], strict=True)))
    parts = []
    for place in places:
        own = [frame[is_at(frame, place)] for frame in (curves, areas) if len(frame)]
        title = " · ".join(place) if len(places) > 1 else ""
        drawings = tuple(_drawings(material, place, own[0]))
        parts.append(Part(title, drawings, tuple(_tables(material, place, own))))
    return Section.of("few-shot", "With few images", _sentence(curves), parts)


def _drawings(material: Material, place: Place, curves: pd.DataFrame) -> Iterator[Drawing]:
    sparse = curves[curves["sparsity"] > 0]
    levels = sorted(sparse["sparsity"].unique()) or [0.0]
    still = curves[curves["sparsity"] == 0]
    for level in levels:
        shown = pd.concat([still, sparse[sparse["sparsity"] == level]])
        yield draw.accuracy_by_shots(
            shown,
            material.looks,
            name=slug("few-shot", *place, f"{100 * level:g}"),
            title=f"Accuracy by images per class, {percent(level)} sparse",
            caption="Logistic regression on frozen features; mean over tasks."
            + (" Bars: 95 % interval over draws." if "accuracy_low" in shown else ""),
        )


def _tables(material: Material, place: Place, own: list[pd.DataFrame]) -> Iterator[Table]:
    held = material.held(place[0], "few-shot")
    curves, areas = own[0], own[1] if len(own) > 1 else pd.DataFrame()
    brackets = "Brackets: 95 % interval over draws, conditional on these checkpoints."
    if len(areas):
        first, last = int(areas["first_shots"].min()), int(areas["last_shots"].max())
        yield Table(
            slug("few-shot-area", *place),
            f"Area under the curve, {first} to {last} images per class",
            areas.sort_values(["sparsity", "method"], kind="stable"),
            with_values(areas, AREAS),
            brackets if "area_low" in areas else "",
            held_fixed=held,
        )
    yield Table(
        slug("few-shot", *place),
        "Accuracy and relative error increase by images per class",
        curves.sort_values(["shots", "sparsity", "method"], kind="stable"),
        with_values(curves, CURVES),
        brackets if "accuracy_low" in curves else "",
        tuple(_notes(material.few_shot[is_at(material.few_shot, place)])),
        held,
    )


def _notes(rows: pd.DataFrame) -> Iterator[str]:
    """Which classes are smaller than the shots, and which shots no class of a task has."""
    for (task, shots), part in rows.groupby(["task", "shots"]):
        names = part["short_classes"].iloc[0]
        if names:
            shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            classes = f"{len(names)} classes have" if len(names) > 1 else "1 class has"
            yield (
                f"{task}: {classes} fewer than {shots} training images and gave all of them: "
                f"{shown}."
            )
    cut = sorted(set(rows["shots"]) - set(shared_shots(rows)))
    if cut:
        words = ", ".join(str(k) for k in cut)
        yield (
            f"Not every task has {words} training images of a class: means over tasks end before."
        )
    for task, part in rows.groupby("task"):
        missing = part["left_out"].iloc[0]
        if missing:
            words = ", ".join(str(k) for k in missing)
            yield f"{task}: no class has {words} training images; left out."


def _sentence(curves: pd.DataFrame) -> str:
    """How the cost of the sparsest cells changes from the fewest images to the most."""
    known = curves[curves["increase"].notna()]
    if known.empty:
        return "A logistic regression on frozen features of a few images of every class."
    place = (known["arm"].iloc[0], known["model"].iloc[0])
    named = "" if is_at(known, place).all() else f" ({' · '.join(place)})"
    known = known[is_at(known, place)]
    level = known["sparsity"].max()
    own = known[known["sparsity"] == level]
    first, last = int(own["shots"].min()), int(own["shots"].max())
    parts = []
    for method, rows in own.groupby("method"):
        by_shots = {row["shots"]: 100 * row["increase"] for row in records(rows)}
        if first in by_shots and last in by_shots:
            span = f"{by_shots[first]:+.1f} % and {by_shots[last]:+.1f} %".replace("-", "−")
            parts.append(f"{method} {span}")
    return (
        f"Relative error increase with {first} and with {last} training images per class, at "
        f"{percent(level)} sparsity: {'; '.join(parts)}{named}."
    )

"""Whether pruning costs more on tasks that frozen features do not solve."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from sparse_transfer.report import scatters
from sparse_transfer.report.canvas import MOST_METHODS, Drawing
from sparse_transfer.report.cells import Column, Table, with_values
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place
from sparse_transfer.report.tables import mode_title
from sparse_transfer.statistics import difficulty, difficulty_correlation
from sparse_transfer.statistics.contrasts import beside_difficulty
from sparse_transfer.statistics.correlations import needed_correlation

CELL = ["method", "sparsity"]
FEWEST = 4  # tasks; below, a correlation has no interval
TASKS = (
    Column("task", "task"),
    Column("linear", "dense, linear, %", "percent"),
    Column("full", "dense, full, %", "percent"),
    Column("difficulty", "difficulty, points", "change", "full − linear of the dense model"),
)
CORRELATIONS = (
    Column("mode_title", "mode", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("method", "method", choice=True),
    Column("r", "Pearson r with difficulty", "correlation", "interval: Fisher z over tasks"),
    Column("needed", "|r| needed at p < .05", "number"),
    Column("n", "tasks", "count"),
    Column("reading", "reading"),
)


def section(material: Material) -> Section | None:
    """One part per place that has the dense model in both modes on enough tasks."""
    if material.is_demo or material.comparison is None or material.comparison.tasks.empty:
        return None
    if not {"full", "linear-sgd"} <= set(material.frame["mode"]):
        return None
    difficulties = difficulty(material.frame)
    return Section.of(
        "difficulty",
        "Task difficulty",
        "The difficulty of a task is what the dense model gains there by training its features: "
        "its accuracy with full fine-tuning minus that with the linear probe. The figure shows "
        "whether pruned models lose more, or less, where it is large.",
        [_part(material, place, difficulties) for place in material.places],
    )


def _part(material: Material, place: Place, difficulties: pd.DataFrame) -> Part:
    assert material.comparison is not None
    arm, model = place
    own = difficulties[(difficulties["arm"] == arm) & (difficulties["model"] == model)]
    joined = _sparse(beside_difficulty(material.comparison, own))
    found = _read(_sparse(difficulty_correlation(material.comparison, own)))
    if found.empty:
        return Part()
    name, held = material.slugs[place], material.held(arm)
    chance = 0.05 * len(found)
    note = (
        f"Of {len(found)} correlations with nothing behind them, {chance:.1f} would be larger than "
        "the needed size by chance."
    )
    tables = (
        Table(
            f"difficulty-correlation-{name}",
            "Does the increase go with difficulty?",
            found,
            with_values(found, CORRELATIONS),
            "Relative error increase of a task against its difficulty, one value per task.",
            (note,),
            held,
        ),
        Table(
            f"difficulty-{name}",
            "Difficulty of the tasks",
            own.sort_values("difficulty"),
            with_values(own, TASKS),
            "",
            (),
            held,
        ),
    )
    return Part(material.title(place), tuple(_drawings(material, place, joined)), tables)


def _sparse(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with zeros, of transfer."""
    return rows[rows["sparsity"].gt(0) & rows["mode"].ne("upstream")] if len(rows) else rows


def _read(found: pd.DataFrame) -> pd.DataFrame:
    """The correlations that have an interval, in words."""
    found = found[found["r_low"].notna()] if len(found) else found
    if found.empty:
        return found
    needed = found["n"].map(needed_correlation)
    words = {True: "loses less on difficult tasks", False: "loses more on difficult tasks"}
    readings = [
        words[r < 0] if abs(r) > size else "not told from chance"
        for r, size in zip(found["r"], needed, strict=True)
    ]
    titles = found["mode"].map(mode_title)
    made = found.assign(needed=needed, mode_title=titles, reading=readings)
    return made.sort_values(["mode_title", "sparsity", "method"], ascending=[False, True, True])


def _drawings(material: Material, place: Place, joined: pd.DataFrame) -> Iterator[Drawing]:
    for group in material.of(place):
        own = group.of(joined)
        if own["method"].nunique() > MOST_METHODS:
            continue
        if group.mode != "linear-sgd" or own.groupby(CELL)["task"].count().max() < FEWEST:
            continue
        yield scatters.by_difficulty(
            own[[*CELL, "task", "difficulty", "r"]].rename(columns={"r": "increase"}),
            material.looks,
            name=f"difficulty-{group.name}",
            title=group.title,
            caption="One dot per task and sparsity; a line where |r| is larger than chance allows "
            "(p < .05). Each method has its own scale.",
        )

"""Ranks of the methods over tasks, and how often each is best."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from sparse_transfer.report import scatters
from sparse_transfer.report.canvas import MOST_METHODS, Drawing, percent
from sparse_transfer.report.cells import Column, Table, records, with_values
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place
from sparse_transfer.report.tables import Group, mode_title
from sparse_transfer.statistics.ranks import Ranking, rank_methods

METHODS = (
    Column("mode_title", "mode", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("method", "method", choice=True),
    Column("mean_rank", "mean rank", "number", "over tasks; 1 is best, ties share their ranks"),
    Column("best_on", "best on, tasks", "count", "no other method is better; a tie counts twice"),
    Column("better_than_dense", "better than dense on, tasks", "count"),
    Column("n_tasks", "tasks", "count"),
)
TESTS = (
    Column("mode_title", "mode", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("best", "lowest mean rank"),
    Column("n_methods", "methods", "count"),
    Column("n_tasks", "tasks", "count"),
    Column("statistic", "Friedman χ²", "number"),
    Column("p", "p", "p", "that all methods are alike"),
    Column(
        "critical_difference",
        "critical difference",
        "number",
        "of two mean ranks, Nemenyi, 5 %: what is closer is not told apart",
    ),
)


def section(material: Material) -> Section | None:
    """One part per place; there where a sparsity has two methods with two tasks."""
    if material.is_demo or material.comparison is None or material.comparison.tasks.empty:
        return None
    return Section.of(
        "ranks",
        "Ranks over tasks",
        "On each task the methods of one sparsity are ranked by accuracy, 1 being the best; the "
        "mean over tasks says who is ahead how consistently, whatever the size of the gain. The "
        "Friedman test asks whether such ranks could be chance.",
        [_part(material, place) for place in material.places],
    )


def _part(material: Material, place: Place) -> Part:
    assert material.comparison is not None
    found: list[tuple[Group, Ranking]] = []
    for group in material.of(place):
        if group.mode != "upstream":
            ranking = rank_methods(group.of(material.comparison.tasks))
            if len(ranking.tests):
                found.append((group, ranking))
    if not found:
        return Part()
    name, held = material.slugs[place], material.held(place[0])
    methods = _joined([(group, ranking.methods) for group, ranking in found])
    tests = _joined([(group, ranking.tests) for group, ranking in found])
    best_first = methods.sort_values(["order", "sparsity", "mean_rank"], kind="stable")
    tables = (
        Table(
            f"friedman-{name}",
            "Are the methods alike?",
            tests,
            with_values(tests, TESTS),
            "Two methods whose mean ranks differ by less than the critical difference are not "
            "told apart.",
            (),
            held,
        ),
        Table(
            f"ranks-{name}",
            "Mean ranks and wins",
            best_first,
            with_values(best_first, METHODS),
            "",
            tuple(_holes(methods)),
            held,
        ),
    )
    return Part(material.title(place), tuple(_drawings(material, found)), tables)


def _joined(parts: list[tuple[Group, pd.DataFrame]]) -> pd.DataFrame:
    named = [
        frame.assign(mode_title=group.title, order=number)
        for number, (group, frame) in enumerate(parts)
    ]
    return pd.concat(named, ignore_index=True)


def _holes(methods: pd.DataFrame) -> Iterator[str]:
    """Methods that were not ranked, with the tasks that they lack."""
    for row in records(methods[methods["missing"].ne("")]):
        yield (
            f"{row['method']} {percent(row['sparsity'])}, {mode_title(row['mode'])}: not ranked, "
            f"as it has no result on {row['missing']}."
        )


def _drawings(material: Material, found: list[tuple[Group, Ranking]]) -> Iterator[Drawing]:
    for group, ranking in found:
        if group.mode == "linear-lbfgs" and len(found) > 1:
            continue  # the second probe checks the first one; it would only repeat its figure
        ranked = ranking.methods[ranking.methods["mean_rank"].notna()]
        if ranked["method"].nunique() > MOST_METHODS:
            continue
        yield scatters.rank_dots(
            ranked[["method", "sparsity", "mean_rank", "n_tasks"]],
            ranking.tests,
            material.looks,
            name=f"ranks-{group.name}",
            title=group.title,
            caption=f"Mean rank over {int(ranked['n_tasks'].max())} tasks. What stands above the "
            "grey bar is not told apart from the best (Nemenyi, 5 %).",
        )

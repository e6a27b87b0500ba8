"""Linear against full transfer: methods that change places, and fine-tuning that lost."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import pandas as pd

from sparse_transfer.report.cells import Column, Table, with_values
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place
from sparse_transfer.report.tables import MOST_METHODS, Group
from sparse_transfer.statistics import worse_than_linear
from sparse_transfer.statistics.reversals import reversals

REVERSALS = (
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("first", "first", choice=True),
    Column("second", "second", choice=True),
    Column("declared", "declared", choice=True),
    Column("difference_1", "first − second, linear, points", "change", "below 0: first is better"),
    Column("difference_2", "first − second, full, points", "change", "below 0: first is better"),
    Column("interaction", "interaction, points", "change", "linear − full; interval over tasks"),
    Column("sign", "tasks above 0"),
    Column("p", "p (Wilcoxon)", "p"),
    Column("places", "they change places"),
)
WORSE = (
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("task", "task", choice=True),
    Column("linear", "linear probe, %", "percent"),
    Column("full", "full fine-tuning, %", "percent"),
    Column("difference", "full − linear, points", "change"),
)


def section(material: Material) -> Section | None:
    """There where an arm has both an SGD probe and full fine-tuning."""
    if material.is_demo or material.comparison is None or material.comparison.tasks.empty:
        return None
    if not {"full", "linear-sgd"} <= set(material.frame["mode"]):
        return None
    worse = worse_than_linear(material.frame)
    return Section.of(
        "modes",
        "Linear against full",
        "Whether the order of two methods depends on how the model is transferred, and the cells "
        "in which training all weights ended below the linear probe of the same checkpoints.",
        [
            Part(material.title(place), (), tuple(_tables(material, place, worse)))
            for place in material.places
        ],
    )


def _tables(material: Material, place: Place, worse: pd.DataFrame) -> Iterator[Table]:
    name, held = material.slugs[place], material.held(place[0])
    turned = [
        (f"{linear.title} − {full.title}", found)
        for linear, full in _mode_pairs(material, place)
        if len(found := _reversals(material, linear, full))
    ]
    for number, (words, found) in enumerate(turned):
        yield Table(
            f"reversal-{name}{f'-{number}' if number else ''}",
            "Does the order of methods depend on the mode?",
            found,
            with_values(found, REVERSALS),
            f"Difference of relative error increase: {words}. Far from 0, the choice of method "
            "depends on the mode.",
            ("Over tasks, with the checkpoints held fixed.",),
            held,
        )
    own = worse[(worse["arm"] == place[0]) & (worse["model"] == place[1])]
    if len(own):
        own = own.sort_values("difference")
        count = f"{len(own)} of {_both(material, place)} cells"
        yield Table(
            f"worse-than-linear-{name}",
            f"Full fine-tuning below the linear probe: {count}",
            own,
            with_values(own, WORSE),
            "A sign of a full profile that does not suit these weights (its rate above all), not "
            "of sparsity as such.",
            (),
            held,
        )


def _mode_pairs(material: Material, place: Place) -> Iterator[tuple[Group, Group]]:
    groups = material.of(place)
    for linear in (group for group in groups if group.mode == "linear-sgd"):
        for full in (group for group in groups if group.mode == "full"):
            if (linear.recipe, linear.image_size) == (full.recipe, full.image_size):
                yield linear, full


def _reversals(material: Material, linear: Group, full: Group) -> pd.DataFrame:
    assert material.comparison is not None
    one, other = (group.of(material.comparison.tasks) for group in (linear, full))
    methods = sorted(set(one.loc[~one["is_dense"].astype(bool), "method"].astype(str)))
    declared = [tuple(pair) for pair in material.facts["contrasts"] if set(pair) <= set(methods)]
    every = combinations(methods, 2) if len(methods) <= MOST_METHODS else ()
    pairs = declared or list(every)
    found = reversals(one, other, pairs)
    if len(found):
        found["declared"] = "in advance" if declared else "descriptive"
        counts = zip(found["n_positive"], found["n_tasks"], strict=True)
        found["sign"] = [f"{positive} of {n}" for positive, n in counts]
        found["places"] = ["yes" if yes else "no" for yes in found["changes_places"]]
    return found


def _both(material: Material, place: Place) -> int:
    """How many cells and tasks have full fine-tuning beside the linear probe."""
    assert material.comparison is not None
    tasks = material.comparison.tasks
    own = tasks[(tasks["arm"] == place[0]) & (tasks["model"] == place[1])]
    full = own[(own["mode"] == "full") & own["worse_than_linear"].notna()]
    return len(full.drop_duplicates(["recipe", "image_size", "method", "sparsity", "task"]))

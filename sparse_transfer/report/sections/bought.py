"""What pruning buys: error against MACs and against measured time."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from sparse_transfer.report import cost_tables
from sparse_transfer.report import figures as draw
from sparse_transfer.report.canvas import Drawing
from sparse_transfer.report.cells import slug
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place
from sparse_transfer.report.tables import CELL


def section(material: Material) -> Section:
    """Theoretical and measured cost."""
    return Section.of(
        "bought",
        "What pruning buys",
        "Theoretical ratios count multiply-accumulates with zeros skipped; measured ratios are "
        "wall-clock and hold for the stated backend only.",
        _bought(material),
    )


def _bought(material: Material) -> Iterator[Part]:
    for place in material.places:
        yield Part(material.title(place), tuple(_pareto_macs(material, place)))
    arms = list(dict.fromkeys(arm for arm, _ in material.places))
    if len(material.measured):
        arms += [arm for arm in dict.fromkeys(material.measured["arm"]) if arm not in arms]
        for arm in arms:
            drawings = tuple(_pareto_time(material, arm))
            held = material.held(arm)
            table = cost_tables.speedup_table(material.measured, arm=arm, held_fixed=held)
            title = f"{arm}: measured time" if len(arms) > 1 else ""
            yield Part(title, drawings, (table,) if len(table.frame) else ())


def _pareto_macs(material: Material, place: Place) -> Iterator[Drawing]:
    for group, rows in material.errors(material.of(place)):
        own = rows.assign(cost=rows["mac_ratio"].where(~rows["is_dense"], 1.0))
        own = own[own["cost"] > 0]
        if own["cost"].nunique() > 1:
            yield draw.pareto(
                own[["model", *CELL, "cost", "error"]],
                material.looks,
                name=f"macs-{group.name}",
                title=f"{group.title}: error against MACs",
                caption="Theoretical cost; the dashed line is the front of what nothing beats.",
                unit="MACs with zeros skipped, share of dense",
            )


def _pareto_time(material: Material, arm: str) -> Iterator[Drawing]:
    """Error against time, all models of the arm: a smaller dense model is a rival of zeros.

    With one model, a backend that does not use zeros has nothing to show here.
    """
    own = material.measured[material.measured["arm"] == arm]
    if own["model"].nunique() < 2:
        own = own[own["uses_zeros"]]
    errors: dict[str, list[pd.DataFrame]] = {}
    for group, rows in material.errors([group for group in material.groups if group.arm == arm]):
        errors.setdefault(group.title, []).append(rows)
    for number, (key, part) in enumerate(own.groupby(cost_tables.REGIME, sort=False)):
        words = cost_tables.regime(dict(zip(cost_tables.REGIME, key, strict=True)))
        seconds = part.set_index(["model", *CELL])["seconds"].rename("cost")
        for title, parts in errors.items():
            timed = pd.concat(parts).join(seconds, on=["model", *CELL], how="inner")
            if len(timed) > 1:
                timed = timed.assign(cost=1000 * timed["cost"])
                yield draw.pareto(
                    timed[["model", *CELL, "cost", "error"]],
                    material.looks,
                    name=slug("time", arm, title, key[0], number),
                    title=f"{title}: error against measured time",
                    caption=f"Measured: {words}; median, mean over upstream seeds.",
                    unit=f"ms per batch ({words})",
                )

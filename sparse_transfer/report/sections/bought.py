"""What pruning buys: error against MACs and against measured time, beside smaller dense models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pandas as pd

from sparse_transfer.report import cost_tables
from sparse_transfer.report.canvas import Drawing
from sparse_transfer.report.cells import Column, Table, with_values
from sparse_transfer.report.cost_figures import pareto
from sparse_transfer.report.fronts import POINT, Points, equal_cost, judged, points
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material
from sparse_transfer.store import slug

FRONT = (
    Column("mode_title", "mode", choice=True),
    Column("regime", "measured on", choice=True),
    Column("model", "model", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("macs", "MACs per image, zeros skipped", "macs"),
    Column("share", "MACs, % of dense", "percent"),
    Column("seconds", "median, ms per batch", "milliseconds"),
    Column("error", "mean error, %", "percent", "over tasks"),
    Column("n_tasks", "tasks", "count"),
    Column("front", "on the front?"),
)
ESTIMATES = "By the estimates alone: a point off the front may lie within the noise of its rival."


def section(material: Material) -> Section:
    """Theoretical and measured cost."""
    return Section.of(
        "bought",
        "What pruning buys",
        "Error beside cost: what is on the front (dashed) is beaten by nothing in both. "
        "Theoretical cost counts multiply-accumulates with zeros skipped; measured cost is "
        "wall-clock and holds for the stated backend only.",
        _bought(material),
    )


def _bought(material: Material) -> Iterator[Part]:
    arms = list(dict.fromkeys(arm for arm, _ in material.places))
    found = {arm: list(points(material, arm)) for arm in arms}
    for arm in arms:
        yield _by_macs(material, arm, found[arm], arm if len(arms) > 1 else "")
    if len(material.measured):
        arms += [arm for arm in dict.fromkeys(material.measured["arm"]) if arm not in arms]
        for arm in arms:
            title = f"{arm}: measured time" if len(arms) > 1 else ""
            yield _by_time(material, arm, found.get(arm, []), title)


def _by_macs(material: Material, arm: str, modes: Sequence[Points], title: str) -> Part:
    drawings, rows, tables = [], [], []
    for own in modes:
        frame = own.by_macs
        if frame["cost"].nunique() < 2:
            continue
        drawings.append(
            pareto(
                frame[[*POINT, "cost", "error"]],
                material.looks,
                name=slug("macs", arm, own.title),
                title=f"{own.title}: error against MACs",
                caption="Theoretical cost; the dashed line is the front of what nothing beats.",
                unit="MACs with zeros skipped, share of dense",
            )
        )
        shown = judged(frame, own.main, saves="needs {} fewer MACs")
        rows.append(shown.assign(mode_title=own.title, share=shown["cost"]))
        tables += list(_equal(material, own, frame))
    if rows:
        notes = tuple(dict.fromkeys(_absent(own) for own in modes if own.left_out))
        tables.insert(0, _front_table(material, arm, "macs", "MACs", rows, notes))
    return Part(title, tuple(drawings), tuple(tables))


def _equal(material: Material, own: Points, frame: pd.DataFrame) -> Iterator[Table]:
    made, methods = equal_cost(frame, own.main)
    if made.empty:
        return
    columns = (
        Column("share", "MACs, % of dense", "percent"),
        Column("what", "MACs of"),
        Column("dense_error", "error of that dense model, %", "percent"),
        *(Column(name, f"{name}, error, %", "percent") for name in methods),
    )
    yield Table(
        slug("equal-macs", own.arm, own.title),
        f"{own.title}: mean error at equal MACs",
        made,
        with_values(made, columns),
        "Between two neighbouring points of a method, linear in the logarithm of its MACs.",
        ("Nothing is extrapolated: an empty cell lies outside the method's own points.",),
        material.held(own.arm),
    )


def _by_time(material: Material, arm: str, modes: Sequence[Points], title: str) -> Part:
    """Error against time; with one model, a backend that does not use zeros shows nothing."""
    own = material.measured[material.measured["arm"] == arm]
    tables = [cost_tables.speedup_table(own, arm=arm, held_fixed=material.held(arm))]
    if not _has_rivals(own):
        own = own[own["uses_zeros"]]
    drawings: list[Drawing] = []
    rows: list[pd.DataFrame] = []
    for number, (key, part) in enumerate(own.groupby(cost_tables.REGIME, sort=False)):
        key = cast("tuple[Any, ...]", key)
        words = cost_tables.regime(dict(zip(cost_tables.REGIME, key, strict=True)))
        seconds = part.set_index(POINT)["seconds"]
        for mode in modes:
            timed = mode.frame.join(seconds, on=POINT, how="inner")
            if len(timed) < 2:
                continue
            timed = timed.assign(cost=1000 * timed["seconds"])
            drawings.append(
                pareto(
                    timed[[*POINT, "cost", "error"]],
                    material.looks,
                    name=slug("time", arm, mode.title, key[0], number),
                    title=f"{mode.title}: error against measured time",
                    caption=f"Measured: {words}; median, mean over upstream seeds.",
                    unit=f"ms per batch ({words})",
                )
            )
            shown = judged(timed, mode.main, saves="takes {} less time")
            rows.append(shown.assign(mode_title=mode.title, regime=words))
    if rows:
        tables.append(_front_table(material, arm, "time", "measured time", rows, ()))
    return Part(title, tuple(drawings), tuple(table for table in tables if len(table.frame)))


def _has_rivals(measured: pd.DataFrame) -> bool:
    """Whether a second dense model was timed: it may be faster on a backend without zeros too."""
    dense = measured[measured["sparsity"] == 0]
    return len(dense.drop_duplicates(["model", "method"])) > 1


def _front_table(
    material: Material,
    arm: str,
    name: str,
    cost: str,
    rows: Sequence[pd.DataFrame],
    notes: tuple[str, ...],
) -> Table:
    made = pd.concat(rows, ignore_index=True)
    sparse = made[made["sparsity"] > 0]
    off = int(sparse["beaten"].sum())
    remark = f"{off} of {len(sparse)} sparse points are off the front."
    columns = tuple(c for c in FRONT if c.key != "macs" or name == "macs")
    if name == "macs":
        columns = tuple(column for column in columns if column.key != "seconds")
    if made["model"].nunique() == 1:
        columns = tuple(column for column in columns if column.key != "model")
    return Table(
        slug("front", name, arm),
        f"Error against {cost}: what is on the front",
        made.drop(columns=["cost", "beaten", "beaten_by_dense"]),
        with_values(made, columns),
        f"{remark} {ESTIMATES}",
        notes,
        material.held(arm),
    )


def _absent(own: Points) -> str:
    return f"{own.title}: not compared for want of some of the tasks: {', '.join(own.left_out)}."

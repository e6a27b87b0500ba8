"""Beyond accuracy: calibration, agreement with dense, and the class that pays."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from sparse_transfer.report import agreement_tables, calibration_tables
from sparse_transfer.report.canvas import percent
from sparse_transfer.report.cells import records
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material, Place
from sparse_transfer.report.tables import Group


def section(material: Material) -> Section | None:
    """Two parts per place; nothing in a demo, which has no predictions to compare."""
    compared = {place: _compared(material, place) for place in material.places}
    parts = [part for place in material.places for part in _parts(material, place, compared[place])]
    return Section.of("behaviour", "Beyond accuracy", _sentence(compared), parts)


def _groups(material: Material, place: Place) -> list[Group]:
    """The modes of transfer, without the second probe, which checks the first one."""
    groups = [group for group in material.of(place) if group.mode != "upstream"]
    modes = {group.mode for group in groups}
    return [g for g in groups if g.mode != "linear-lbfgs" or "linear-sgd" not in modes]


def _compared(material: Material, place: Place) -> pd.DataFrame:
    if material.predictions is None:
        return pd.DataFrame()
    return agreement_tables.compare(
        _groups(material, place),
        material.frame,
        material.predictions,
        material.facts["class_names"],
    )


def _parts(material: Material, place: Place, rows: pd.DataFrame) -> Iterator[Part]:
    name, held = material.slugs[place], material.held(place[0])
    if len(rows) and not rows["is_rival"].all():
        title = "The same predictions?"
        mean = agreement_tables.means_table(
            rows, name=name, title="Agreement with dense, mean over tasks", held_fixed=held
        )
        each = agreement_tables.agreement_table(
            rows, name=name, title="Agreement with dense, task by task", held_fixed=held
        )
        worst = agreement_tables.worst_table(
            rows, name=name, title="The worst class, and the one that lost most", held_fixed=held
        )
        heading = " · ".join(part for part in (material.title(place), title) if part)
        yield Part(heading, (), (mean, each, worst))
    transfer = [group for group in material.of(place) if group.mode != "upstream"]
    found = [calibration_tables.by_cell(group, material.frame) for group in transfer]
    found = [part for part in found if len(part)]
    if material.is_demo:
        limits = ["ece_change_low", "ece_change_high"]
        found = [part.drop(columns=limits, errors="ignore") for part in found]
    if found:
        table = calibration_tables.calibration_table(
            pd.concat(found, ignore_index=True),
            _reasons(transfer, material.frame),
            name=name,
            title="Calibration, mean over tasks",
            held_fixed=held,
        )
        heading = " · ".join(part for part in (material.title(place), "Calibration") if part)
        yield Part(heading, (), (table,))


def _reasons(groups: list[Group], frame: pd.DataFrame) -> tuple[str, ...]:
    if "not_calibrated" not in frame:
        return ()
    found = [
        f"{group.title}, {row['task']}: {row['not_calibrated']}"
        for group in groups
        for row in records(group.of(frame)[["task", "not_calibrated"]].dropna().drop_duplicates())
    ]
    return tuple(found)


def _sentence(compared: dict[Place, pd.DataFrame]) -> str:
    """What the sparsest models change, in the first place that has something to say."""
    for rows in compared.values():
        if rows.empty or rows["is_rival"].all():
            continue
        means = agreement_tables.means(rows)
        mode = means["mode"].iloc[0]
        own = means[means["mode"] == mode]
        sparse = own[own["method"] != "dense"]
        # a smaller dense model stands at 0
        most = records(sparse.sort_values(["sparsity", "flips"]))[-1]
        text = (
            f"{most['mode_title']}: {most['method']} at {percent(most['sparsity'])} sparsity "
            f"predicts another class than dense for {100 * most['flips']:.1f} % of the test images "
            f"(mean over tasks); {100 * most['negative_flips']:.1f} % were right in dense and are "
            f"wrong now, {100 * most['positive_flips']:.1f} % the reverse."
        )
        rival = records(own[own["method"] == "dense"])
        if rival:
            text += (
                f" Two dense models of different upstream seeds differ on "
                f"{100 * rival[0]['flips']:.1f} %."
            )
        return text
    return "How far the probabilities of the models can be trusted."

"""Newly failing: test images that the dense model gets right and the pruned one does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import pandas as pd

from sparse_transfer.errors import UserError
from sparse_transfer.originals import Found
from sparse_transfer.predictions import Predictions
from sparse_transfer.report.canvas import percent
from sparse_transfer.report.cells import Column, Table, records
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import LoadPredictions, Material, Place
from sparse_transfer.report.pictures import Picture, thumbnail
from sparse_transfer.report.tables import CELL, mode_title

MOST = 12  # images of a place
MOST_BYTES = 300_000  # of all pictures of a report
MODES = ("full", "linear-sgd")  # the first of these that there is, else any
COLUMNS = (
    Column("task", "task", choice=True),
    Column("example", "test image"),
    Column("label", "label"),
    Column("dense_confidence", "dense, confidence %", "percent", "dense says the label"),
    Column("sparse", "pruned says"),
    Column("sparse_confidence", "pruned, confidence %", "percent"),
    Column("share", "seeds", note="upstream seeds in which it newly fails, of how many"),
)


@dataclass(frozen=True)
class Failure:
    """One newly failing example; confidences are of the first pair of models in which it fails."""

    task: str
    example: str
    label: int
    dense_confidence: float
    sparse: int
    sparse_confidence: float
    pairs: int
    of: int


def section(material: Material) -> Section | None:
    """One gallery per place: of the pruned models that lose least at the highest shared sparsity.

    Where the data is not here, the examples are listed without pictures. Whatever is wrong with
    stored predictions or images costs these pictures, never the report.
    """
    if material.predictions is None or material.comparison is None:
        return None
    parts: list[Part] = []
    left = MOST_BYTES
    for place in material.places:
        part = _part(material, material.predictions, place, left)
        if part is not None:
            left -= sum(len(picture.address) for picture in part.pictures)
            parts.append(part)
    return Section.of(
        "examples",
        "Newly failing images",
        "Test images that the dense model gets right and the pruned model wrong: first those that "
        "fail in most pairs of upstream seeds, then those of which dense was surest; tasks take "
        "turns. Chosen to be looked at, not to estimate anything.",
        parts,
    )


def _part(material: Material, load: LoadPredictions, place: Place, most_bytes: int) -> Part | None:
    methods = _methods(material)
    pruned = methods[~methods["is_dense"].astype(bool)]
    groups = {g.mode: g for g in reversed(material.of(place)) if len(g.of(pruned))}
    if len(groups) > 1:  # a model pruned on the task itself has no other mode
        groups.pop("upstream", None)
    mode = next((mode for mode in (*MODES, *groups) if mode in groups), "")
    if not mode:
        return None
    group = groups[mode]
    stored = group.of(material.frame)
    stored = stored[stored["predictions"].notna()]  # imported rows have none
    cells = pd.MultiIndex.from_frame(stored[CELL])
    methods = group.of(methods)
    row = chosen(methods[pd.MultiIndex.from_frame(methods[CELL]).isin(cells)])
    if row is None:
        return None
    try:
        failures = newly_failing(stored, row, load)
    except UserError:  # a file of predictions went missing since the statistics read it
        return None
    if not failures:
        return None
    looked, reasons = _look_up(material, failures)
    words = mode_title(mode)
    title = f"{row['method']} {percent(row['sparsity'])} sparse, {words[:1].lower()}{words[1:]}"
    table = _table(failures, looked, reasons, f"examples-{material.slugs[place]}")
    table = replace(table, held_fixed=material.held(group.arm, mode))
    pictures = tuple(_pictures(failures, looked, most_bytes))
    heading = " · ".join(part for part in (material.title(place), title) if part)
    return Part(heading, (), (table,), pictures)


def _methods(material: Material) -> pd.DataFrame:
    assert material.comparison is not None
    return material.comparison.methods


def chosen(methods: pd.DataFrame) -> dict[str, Any] | None:
    """The pruned row of a group that is shown: least increase at the highest shared sparsity."""
    rows = methods[~methods["is_dense"] & methods["mor"].notna() & (methods["sparsity"] > 0)]
    if rows.empty:
        return None
    counts = rows.groupby("sparsity")["method"].nunique()
    level = max(counts[counts == counts.max()].index)
    return min(records(rows[rows["sparsity"] == level]), key=lambda row: row["mor"])


def newly_failing(
    own: pd.DataFrame, row: Mapping[str, Any], load: LoadPredictions
) -> list[Failure]:
    """At most `MOST` failures of one row of a group, tasks in turn.

    Args:
        own: the results of the group that have predictions.
        row: method and sparsity.
        load: reads the predictions of a row of `own`.

    Raises:
        UserError: predictions cannot be read.
    """
    keys = ["task", "split_hash", "upstream_seed", "transfer_seed"]
    cell = (own["method"] == row["method"]) & (own["sparsity"] == row["sparsity"])
    dense = own[own["method"].astype(str).str.lower() == "dense"][[*keys, "predictions"]]
    pairs = own[cell][[*keys, "predictions"]].merge(dense, on=keys, suffixes=("", "_dense"))
    by_task = [
        _of_task(
            str(task),
            [(load({"predictions": one["predictions_dense"]}), load(one)) for one in records(part)],
        )
        for task, part in pairs.groupby("task", sort=True)
    ]
    in_turn = (one for turn in zip_longest(*by_task) for one in turn if one is not None)
    return list(islice(in_turn, MOST))


def _of_task(task: str, pairs: Sequence[tuple[Predictions, Predictions]]) -> list[Failure]:
    """The failures of one task, most telling first; pairs on other examples are passed over."""
    first = pairs[0][0]
    usable = [
        (dense, sparse)
        for dense, sparse in pairs
        if np.array_equal(dense.example, first.example)
        and np.array_equal(sparse.example, first.example)
    ]
    fails = np.stack(
        [(d.prediction == d.label) & (s.prediction != s.label) for d, s in usable]
        or [np.zeros(len(first), dtype=bool)]
    )
    count, pair = fails.sum(axis=0), fails.argmax(axis=0)
    at = np.flatnonzero(count)
    sure = np.array([_confidence(usable[pair[i]][0], i) for i in at.tolist()])
    best = at[np.lexsort((at, -sure, -count[at]))][:MOST]
    return [
        Failure(
            task=task,
            example=str(first.example[i]),
            label=int(first.label[i]),
            dense_confidence=_confidence(usable[pair[i]][0], i),
            sparse=int(usable[pair[i]][1].prediction[i]),
            sparse_confidence=_confidence(usable[pair[i]][1], i),
            pairs=int(count[i]),
            of=len(usable),
        )
        for i in best.tolist()
    ]


def _confidence(model: Predictions, place: int) -> float:
    return float(np.exp(model.top_log_prob[place, 0]))


def _look_up(
    material: Material, failures: Sequence[Failure]
) -> tuple[dict[str, Found], dict[str, str]]:
    """What is found of each task, and of the others why it is not."""
    looked: dict[str, Found] = {}
    reasons: dict[str, str] = {}
    for task in dict.fromkeys(failure.task for failure in failures):
        if material.images is None:
            reasons[task] = "no place of the data is known to this report."
            continue
        try:
            ids = [failure.example for failure in failures if failure.task == task]
            looked[task] = material.images(task, ids)
        except (UserError, OSError, ValueError) as error:
            reasons[task] = " ".join(str(error).split())
    return looked, reasons


def _named(looked: Mapping[str, Found], task: str, label: int) -> str:
    """The class in words, where the data is here."""
    found = looked.get(task)
    known = found is not None and label < len(found.classes)
    return found.classes[label] if found and known else f"class {label}"


def _table(
    failures: Sequence[Failure], looked: Mapping[str, Found], reasons: Mapping[str, str], name: str
) -> Table:
    rows = [
        {
            "task": one.task,
            "example": one.example,
            "label": _named(looked, one.task, one.label),
            "dense_confidence": one.dense_confidence,
            "sparse": _named(looked, one.task, one.sparse),
            "sparse_confidence": one.sparse_confidence,
            "share": f"{one.pairs} of {one.of}",
        }
        for one in failures
    ]
    notes = tuple(f"{task} is shown without pictures: {why}" for task, why in reasons.items())
    title = f"{len(rows)} newly failing images"
    return Table(name, title, pd.DataFrame(rows), COLUMNS, "", notes)


def _pictures(
    failures: Sequence[Failure], looked: Mapping[str, Found], most_bytes: int
) -> Iterator[Picture]:
    for one in failures:
        image = looked[one.task].images.get(one.example) if one.task in looked else None
        if image is None:
            continue
        address = thumbnail(image)
        most_bytes -= len(address)
        if most_bytes < 0:
            return
        label, wrong = (_named(looked, one.task, label) for label in (one.label, one.sparse))
        yield Picture(
            address,
            f"{one.task}: {label}, taken for {wrong}",
            (
                f"{one.task}: {label}",
                f"dense: {label}, {100 * one.dense_confidence:.0f} %",
                f"pruned: {wrong}, {100 * one.sparse_confidence:.0f} %",
            ),
        )

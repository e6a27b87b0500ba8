"""Sparse beside dense, example by example and class by class, from stored predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from sparse_transfer import statistics
from sparse_transfer.predictions import Predictions
from sparse_transfer.report.cells import Column, Table, records, with_values
from sparse_transfer.report.material import LoadPredictions
from sparse_transfer.report.tables import CELL, MODES, Group, mode_title

Row = Mapping[str, Any]  # of the results frame
LEVEL = 0.05
SHARES = ("flips", "negative_flips", "positive_flips", "kappa")
AGREEMENT = (
    Column("mode_title", "mode", choice=True),
    Column("task", "task", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("flips", "flips, %", "percent", "predictions that differ from dense"),
    Column("negative_flips", "negative flips, %", "percent", "dense right, sparse wrong"),
    Column("positive_flips", "positive flips, %", "percent", "dense wrong, sparse right"),
    Column("kappa", "Cohen's κ", "number", "agreement beyond chance: 1 is full agreement"),
    Column("mcnemar", "McNemar p < 0.05", note="exact, by pair of models; not corrected"),
    Column("pairs", "pairs", "count"),
)
MEANS = tuple(c for c in AGREEMENT if c.key not in ("task", "mcnemar", "pairs")) + (
    Column("n_tasks", "tasks", "count"),
    Column("pairs", "pairs", "count"),
)
WORST = (
    Column("mode_title", "mode", choice=True),
    Column("task", "task", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("worst_accuracy", "worst class, %", "percent", "", beside="worst_class"),
    Column("dense_worst_accuracy", "worst of dense, %", "percent", "", beside="dense_worst_class"),
    Column("lost", "largest loss of a class, points", "change", "", beside="lost_class"),
    Column("lost_images", "its test images", "count"),
)


@dataclass(frozen=True)
class Pair:
    """A sparse model and the dense one that it is compared with, as rows of the results frame."""

    dense: Row
    other: Row


def pairs(dense: Sequence[Row], sparse: Sequence[Row]) -> list[Pair]:
    """One pair per upstream seed, of the first transfer seed that both have.

    Args:
        dense, sparse: the results of one group and task, of the dense cell and of another.
    """
    known = {_seeds(row): row for row in dense}
    found: dict[Any, Pair] = {}
    for row in sorted(sparse, key=_seeds):
        if _seeds(row) in known:
            found.setdefault(row["upstream_seed"], Pair(known[_seeds(row)], row))
    return list(found.values())


def dense_pairs(dense: Sequence[Row]) -> list[Pair]:
    """Each dense model and that of the next upstream seed: how far two dense models are apart."""
    first_head: dict[Any, Row] = {}
    for row in sorted(dense, key=_seeds):
        first_head.setdefault(row["upstream_seed"], row)
    heads = list(first_head.values())
    return [Pair(one, other) for one, other in zip(heads, heads[1:], strict=False)]


def compare(
    groups: Sequence[Group],
    frame: pd.DataFrame,
    load: LoadPredictions,
    class_names: Mapping[str, Sequence[str]],
) -> pd.DataFrame:
    """One row per group, task and cell: agreement with dense, and the classes that pay.

    Args:
        groups: to compare within; what has no dense rows is left out.
        frame: the results frame.
        load: gives the predictions of a row.
        class_names: task → names by class index; classes of other tasks are numbered.

    Returns:
        columns mode, mode_title, task, method, sparsity, is_rival (dense against dense), the
        shares of SHARES (means over pairs), mcnemar_low and mcnemar_high (least and largest p),
        mcnemar (in words), pairs, and those of WORST; empty where nothing can be compared.
    """
    made = []
    stored = frame[frame["predictions"].notna()] if "predictions" in frame else frame.iloc[:0]
    for group in groups:
        for task, part in group.of(stored).groupby("task", sort=False):
            loaded = _Loaded(load)
            cells: dict[tuple[str, float], list[Row]] = {}
            for row in records(part):
                cells.setdefault((row["method"], row["sparsity"]), []).append(row)
            dense = cells.pop(("dense", 0.0), [])
            for cell, own in sorted(cells.items()):
                found = pairs(dense, own)
                made += _row(group, str(task), cell, found, loaded, class_names)
            found = dense_pairs(dense)
            made += _row(group, str(task), ("dense", 0.0), found, loaded, class_names)
    return pd.DataFrame(made)


def agreement_table(rows: pd.DataFrame, *, name: str, title: str, held_fixed: str) -> Table:
    """Rows of `compare`, task by task."""
    notes = (
        "McNemar: of how many pairs the exact two-sided p-value is below 0.05; descriptive, not "
        "corrected for the number of rows.",
        _pairing_note(rows),
    )
    columns = with_values(rows, AGREEMENT)
    return Table(f"agreement-{name}", title, rows, columns, "", notes, held_fixed)


def means_table(rows: pd.DataFrame, *, name: str, title: str, held_fixed: str) -> Table:
    """Rows of `compare` averaged over tasks."""
    made = means(rows)
    columns = with_values(made, MEANS)
    notes = (_pairing_note(rows),)
    return Table(f"agreement-mean-{name}", title, made, columns, "", notes, held_fixed)


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean over tasks by mode and cell, with `n_tasks`, and `pairs` of the task that has most."""
    by = rows.groupby(["mode", "mode_title", *CELL], sort=False)
    made = by[list(SHARES)].mean()
    made["n_tasks"], made["pairs"] = by["task"].nunique(), by["pairs"].max()
    return _ordered(made.reset_index())


def worst_table(rows: pd.DataFrame, *, name: str, title: str, held_fixed: str) -> Table:
    """The worst class, and the one that lost most against dense; accuracies: means over pairs."""
    sparse = rows[~rows["is_rival"]]
    notes = (
        "A class of few test images moves in large steps, and the largest of many differences is "
        "large by chance, too: read this beside the counts.",
    )
    columns = with_values(sparse, WORST)
    return Table(f"worst-class-{name}", title, sparse, columns, "", notes, held_fixed)


class _Loaded:
    """Predictions by file, each read once: the dense ones serve every cell of a task."""

    def __init__(self, load: LoadPredictions) -> None:
        self._load, self._dense = load, dict[str, Predictions]()

    def of(self, row: Row) -> Predictions:
        if row["method"] != "dense":
            return self._load(row)
        path = str(row["predictions"])
        if path not in self._dense:
            self._dense[path] = self._load(row)
        return self._dense[path]


def _seeds(row: Row) -> tuple[int, int]:
    """Upstream and transfer seed; −1 for a head that has none."""
    head = row["transfer_seed"]
    return int(row["upstream_seed"]), -1 if pd.isna(head) else int(head)


def _row(
    group: Group,
    task: str,
    cell: Any,
    found: Sequence[Pair],
    loaded: _Loaded,
    class_names: Mapping[str, Sequence[str]],
) -> list[dict[str, Any]]:
    if not found:
        return []
    models = [(loaded.of(pair.dense), loaded.of(pair.other)) for pair in found]
    each = [statistics.agreement(dense, other) for dense, other in models]
    p_values = [one.mcnemar_p for one in each]
    below = sum(p < LEVEL for p in p_values)
    words = f"{below} of {len(each)}" if len(each) > 1 else f"p = {p_values[0]:.2g}"
    return [
        {
            "mode": group.mode,
            "mode_title": mode_title(group.mode),
            "task": task,
            "method": cell[0],
            "sparsity": cell[1],
            "is_rival": cell[0] == "dense",
            "flips": _mean([one.flips / one.n for one in each]),
            "negative_flips": _mean([one.negative_flips / one.n for one in each]),
            "positive_flips": _mean([one.positive_flips / one.n for one in each]),
            "kappa": _mean([one.kappa for one in each]),
            "mcnemar": words,
            "mcnemar_low": min(p_values),
            "mcnemar_high": max(p_values),
            "pairs": len(each),
            **_classes(models, class_names.get(task, ())),
        }
    ]


def _classes(
    models: Sequence[tuple[Predictions, Predictions]], names: Sequence[str]
) -> dict[str, Any]:
    """Accuracy by class, averaged over the pairs; the worst class and the largest loss, named."""
    classes = 1 + max(int(dense.label.max()) for dense, _ in models)
    by_class = [tuple(statistics.by_class(one, classes) for one in pair) for pair in models]
    count = by_class[0][0].count
    dense, other = (
        statistics.ByClass(np.mean([pair[i].accuracy for pair in by_class], axis=0), count)
        for i in (0, 1)
    )
    change = other.accuracy - dense.accuracy
    lost = int(np.nanargmin(change))

    def name(index: int) -> str:
        return str(names[index]) if index < len(names) else f"class {index}"

    return {
        "worst_class": name(other.worst),
        "worst_accuracy": float(other.accuracy[other.worst]),
        "dense_worst_class": name(dense.worst),
        "dense_worst_accuracy": float(dense.accuracy[dense.worst]),
        "lost_class": name(lost),
        "lost": float(change[lost]),
        "lost_images": int(count[lost]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _pairing_note(rows: pd.DataFrame) -> str:
    note = "Each sparse model beside the dense one of its upstream seed and transfer seed (the "
    note += "first transfer seed)"
    if rows["is_rival"].any():
        note += "; the row `dense` is dense beside the dense of the next upstream seed, which is "
        note += "how much two models differ that nothing was pruned from"
    return f"{note}."


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    order = list(MODES)
    places = [order.index(str(m)) if m in order else len(order) for m in rows["mode"]]
    made = rows.assign(_place=places).sort_values(["_place", "sparsity", "method"], kind="stable")
    return cast(pd.DataFrame, made.drop(columns="_place"))

"""The results frame, checked and arranged: groups, cells, and paired errors without holes.

A group is what may be compared: same arm, upstream model, recipe, mode, profile and image size. A
cell is a method at a sparsity. Sparse seed s is paired with dense seed s, whose initialisation it
shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_transfer.errors import UserError
from sparse_transfer.statistics.intervals import Interval
from sparse_transfer.statistics.relative_error import (
    Aggregates,
    aggregate,
    relative_error_by_seed,
    relative_error_increase,
)

GROUP = ["arm", "model", "recipe", "mode", "profile", "image_size"]
CELL = ["method", "sparsity"]
DENSE = "dense"
NAN = float("nan")

_NEEDED = [*GROUP, *CELL, "upstream_seed", "task", "split_hash", "transfer_seed", "metric", "value"]
_OPTIONAL = ["measured_sparsity", "mac_ratio", "n_test", "top1"]
_READ = [*_OPTIONAL, "upstream_seed", "value", "metric"]
_ACCURACIES = ("top1", "mean_per_class")

Cell = tuple[str, float]  # (method, sparsity)
Task = tuple[str, str]  # (task, split hash): a subset never passes for the real set
ErrorTable = dict[Task, dict[int, float]]  # error by task and upstream seed


@dataclass(frozen=True)
class PairedErrors:
    """Errors of the dense cell and of another on the same tasks and upstream seeds.

    Attributes:
        tasks: (task, split hash) of each row.
        seeds: upstream seed of each column.
        dense, sparse: (tasks, seeds), means over transfer seeds; dense is NaN where the group has
            no dense cell.
        missing: the cells that would have been needed, in words.
    """

    tasks: list[Task]
    seeds: list[int]
    dense: NDArray[np.float64]
    sparse: NDArray[np.float64]
    missing: list[str]

    def aggregates(self) -> Aggregates:
        """Relative error increase of the seed means, over tasks."""
        if not self.tasks:
            return aggregate([], [])
        return aggregate(self.dense.mean(axis=1), self.sparse.mean(axis=1))

    def by_task(self) -> NDArray[np.float64]:
        """r_t of the seed means, (tasks,); NaN without dense errors."""
        if not self.tasks:
            return np.zeros(0)
        return relative_error_increase(self.dense.mean(axis=1), self.sparse.mean(axis=1))

    def by_seed(self) -> NDArray[np.float64]:
        """Linearised r_t by paired seed, (tasks with dense errors, seeds)."""
        if not self.tasks:
            return np.zeros((0, 0))
        values = relative_error_by_seed(self.dense, self.sparse)
        return values[~np.isnan(values).any(axis=1)]


class Group:
    """The results of one group, as errors by cell, task and upstream seed."""

    def __init__(self, key: Mapping[str, Any], rows: pd.DataFrame) -> None:
        self.key = dict(key)
        self.frame = rows
        self._columns = {name: rows[name].to_numpy() for name in _READ}
        self._positions: dict[Cell, dict[Task, NDArray[np.intp]]] = {}
        self.errors: dict[Cell, ErrorTable] = {}
        for names, indices in rows.groupby([*CELL, "task", "split_hash"]).indices.items():
            method, sparsity, task, split = cast("tuple[str, float, str, str]", names)
            cell, place = (method, float(sparsity)), (task, split)
            positions = np.asarray(indices, dtype=np.intp)
            self._positions.setdefault(cell, {})[place] = positions
            self.errors.setdefault(cell, {})[place] = self._error_by_seed(positions)
        dense = [cell for cell in self.errors if cell[0].lower() == DENSE]
        self.dense: Cell | None = dense[0] if dense else None
        self.tasks = sorted({task for table in self.errors.values() for task in table})

    def cells(self) -> list[Cell]:
        """Dense first, then by method and sparsity."""
        return sorted(self.errors, key=lambda cell: (cell != self.dense, cell))

    def runs(self, cell: Cell, task: Task | None = None) -> NDArray[np.intp]:
        """Row numbers of a cell, of one of its tasks or of all; empty where there is none."""
        tasks = self._positions[cell]
        if task is not None:
            return tasks.get(task, np.zeros(0, dtype=np.intp))
        return np.concatenate(list(tasks.values()))

    def mean(self, runs: NDArray[np.intp], column: str) -> float:
        """The mean over runs of what is known of a column; NaN if nothing is."""
        values = self._columns[column][runs]
        values = values[~np.isnan(values)]
        return float(values.mean()) if values.size else NAN

    def metric(self, cell: Cell, task: Task) -> str:
        """The task's own metric."""
        return str(self._columns["metric"][self.runs(cell, task)[0]])

    def paired(self, cells: Sequence[Cell], *, own_tasks: bool = False) -> list[PairedErrors]:
        """Errors of each cell beside dense, on the tasks and seeds that all of them have.

        Args:
            cells: one or more cells of this group.
            own_tasks: what is missing is judged by the tasks of these cells and dense, not by all
                tasks of the group.
        """
        tables = [self.errors[cell] for cell in cells]
        wanted_seeds = sorted({s for table in tables for errors in table.values() for s in errors})
        named = dict(zip(cells, tables, strict=True))
        if self.dense is not None:
            named = {self.dense: self.errors[self.dense], **named}
        wanted = sorted({t for table in named.values() for t in table}) if own_tasks else self.tasks
        missing = [
            self._name(cell, task, seed)
            for cell, table in named.items()
            for task in wanted
            for seed in wanted_seeds
            if seed not in table.get(task, {})
        ]
        if self.dense is None:
            missing.append(f"{self._title()}: every dense result")
        tasks, seeds = _without_holes(list(named.values()), wanted, wanted_seeds)
        dense = named.get(self.dense) if self.dense is not None else None
        return [
            PairedErrors(
                tasks, seeds, _matrix(dense, tasks, seeds), _matrix(table, tasks, seeds), missing
            )
            for table in tables
        ]

    def by_transfer_seed(self, cell: Cell, task: Task, seed: int) -> NDArray[np.float64]:
        """Errors of one upstream seed on a task, (transfer seeds,)."""
        runs = self.runs(cell, task)
        return 1 - self._columns["value"][runs[self._columns["upstream_seed"][runs] == seed]]

    def missing(self) -> list[str]:
        """Every result that the comparison with dense needs and does not have."""
        found = [text for cell in self.cells() for text in self.paired([cell])[0].missing]
        return list(dict.fromkeys(found))

    def _error_by_seed(self, runs: NDArray[np.intp]) -> dict[int, float]:
        """Error by upstream seed, mean over transfer seeds."""
        seeds, errors = self._columns["upstream_seed"][runs], 1 - self._columns["value"][runs]
        return {int(seed): float(errors[seeds == seed].mean()) for seed in np.unique(seeds)}

    def _title(self) -> str:
        return ", ".join(str(self.key[name]) for name in GROUP[:-1] if self.key[name])

    def _name(self, cell: Cell, task: Task, seed: int) -> str:
        hashes = {split for name, split in self.tasks if name == task[0]}
        split = f" (split {task[1][:8]})" if len(hashes) > 1 else ""
        method = cell[0] if cell == self.dense else f"{cell[0]} {cell[1]:g}"
        return f"{self._title()}: {method} on {task[0]}{split}, upstream seed {seed}"


def groups(frame: pd.DataFrame) -> list[Group]:
    """The groups of a checked frame, sorted."""
    return [
        Group(dict(zip(GROUP, cast("tuple[Any, ...]", values), strict=True)), rows)
        for values, rows in frame.groupby(GROUP, sort=True)
    ]


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its columns in place.

    Raises:
        UserError: naming the first row that is not a number, occurs twice, or is not an accuracy.
    """
    absent = [name for name in _NEEDED if name not in frame.columns]
    if absent:
        raise UserError(
            "These results cannot be compared.", f"Columns missing: {', '.join(absent)}."
        )
    if frame.empty:
        raise UserError("There is nothing to compare.", "Not a single result was found.")
    table = frame.reset_index(drop=True).copy()
    for name in _OPTIONAL:
        if name not in table.columns:
            table[name] = NAN
    for name in [*_OPTIONAL, "value", "sparsity"]:
        table[name] = pd.to_numeric(table[name]).astype(float)
    table["sparsity"] = table["sparsity"].fillna(0.0)  # dense has no target
    table["upstream_seed"] = table["upstream_seed"].fillna(0).astype(int)
    for name in [*GROUP, "split_hash"]:
        table[name] = table[name].astype(object).where(table[name].notna(), "")
    bad = table[~np.isfinite(table["value"].to_numpy())]
    if len(bad):
        raise UserError("A result is not a number.", f"{_row_name(bad)}; {len(bad)} in all.")
    odd = table[~table["metric"].isin(_ACCURACIES)]
    if len(odd):
        raise UserError(
            "A result has no relative error.",
            f"Its metric is '{odd['metric'].iloc[0]}', not an accuracy: {_row_name(odd)}.",
            f"The task's own metric must be {' or '.join(_ACCURACIES)}.",
        )
    key = [*GROUP, *CELL, "upstream_seed", "task", "split_hash", "transfer_seed"]
    twice = table[table.duplicated(key)]
    if len(twice):
        raise UserError(
            "A result occurs twice.",
            f"{_row_name(twice)}; {len(twice)} in all.",
            "Imported files: choose mean, first or last of equal keys.",
        )
    return table


def refuse_missing(missing: Sequence[str]) -> None:
    """Raise a UserError that names the missing results; the caller checks that there are any."""
    unique = list(dict.fromkeys(missing))
    shown = "\n".join(f"  {text}" for text in unique[:10])
    more = f"\n  … and {len(unique) - 10} more" if len(unique) > 10 else ""
    raise UserError(
        "Coverage is unequal: a mean over other tasks or seeds is another quantity.",
        f"Missing:\n{shown}{more}",
        "Run what is missing, or allow unequal coverage to compare on what is shared.",
    )


def is_dense(frame: pd.DataFrame) -> pd.Series:
    """Which rows belong to the dense reference."""
    return frame["method"].astype(str).str.lower() == DENSE


def limits(name: str, interval: Interval | None) -> dict[str, float]:
    """The two columns NAME_low and NAME_high; NaN where there is no interval."""
    low, high = (interval.low, interval.high) if interval else (NAN, NAN)
    return {f"{name}_low": low, f"{name}_high": high}


def _matrix(table: ErrorTable | None, tasks: list[Task], seeds: list[int]) -> NDArray[np.float64]:
    if table is None:
        return np.full((len(tasks), len(seeds)), NAN)
    values = [[table[task][seed] for seed in seeds] for task in tasks]
    return np.array(values, dtype=np.float64).reshape(len(tasks), len(seeds))


def _without_holes(
    tables: Sequence[ErrorTable], tasks: Sequence[Task], seeds: Sequence[int]
) -> tuple[list[Task], list[int]]:
    """Tasks and seeds that all tables have in full; a seed is given up before a task is."""
    shared = {
        task: {seed for seed in seeds if all(seed in table.get(task, {}) for table in tables)}
        for task in tasks
    }
    kept = [task for task in tasks if shared[task]]
    complete = [seed for seed in seeds if all(seed in shared[task] for task in kept)]
    if complete or not kept:
        return kept, complete if kept else []
    # No seed has all of these tasks: keep the seed that has most of them.
    best = max(seeds, key=lambda seed: sum(seed in shared[task] for task in kept))
    return [task for task in kept if best in shared[task]], [best]


def _row_name(rows: pd.DataFrame) -> str:
    row = rows.iloc[0]
    return (
        f"{row['method']} {row['sparsity']:g}, {row['mode']}, {row['task']}, "
        f"upstream seed {row['upstream_seed']}, transfer seed {row['transfer_seed']}"
    )

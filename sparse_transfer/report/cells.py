"""A table: numbers as they are computed, and how each column is shown to people.

The frame keeps fractions in [0, 1], seconds and counts (that is what the CSV holds); percent and
milliseconds exist only in what is shown. A missing value is an empty cell everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from sparse_transfer.store import replacing

Kind = Literal[
    "text",
    "percent",
    "sparsity",
    "change",
    "count",
    "ratio",
    "milliseconds",
    "megabytes",
    "number",
    "correlation",
    "p",
    "duration",
    "macs",
]


@dataclass(frozen=True)
class Column:
    """One shown column.

    Attributes:
        key: the column of the frame; `<key>_low` and `<key>_high`, where there, are its interval.
        title: the heading, with the unit.
        kind: how a value is shown.
        note: a longer explanation, shown when the pointer rests on the heading.
        choice: rows may be filtered by this column's values.
        beside: a column whose value stands beside this one in brackets.
    """

    key: str
    title: str
    kind: Kind = "text"
    note: str = ""
    choice: bool = False
    beside: str = ""

    @property
    def numeric(self) -> bool:
        """Whether the column holds numbers (set right-aligned)."""
        return self.kind != "text"


@dataclass(frozen=True)
class Cell:
    """What one cell shows: text, a detail beside it, and the number it is sorted by."""

    text: str
    detail: str = ""
    sort: float | None = None

    @property
    def plain(self) -> str:
        """Text and detail in one string."""
        return f"{self.text} {self.detail}".strip()


@dataclass(frozen=True, eq=False)
class Table:
    """A table with everything that must stand under it.

    Attributes:
        name: file name without ending, and anchor in the page.
        title: what is compared.
        frame: all values, one row each; may have more columns than are shown.
        columns: the shown columns; those without any value are left out.
        remark: one line under the title.
        notes: footnotes.
        held_fixed: what was held fixed in this comparison.
        folded: shown on demand only.
    """

    name: str
    title: str
    frame: pd.DataFrame
    columns: tuple[Column, ...]
    remark: str = ""
    notes: tuple[str, ...] = ()
    held_fixed: str = ""
    folded: bool = False

    @cached_property
    def rows(self) -> list[list[Cell]]:
        """The shown cells, row by row."""
        return [[show(record, column) for column in self.columns] for record in records(self.frame)]

    def save(self, path: Path) -> None:
        """Write the whole frame as CSV; fractions in [0, 1], missing values empty."""
        with replacing(path) as temporary:
            self.frame.to_csv(temporary, index=False)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as dictionaries."""
    return cast("list[dict[str, Any]]", frame.to_dict("records"))


def with_values(frame: pd.DataFrame, columns: tuple[Column, ...]) -> tuple[Column, ...]:
    """The columns that have at least one value in the frame."""

    def has_value(column: Column) -> bool:
        if column.key not in frame:
            return False
        return not all(_is_missing(value) for value in frame[column.key])

    return tuple(column for column in columns if has_value(column))


def show(record: Mapping[str, Any], column: Column) -> Cell:
    """What a record shows in a column."""
    value = record.get(column.key, "")
    if _is_missing(value):
        return Cell("")
    other = record.get(column.beside, "")
    detail = ""
    if not _is_missing(other):
        is_text = column.kind == "text" or isinstance(other, str)
        detail = f"({other if is_text else _number(float(other), column.kind)})"
    if column.kind == "text":
        return Cell(str(value), detail)
    number = float(value)
    low, high = (record.get(f"{column.key}_{end}", "") for end in ("low", "high"))
    if _is_missing(low) or _is_missing(high):
        return Cell(_number(number, column.kind), detail, number)
    ends = (_number(float(end), column.kind).rstrip("×") for end in (low, high))
    return Cell(_number(number, column.kind), f"[{', '.join(ends)}]", number)


def _number(value: float, kind: Kind) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if kind == "count":
        return f"{round(value):,}"
    if kind == "ratio":
        return f"{value:.2f}×"
    if kind == "milliseconds":
        return f"{1000 * value:.3g}"
    if kind == "megabytes":
        return f"{value / 1e6:.3g}"
    if kind == "number":
        return f"{value:.3f}".replace("-", "−")
    if kind == "sparsity":
        return f"{100 * value:.4g}"
    if kind == "correlation":
        return f"{value:+.2f}".replace("-", "−")
    if kind == "p":
        return f"{value:.2g}" if value >= 0.001 else "< 0.001"
    if kind == "duration":
        return duration(value)
    if kind == "macs":
        return macs(value)
    sign = "+" if kind == "change" else ""
    return f"{100 * value:{sign}.1f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds in the unit in which they are read: `1.4 s`, `12 min`, `3.5 h`."""
    size = abs(seconds)
    for limit, unit, length in ((90.0, "s", 1.0), (5400.0, "min", 60.0), (math.inf, "h", 3600.0)):
        if size < limit:
            return f"{seconds / length:.3g} {unit}".replace("-", "−")
    return f"{seconds:g} s"


def macs(count: float) -> str:
    """Multiply-accumulates per image: `820 k`, `41.2 M`, `4.09 G`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def _is_missing(value: object) -> bool:
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    return value == "" or (isinstance(value, float) and math.isnan(value))

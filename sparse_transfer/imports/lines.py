"""A result file as text: its header understood, its lines of data as columns under our names."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sparse_transfer.errors import UserError

HEADER_ALIASES = {
    "dset": "task",
    "dataset": "task",
    "task": "task",
    "model": "method",
    "method": "method",
    "sparsity": "sparsity",
    "seed": "seed",
    "val_acc": "value",
    "acc": "value",
    "accuracy": "value",
    "setting": "setting",
    "arch": "architecture",
    "architecture": "architecture",
}
NEEDED = ("task", "method", "sparsity", "seed", "value")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Lines:
    """The lines of data of one file.

    Attributes:
        path: the file.
        numbers: of the lines in the file, from 1.
        columns: our name → the text of every line.
    """

    path: Path
    numbers: list[int]
    columns: dict[str, list[str]]

    def each(self, name: str, parse: Callable[[int, str], _T]) -> list[_T]:
        """Every value of a column; each distinct text is parsed once, where it first stands."""
        known: dict[str, _T] = {}
        texts = self.columns[name]
        for number, text in zip(self.numbers, texts, strict=True):
            if text not in known:
                known[text] = parse(number, text)
        return [known[text] for text in texts]


def read_lines(path: Path) -> Lines:
    """Read the lines of a file whose fields are separated by commas or tabs.

    Raises:
        UserError: with file and line: unreadable, a header without a column that is needed, a line
            with more or fewer fields than the header, no line of data.
    """
    rows = _rows(path)
    first, header = next(rows, (1, []))
    _drop_empty_end(header, 0)  # a trailing comma is no column
    columns = _columns(path, first, header)
    numbers: list[int] = []
    lines: list[list[str]] = []
    for number, fields in rows:
        _drop_empty_end(fields, len(header))
        if len(fields) != len(header):
            raise bad_line(path, number, f"{len(fields)} fields, the header has {len(header)}.")
        numbers.append(number)
        lines.append(fields)
    if not lines:
        raise UserError(f"{path} holds no results.", "There is no line after the header.")
    by_place = list(zip(*lines, strict=True))
    return Lines(path, numbers, {name: list(by_place[place]) for name, place in columns.items()})


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, stripped fields) of every line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read.", str(error)) from error
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    reader = csv.reader(lines, delimiter="\t" if "\t" in first else ",", strict=True)
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if any(fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise bad_line(path, reader.line_num, f"{error}.") from error


def _drop_empty_end(fields: list[str], width: int) -> None:
    """Remove empty fields from the end while there are more than `width`."""
    while len(fields) > width and not fields[-1]:
        fields.pop()


def _columns(path: Path, number: int, header: list[str]) -> dict[str, int]:
    """Our name → index of the column; other columns are allowed and not read."""
    columns: dict[str, int] = {}
    for index, name in enumerate(header):
        ours = HEADER_ALIASES.get(name.lower())
        if ours is None:
            continue
        if ours in columns:
            raise bad_line(
                path, number, f"Two columns mean '{ours}': {header[columns[ours]]} and {name}."
            )
        columns[ours] = index
    absent = [name for name in NEEDED if name not in columns]
    if absent:
        raise UserError(
            f"{path}, line {number}: this is not the header of a results file.",
            f"No column for {', '.join(absent)}; found: {', '.join(header) or 'nothing'}.",
            "Expected for instance: dset,model,sparsity,seed,val_acc",
        )
    return columns


def bad_line(path: Path, number: int, why: str) -> UserError:
    """The error that names a file and a line of it."""
    return UserError(f"{path}, line {number}: this line cannot be read.", why)

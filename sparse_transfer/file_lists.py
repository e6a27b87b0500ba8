"""Splits that are published as text files: one path per line, a file per part.

SUN397's partitions (`Training_01.txt`, `Testing_01.txt`) are of this kind: the set itself has no
split and far more images than a partition names. A card's source says `lists: {train: FILE, …}`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from sparse_transfer.cards import SourceSpec
from sparse_transfer.errors import UserError
from sparse_transfer.examples import (
    AbstractSource,
    Listing,
    Part,
    Place,
    Presence,
    file_fingerprint,
)


def read_list(path: Path) -> list[str]:
    """The paths that a list names, in its order, relative to the source's folder.

    Raises:
        UserError: the file cannot be read, or names nothing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list of images {path} cannot be read.", str(error)) from error
    # SUN397 writes `/a/abbey/x.jpg` for what lies at `a/abbey/x.jpg`
    entries = [line.strip().removeprefix("./").lstrip("/") for line in lines if line.strip()]
    if not entries:
        raise UserError(f"The list of images {path} is empty.", hint="Fetch it again.")
    return entries


@final
class ListedSource(AbstractSource):
    """Another source, of files, with its images shared out by lists."""

    def __init__(self, source: AbstractSource, spec: SourceSpec, place: Place) -> None:
        self.source, self.spec, self.place = source, spec, place

    def presence(self) -> Presence:
        found = self.source.presence()
        absent = [name for name in self.spec.lists.values() if self._find(name) is None]
        if found.state == "missing" or not absent:
            return found
        return Presence("missing", self.place.missing(absent[0]))

    def fingerprint(self) -> Any:
        lists = [path for name in self.spec.lists.values() if (path := self._find(name))]
        return [self.source.fingerprint(), file_fingerprint(lists)]

    def listing(self) -> Listing:
        whole = self.source.listing()
        where = {
            path: (part, row)
            for part in whole.parts.values()
            for row, path in enumerate(part.paths)
        }
        entries = {part: self._entries(name) for part, name in self.spec.lists.items()}
        counts = Counter(entry for listed in entries.values() for entry in listed)
        if twice := [entry for entry, count in counts.items() if count > 1]:
            raise UserError(
                f"The lists of {self.spec.title} do not fit together.",
                f"{len(twice)} images are listed more than once, as {twice[0]}.",
            )
        if absent := [entry for entry in counts if entry not in where]:
            raise UserError(
                f"{self.spec.title} lacks images that its lists name.",
                f"{len(absent):,} of {len(counts):,} are not there, as {absent[0]}.",
                "Unpack the data again; a list of another version does not fit.",
            )
        return Listing(
            whole.classes,
            {part: _chosen(listed, where) for part, listed in entries.items()},
        )

    def _entries(self, name: str) -> list[str]:
        path = self._find(name)
        if path is None:
            raise UserError(
                f"{self.spec.title} lacks its list of images.", f"{self.place.missing(name)}."
            )
        return read_list(path)

    def _find(self, name: str) -> Path | None:
        # torchvision's sets may lie one folder deeper, and their lists with them
        return self.place.find(name) or self.place.find(f"torchvision/{name}")


def _chosen(listed: Sequence[str], where: dict[str, tuple[Part, int]]) -> Part:
    """The listed images as a part; their paths are their ids."""
    places = [where[entry] for entry in listed]
    return Part(
        ids=list(listed),
        labels=np.array([part.labels[row] for part, row in places], dtype=np.int64),
        fetch=lambda row: places[row][0].fetch(places[row][1]),
        paths=list(listed),
    )

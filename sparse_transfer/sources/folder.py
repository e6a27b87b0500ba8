"""Folders of image files: PART/CLASS/image, or CLASS/image where the card has a rule to split it.

A class is a folder, its name the class name, classes in sorted order unless the card has another
`class_order`. Files are taken in the order of their names, with numbers compared as numbers
(image_2 before image_10).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, final

import numpy as np

from sparse_transfer.cards import SourceSpec, TaskCard
from sparse_transfer.errors import UserError
from sparse_transfer.examples import (
    IMAGE_SUFFIXES,
    AbstractSource,
    Listing,
    Part,
    Place,
    Presence,
    file_fingerprint,
    part_name,
)

_WNID = re.compile(r"n\d{8}")


@final
class FolderSource(AbstractSource):
    """One folder of images."""

    def __init__(self, spec: SourceSpec, card: TaskCard, place: Place) -> None:
        self.spec, self.card, self.place = spec, card, place

    def presence(self) -> Presence:
        folder = self.place.find(self.spec.location)
        if folder is None:
            return Presence("missing", self.place.missing(self.spec.location))
        if not folder.is_dir():
            return Presence("missing", f"{folder} is not a folder")
        if absent := [path for path in self._wanted(folder).values() if not path.is_dir()]:
            return Presence("missing", f"{' and '.join(map(str, absent))} not there")
        return Presence("here", f"folder {folder}")

    def fingerprint(self) -> Any:
        return file_fingerprint(
            path
            for classes in self._files().values()
            for files in classes.values()
            for path in files
        )

    def listing(self) -> Listing:
        found = self._files()
        names = self._ordered({name for classes in found.values() for name in classes})
        if not names:
            raise UserError(
                f"Task `{self.card.name}` has no images.",
                f"{self._folder()} holds no folder of image files.",
                "It should hold CLASS/x.jpg, or train/CLASS/x.jpg and test/CLASS/x.jpg.",
            )
        number = {name: index for index, name in enumerate(names)}
        return Listing(
            tuple(names), {part: self._part(classes, number) for part, classes in found.items()}
        )

    def _part(self, classes: dict[str, list[Path]], number: dict[str, int]) -> Part:
        rows = [(number[name], path) for name in sorted(classes) for path in classes[name]]
        folder = self._folder()
        paths = [path.relative_to(folder).as_posix() for _, path in rows]
        return Part(
            ids=paths,
            labels=np.array([label for label, _ in rows], dtype=np.int64),
            fetch=lambda row: rows[row][1],
            paths=paths,
        )

    def _ordered(self, names: set[str]) -> list[str]:
        """Class names in the order of their numbers.

        Raises:
            UserError: they are not what the card's `class_order` needs.
        """
        order = self.spec.class_order
        if order == "number":
            wanted = {str(number) for number in range(len(names))}
            kind = f"the numbers 0 to {len(names) - 1}"
        elif order == "wnid":
            wanted, kind = {name for name in names if _WNID.fullmatch(name)}, "ids like n01440764"
        else:
            wanted, kind = names, ""
        if wrong := sorted(names - wanted):
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise UserError(
                f"The classes of task `{self.card.name}` cannot be numbered.",
                f"Below {self._folder()} the class folders should be called {kind}; there is "
                f"{wrong[0]}{more}.",
                "Unpack the published archive again, without renaming its folders.",
            )
        return sorted(names, key=int if order == "number" else str)

    def _folder(self) -> Path:
        folder = self.place.find(self.spec.location)
        if folder is None:
            raise UserError(f"Task `{self.card.name}`: {self.place.missing(self.spec.location)}.")
        return folder

    def _files(self) -> dict[str, dict[str, list[Path]]]:
        """Our part name → class → files in order."""
        folder = self._folder()
        parts = self._wanted(folder)
        if absent := [str(path) for path in parts.values() if not path.is_dir()]:
            raise UserError(
                f"Task `{self.card.name}` is incomplete.", f"There is no {' and no '.join(absent)}."
            )
        if not parts:
            children = [child for child in sorted(folder.iterdir()) if child.is_dir()]
            parts = {part_name(child.name) or "": child for child in children}
            parts.pop("", None)
        return {name: _classes(path) for name, path in (parts or {"all": folder}).items()}

    def _wanted(self, folder: Path) -> dict[str, Path]:
        """Our part name → the folder that the card gives for it."""
        return {ours: folder / str(theirs) for ours, theirs in self.spec.parts.items()}


def _classes(folder: Path) -> dict[str, list[Path]]:
    children = [child for child in sorted(folder.iterdir()) if child.is_dir()]
    found = {child.name: _images(child) for child in children if not child.name.startswith(".")}
    return {name: images for name, images in found.items() if images}


def _images(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted((path for path in files if path.is_file()), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts numbers by value: digits as (number, text), the rest as (-1, text)."""
    pieces = re.split(r"(\d+)", str(path))
    return [(int(piece), piece) if piece.isdecimal() else (-1, piece) for piece in pieces]


def open_source(spec: SourceSpec, card: TaskCard, place: Place) -> AbstractSource:
    """The source of a card's entry `folder: PATH`."""
    return FolderSource(spec, card, place)

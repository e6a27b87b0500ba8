"""The classes of torchvision.datasets, in torchvision's own folder layout below the data root.

The card gives the arguments of the class for each part (`parts: {train: {split: train}}`) and a
`marker`, the path that shows that the data is here. Looked for in the data root and in
`torchvision/` below it. A set is downloaded only where its card says `download: true` (several
addresses inside torchvision are dead or need further packages) and SPARSE_TRANSFER_DOWNLOAD=1 is
set, because it is written into the data root. Ids are row numbers in torchvision's order. This is
the one source that imports torch.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import numpy as np

from sparse_transfer.cards import SourceSpec, TaskCard
from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.examples import (
    AbstractSource,
    Listing,
    Part,
    Place,
    Presence,
    SourceUnavailable,
    encode_labels,
    file_fingerprint,
)

ALIAS = "torchvision"  # the file's own name would hide the package

STALLED_AFTER = 10.0  # seconds without a byte, after which a download has failed

_LABELS = ("targets", "_labels", "labels", "y")
_CLASSES = ("classes", "categories")


@final
class TorchvisionSource(AbstractSource):
    """One class of torchvision.datasets."""

    def __init__(self, spec: SourceSpec, card: TaskCard, place: Place) -> None:
        if not spec.parts or not all(isinstance(value, dict) for value in spec.parts.values()):
            raise UserError(
                f"The torchvision source of task `{card.name}` is incomplete.",
                hint="Give the class's arguments by part: `parts: {train: {split: train}, …}`.",
            )
        self.spec, self.card, self.place = spec, card, place
        self._listing: Listing | None = None

    def presence(self) -> Presence:
        if self.place.data_root is None:
            return Presence("missing", "no data root is set")
        root = self._root()
        if root is not None:
            return Presence("here", f"below {root}")
        absent = f"{self.place.data_root / self._marker} does not exist"
        if not self.spec.download:
            return Presence("missing", absent)
        if not self.place.online:
            return Presence("missing", f"{absent}, and downloads are switched off")
        if os.environ.get("SPARSE_TRANSFER_DOWNLOAD") != "1":
            return Presence("missing", f"{absent}; SPARSE_TRANSFER_DOWNLOAD=1 would fetch it")
        return Presence("download", f"would be downloaded to {self.place.data_root}")

    def fingerprint(self) -> Any:
        root = self._root()
        if root is None:
            return ["torchvision", self.spec.location, "absent"]
        marked = root / self._marker
        files = [marked] if marked.is_file() else [p for p in marked.rglob("*") if p.is_file()]
        return ["torchvision", self.spec.location, file_fingerprint(files)]

    def listing(self) -> Listing:
        if self._listing is None:
            opened = {name: self._open(name) for name in self.spec.parts}
            names = next((_first(part, _CLASSES) for part in opened.values()), None)
            labels = {name: _labels(part) for name, part in opened.items()}
            if unlabelled := [name for name, values in labels.items() if values is None]:
                raise UserError(
                    f"{self.spec.title} cannot be used.",
                    f"Its part {unlabelled[0]} keeps its labels in none of {', '.join(_LABELS)}.",
                )
            classes, numbers = encode_labels(labels, names, origin=self.spec.title)
            root = self._root() or self.place.data_root
            assert root is not None
            folder = root / self._marker
            self._listing = Listing(
                classes,
                {name: _part(name, part, numbers[name], folder) for name, part in opened.items()},
            )
        return self._listing

    def _root(self) -> Path | None:
        data_root = self.place.data_root
        if data_root is None:
            return None
        roots = (data_root, data_root / "torchvision")
        return next((root for root in roots if (root / self._marker).exists()), None)

    @property
    def _marker(self) -> str:
        return self.spec.marker or self.spec.location

    def _open(self, part: str) -> Any:
        from torchvision import datasets

        make = getattr(datasets, self.spec.location, None)
        if make is None:
            raise unknown_name("torchvision data set", self.spec.location, datasets.__all__)
        arguments: Any = self.spec.parts[part]
        root = self._root()
        if root is None:
            return self._download(make, arguments)
        try:
            return make(root=str(root), **arguments)
        except (OSError, RuntimeError, ModuleNotFoundError) as error:
            raise UserError(
                f"The data of task `{self.card.name}` below {root} cannot be opened.",
                str(error),
                "Remove what is there and fetch it again.",
            ) from error

    def _download(self, make: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        root = self.place.data_root
        assert root is not None
        top = root / Path(self._marker).parts[0]
        was_there = top.exists()
        try:
            with _impatient():
                return make(root=str(root), download=True, **arguments)
        except (OSError, RuntimeError, ModuleNotFoundError) as error:
            # torchvision makes its folders first; empty ones would look like data next time
            if not was_there and not any(path.is_file() for path in top.rglob("*")):
                shutil.rmtree(top, ignore_errors=True)
            raise SourceUnavailable(f"the download failed: {error}") from error


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """A time limit for sockets that set none of their own, as torchvision's downloads."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_AFTER)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _first(part: Any, names: tuple[str, ...]) -> Any:
    return next((getattr(part, name) for name in names if hasattr(part, name)), None)


def _labels(part: Any) -> Any:
    """The class numbers, which some classes keep beside the images' paths."""
    if hasattr(part, "_samples"):
        return [label for _, label in part._samples]
    return _first(part, _LABELS)


def _part(name: str, part: Any, labels: np.ndarray, folder: Path) -> Part:
    ids = [f"{name}/{row:07d}" for row in range(len(labels))]
    files = [Path(file) for file in getattr(part, "_image_files", ())]
    below = all(file.is_relative_to(folder) for file in files)
    paths = [file.relative_to(folder).as_posix() for file in files] if below else []
    return Part(ids, labels, lambda row: part[row][0], paths)


def open_source(spec: SourceSpec, card: TaskCard, place: Place) -> AbstractSource:
    """The source of a card's entry `torchvision: CLASS`.

    Raises:
        UserError: the entry does not give the arguments of the class.
    """
    return TorchvisionSource(spec, card, place)

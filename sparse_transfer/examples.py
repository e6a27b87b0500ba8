"""What a source of images gives: which examples there are, their labels, and how to fetch one.

A source lists without decoding: planning needs ids and labels only. Sources share here the rules by
which columns are found and labels become class numbers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparse_transfer.errors import UserError, nearest

LABEL_COLUMNS = ("label", "fine_label", "labels", "variant", "common", "category")
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
)

_PART_NAMES = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


class SourceUnavailable(Exception):  # noqa: N818 - the next source is tried
    """A source turned out not to be reachable; its message says why."""


@dataclass(frozen=True)
class Place:
    """Where a source may look.

    Attributes:
        data_root: the folder of `--data-root`, or None.
        card_folder: the folder of a user's card, or None for a shipped card.
        online: whether anything may be downloaded.
    """

    data_root: Path | None
    card_folder: Path | None = None
    online: bool = False

    def find(self, location: str) -> Path | None:
        """The existing path: absolute, beside the card, where one works, or below the root."""
        return next((path for path in self._candidates(location) if path.exists()), None)

    def missing(self, location: str) -> str:
        """The sentence for a location that is nowhere."""
        looked = [str(path) for path in self._candidates(location)]
        if not looked:
            return f"no data root is set, so `{location}` cannot be looked for"
        return f"{' and '.join(looked)} {'does' if len(looked) == 1 else 'do'} not exist"

    def _candidates(self, location: str) -> list[Path]:
        path = Path(location).expanduser()
        if path.is_absolute():
            return [path]
        # a user's card may be kept in `./tasks` and speak of the folder that one works in
        own = [] if self.card_folder is None else [self.card_folder, Path()]
        return [base / path for base in (*own, self.data_root) if base is not None]


@dataclass(frozen=True)
class Presence:
    """Whether a source can be opened: `here`, after a `download`, or `missing`; and why."""

    state: Literal["here", "download", "missing"]
    detail: str


@dataclass(frozen=True)
class Part:
    """The examples of one part of a source, in the source's order.

    Attributes:
        ids: stable, unique over all parts of the source.
        labels: (n,) int64 class numbers.
        fetch: row → the image: encoded bytes, its file, a decoded image, or None if it is absent.
        paths: where each image lies below the source, for sources of files; else empty.
    """

    ids: Sequence[str]
    labels: np.ndarray
    fetch: Callable[[int], Any]
    paths: Sequence[str] = ()


@dataclass(frozen=True)
class Listing:
    """All parts of a source and the names of its classes."""

    classes: tuple[str, ...]
    parts: Mapping[str, Part]


class AbstractSource(ABC):
    """One way to reach a data set; made without touching the disk."""

    @abstractmethod
    def presence(self) -> Presence:
        """Whether it can be opened; quick, and never over the network."""

    @abstractmethod
    def fingerprint(self) -> Any:
        """JSON that changes whenever the files do (path, size, modification time)."""

    @abstractmethod
    def listing(self) -> Listing:
        """Every example.

        Raises:
            SourceUnavailable: a download failed.
            UserError: the data is there but is not what it should be.
        """


def part_name(name: str) -> str | None:
    """Our name of a part (`train`, `validation`, `test`), or None if the name means none."""
    return _PART_NAMES.get(name.lower())


def file_fingerprint(paths: Iterable[Path]) -> list[list[str | int]]:
    """Path, size in bytes and modification time in ns of each file."""
    states = ((path, path.stat()) for path in sorted(paths))
    return [[str(path.resolve()), state.st_size, state.st_mtime_ns] for path, state in states]


def unique_ids(paths: Mapping[str, Sequence[str | None]]) -> dict[str, list[str]]:
    """Ids per part: the images' own paths if they tell all images apart, else part and row."""
    everything = [path for part in paths.values() for path in part]
    if all(everything) and len(set(everything)) == len(everything):
        return {name: [str(path) for path in part] for name, part in paths.items()}
    return {name: [f"{name}/{row:07d}" for row in range(len(part))] for name, part in paths.items()}


def encode_labels(
    values: Mapping[str, Sequence[Any]], names: Sequence[str] | None, *, origin: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names and class numbers per part.

    Args:
        values: per part, class numbers (with `names`) or strings or integers (without).
        names: the class names that the numbers point at; None: the sorted unique values.
        origin: what errors call the data.

    Raises:
        UserError: a label is missing, or points past the names.
    """
    for name, part in values.items():
        blank = sum(value is None or value == "" for value in part)
        if blank:
            raise UserError(
                f"{origin} cannot be used.", f"{blank} examples of its part `{name}` have no label."
            )
    if names is None:
        unique = sorted({value for part in values.values() for value in part})
        number = {value: index for index, value in enumerate(unique)}
        return tuple(str(value) for value in unique), {
            name: np.array([number[value] for value in part], dtype=np.int64)
            for name, part in values.items()
        }
    encoded = {name: np.asarray(part, dtype=np.int64) for name, part in values.items()}
    for name, labels in encoded.items():
        wrong = labels[(labels < 0) | (labels >= len(names))]
        if len(wrong):
            raise UserError(
                f"{origin} cannot be used.",
                f"Its part `{name}` holds the label {wrong[0]}; there are {len(names)} classes.",
                "Labels of -1 mean that this part was published without labels.",
            )
    return tuple(names), encoded


@dataclass(frozen=True)
class Columns:
    """The columns to read: of images, of labels, and the names of the classes if they are known."""

    image: str
    label: str
    names: tuple[str, ...] | None


def find_columns(
    types: Mapping[str, str],
    features: Mapping[str, Any],
    *,
    image: str | None,
    label: str | None,
    origin: str,
) -> Columns:
    """Choose the image and the label column.

    Image: the card's, else the first feature of type Image, else the first column that is a struct
    of bytes and path or is binary. Label: the card's, else the first ClassLabel among
    LABEL_COLUMNS, else the first column of strings or integers among them.

    Args:
        types: column → `image`, `binary`, `string`, `integer` or `other`, in the table's order.
        features: column → its Hugging Face feature, where known.
        image, label: the card's own choice.
        origin: what errors call the data.

    Raises:
        UserError: there is no such column; those that are there are named.
    """
    for kind, chosen in (("image", image), ("label", label)):
        if chosen is not None and chosen not in types:
            close = nearest(chosen, types)
            raise UserError(
                f"{origin} has no column `{chosen}`, which the card gives as its {kind}.",
                f"Its columns: {', '.join(types)}.",
                f"Did you mean {' or '.join(close)}?"
                if close
                else f"Change `{kind}:` in the card.",
            )
    images = [name for name in types if _feature_type(features, name) == "Image"]
    images += [name for name, kind in types.items() if kind in ("image", "binary")]
    if image is None and not images:
        raise UserError(
            f"{origin} has no column of images.",
            f"Its columns: {', '.join(types)}.",
            "Name it in the card: `image: COLUMN`.",
        )
    usual = [name for name in LABEL_COLUMNS if name in types]
    labels = [name for name in usual if _feature_type(features, name) == "ClassLabel"]
    labels += [name for name in usual if types[name] in ("string", "integer")]
    if label is None and not labels:
        raise UserError(
            f"{origin} has no column of labels.",
            f"Its columns: {', '.join(types)}; looked for: {', '.join(LABEL_COLUMNS)}.",
            "Name it in the card: `label: COLUMN`.",
        )
    chosen_label = label or labels[0]
    names = None
    if _feature_type(features, chosen_label) == "ClassLabel":
        names = tuple(features[chosen_label]["names"])
    return Columns(image or images[0], chosen_label, names)


def schema_features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The Hugging Face features that a Parquet schema carries, or nothing."""
    text = (metadata or {}).get(b"huggingface")
    return json.loads(text)["info"]["features"] if text else {}


def _feature_type(features: Mapping[str, Any], name: str) -> str:
    feature = features.get(name)
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""

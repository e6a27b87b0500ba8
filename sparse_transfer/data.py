"""A task card becomes data: train, validation and test examples with frozen, hashed splits.

    task = data.open_task(TaskRef(name="digits"), data_root=None, cache=Path("cache"))
    images = data.Images(task.train, preprocess, (mean, std), cache, "flip")
    batch = data.batch(images, [3, 1, 4], train=True, seed=0, epoch=2)

`split_hash` needs neither torch nor a decoded image. What an image becomes is in `images.py`.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from filelock import FileLock
from PIL import Image

from sparse_transfer import label_lists, plugins, splits
from sparse_transfer.cards import TaskCard, card
from sparse_transfer.cards import names as cards
from sparse_transfer.config import TaskRef
from sparse_transfer.decoding import DamagedImage, decode
from sparse_transfer.errors import UserError
from sparse_transfer.examples import AbstractSource, Part, Place, Presence, SourceUnavailable
from sparse_transfer.file_lists import ListedSource
from sparse_transfer.images import Images, Stats, batch, statistics
from sparse_transfer.partition import Pool, check, divide, own_validation, reduce
from sparse_transfer.store import canonical_json, digest, read_json, write_json

__all__ = [
    "Availability",
    "Images",
    "Split",
    "Stats",
    "Task",
    "availability",
    "batch",
    "card",
    "cards",
    "open_task",
    "split_hash",
    "statistics",
]

_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, eq=False)
class Split:
    """One part of a task: `n` listed examples.

    Attributes:
        name: `train`, `validation` or `test`.
        ids: (n,) str, unique in the task.
        labels: (n,) int64 class numbers.
        hflip: whether a mirrored image keeps its class (from the card).
        key: hash of the ids, the labels and the state of the files: names caches.
        skipped: id → reason of the images that could not be decoded, filled when `Images` decodes
            them. They stay listed here and in the split hash; `Images` leaves them out.
        accepted: id → all of its right classes, where the card has `label_lists`; else None.
    """

    name: str
    ids: np.ndarray
    labels: np.ndarray
    hflip: bool
    key: str
    skipped: dict[str, str]
    accepted: Mapping[str, label_lists.Classes] | None
    _pieces: tuple[tuple[Part, np.ndarray], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def decoded(self, row: int) -> Image.Image:
        """The image of one example as 8-bit RGB.

        Raises:
            DamagedImage: it cannot be decoded; the message is the reason.
        """
        return decode(lambda: self._raw(row))

    def image(self, row: int) -> Image.Image:
        """As `decoded`, for showing it.

        Raises:
            UserError: it cannot be decoded.
        """
        try:
            return self.decoded(row)
        except DamagedImage as error:
            raise UserError(
                f"The image {self.ids[row]} cannot be used.", f"It is {error}."
            ) from error

    def _raw(self, row: int) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        for part, rows in self._pieces:
            if row < len(rows):
                return part.fetch(int(rows[row]))
            row -= len(rows)
        raise AssertionError("pieces do not add up to the ids")


@final
@dataclass(frozen=True, eq=False)
class Task:
    """An opened task.

    Attributes:
        card: what it is.
        classes: the names of its classes; a label is an index into them.
        train, validation, test: its examples; validation is empty unless asked for.
        split_hash: identifies the examples of all three parts. Results join on it.
        source: which of the card's sources was opened, and where.
    """

    card: TaskCard
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    split_hash: str
    source: str

    @property
    def skipped(self) -> dict[str, int]:
        """`PART: reason` → number of images left out, over the images decoded so far."""
        parts = (self.train, self.validation, self.test)
        return dict(
            Counter(f"{part.name}: {reason}" for part in parts for reason in part.skipped.values())
        )


@dataclass(frozen=True)
class Availability:
    """Whether one source of a card can be opened here."""

    source: str
    presence: Presence


def availability(task: TaskCard, data_root: Path | None) -> list[Availability]:
    """For each source of a card, in order: is it here, could it be fetched, or why not.

    Quick and offline: nothing is downloaded or decoded.
    """
    return [
        Availability(title, source.presence())
        for title, source in _sources(task, _place(task, data_root))
    ]


def open_task(ref: TaskRef, *, data_root: Path | None, cache: Path) -> Task:
    """Find the data of a task and split it.

    Sources that are on this machine are preferred, in the card's order; then those that may be
    downloaded. The splits are a function of the card and of `ref`, never of a run's seed.

    Args:
        ref: the task and how much of it to use.
        data_root: where data sets lie, or None.
        cache: the folder for what is computed once.

    Raises:
        UserError: no source is available (each is named with its reason and the manual route), or
            the data differs from its card, or a part or class is empty.
    """
    found = card(ref.name)
    title, source = _choose(found, data_root, cache)
    _log.debug("task %s from %s", found.name, title)
    return _open(found, ref, title, source)


def split_hash(ref: TaskRef, data_root: Path | None, cache: Path) -> str:
    """The hash of a task's frozen splits, as `open_task` gives it.

    Kept in `cache` under the state of the files (path, size, modification time), so that the
    second call reads no data.

    Raises:
        UserError: as `open_task`.
    """
    found = card(ref.name)
    title, source = _choose(found, data_root, cache)
    state = {
        "card": found.model_dump(mode="json"),
        "ref": ref.model_dump(mode="json", exclude={"name"}),
        "files": source.fingerprint(),
    }
    path = cache / "splits" / f"{digest(state)}.json"
    if path.is_file():
        return read_json(path)["split_hash"]
    value = _open(found, ref, title, source).split_hash
    write_json(path, {"task": found.name, "source": title, "split_hash": value})
    return value


def _place(task: TaskCard, data_root: Path | None) -> Place:
    switches = ("SPARSE_TRANSFER_OFFLINE", "HF_HUB_OFFLINE")
    offline = any(
        os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in switches
    )
    return Place(data_root, task.folder, online=not offline)


def _sources(task: TaskCard, place: Place) -> Iterator[tuple[str, AbstractSource]]:
    for spec in task.sources:
        source = plugins.load("source", spec.kind)(spec, task, place)
        yield spec.title, ListedSource(source, spec, place) if spec.lists else source


def _choose(task: TaskCard, data_root: Path | None, cache: Path) -> tuple[str, AbstractSource]:
    """The first source that is here; else the first that can be downloaded."""
    tried = [
        (title, source, source.presence())
        for title, source in _sources(task, _place(task, data_root))
    ]
    for title, source, presence in tried:
        if presence.state == "here":
            return f"{title} ({presence.detail})", source
    reasons = {title: presence.detail for title, _, presence in tried}
    for title, source, presence in tried:
        if presence.state == "download":
            try:
                cache.mkdir(parents=True, exist_ok=True)
                _log.info("fetching the data of task %s: %s %s", task.name, title, presence.detail)
                with FileLock(cache / "download.lock"):
                    source.listing()
                return title, source
            except SourceUnavailable as error:
                reasons[title] = str(error)
    raise UserError(
        f"The data of task `{task.name}` is not available.",
        "\n".join(f"  {title}: {reason}" for title, reason in reasons.items()),
        task.by_hand or "Give the folder that holds it: --data-root or SPARSE_TRANSFER_DATA.",
    )


def _open(task: TaskCard, ref: TaskRef, title: str, source: AbstractSource) -> Task:
    try:
        listing = source.listing()
    except SourceUnavailable as error:
        raise UserError(f"The data of task `{task.name}` is not available.", str(error)) from error
    if task.classes is not None and len(listing.classes) != task.classes:
        raise UserError(
            f"The data of task `{task.name}` differs from its card.",
            f"{title} has {len(listing.classes)} classes; the card says {task.classes}.",
            "Check that this is the right data; a subset needs a card of its own name.",
        )
    train, test = divide(task, listing.parts, title)
    if task.label_lists is not None:
        lists = label_lists.accepted(task.label_lists, test.ids.tolist())
        test = test.where(label_lists.usable(test.ids.tolist(), lists))
    _check_sizes(task, title, len(train), len(test))
    check(task, listing.classes, train, test)
    train, validation = reduce(task, ref, train, own_validation(task, listing.parts, title))
    return _task(task, title, source, listing.classes, train, validation, test)


def _check_sizes(task: TaskCard, title: str, train: int, test: int) -> None:
    """The card's numbers of images, as far as it states them."""
    if task.sizes is None:
        return
    wanted = task.sizes
    if wanted.train not in (None, train) or wanted.test != test:
        train_said = "" if wanted.train is None else f"{wanted.train:,} and "
        raise UserError(
            f"The data of task `{task.name}` differs from its card.",
            f"{title} has {train:,} training and {test:,} test images; the card says "
            f"{train_said}{wanted.test:,}{'' if train_said else ' test images'}.",
            "A subset never passes for the whole: write a card of another name for it.",
        )


def _task(
    task: TaskCard,
    title: str,
    source: AbstractSource,
    classes: tuple[str, ...],
    train: Pool,
    validation: Pool,
    test: Pool,
) -> Task:
    header: dict[str, Any] = {
        "task": task.name,
        "version": task.version,
        "rule": task.split.identity(),
    }
    lists = None
    if task.label_lists is not None:
        lists = label_lists.accepted(task.label_lists, test.ids.tolist())
        header["label_lists"] = digest(lists)
    pools = {"train": train, "validation": validation, "test": test}
    parts = [(name, pool.ids.tolist(), pool.labels) for name, pool in pools.items()]
    value = splits.split_digest(canonical_json(header).encode(), parts)
    files = canonical_json(source.fingerprint()).encode()
    made = {
        name: Split(
            name=name,
            ids=pool.ids,
            labels=pool.labels,
            hflip=task.hflip,
            key=splits.split_digest(files, [part]),
            skipped={},
            accepted=lists if name == "test" else None,
            _pieces=pool.pieces,
        )
        for (name, pool), part in zip(pools.items(), parts, strict=True)
    }
    return Task(task, classes, made["train"], made["validation"], made["test"], value, title)

"""A source's parts become training, validation and test pools, by the rules of the card.

Which rows each rule takes is in `splits.py`; here they are applied, checked and reported.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sparse_transfer import splits
from sparse_transfer.cards import TaskCard
from sparse_transfer.config import TaskRef
from sparse_transfer.errors import UserError
from sparse_transfer.examples import Part


@dataclass(frozen=True)
class Pool:
    """Rows of a source before they are named: pieces of parts, in order."""

    pieces: tuple[tuple[Part, np.ndarray], ...] = ()
    ids: np.ndarray = field(init=False)
    labels: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        ids = [np.asarray(part.ids, dtype=str)[rows] for part, rows in self.pieces]
        labels = [part.labels[rows] for part, rows in self.pieces]
        object.__setattr__(self, "ids", np.concatenate(ids) if ids else np.zeros(0, dtype=str))
        object.__setattr__(
            self, "labels", np.concatenate(labels) if labels else np.zeros(0, np.int64)
        )

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, chosen: np.ndarray) -> Pool:
        """The rows for which `chosen`, (n,) bool, is true."""
        starts = np.cumsum([0, *(len(rows) for _, rows in self.pieces)])
        kept = [
            (part, rows[chosen[start : start + len(rows)]])
            for (part, rows), start in zip(self.pieces, starts, strict=False)
        ]
        return Pool(tuple((part, rows) for part, rows in kept if len(rows)))


def divide(task: TaskCard, parts: Mapping[str, Part], title: str) -> tuple[Pool, Pool]:
    """The training and the test pool by the card's rule, before any subset is taken.

    Raises:
        UserError: the source lacks a part, or has several where the rule cuts one.
    """
    if task.split.rule in ("official", "merge"):
        return _named(task, parts, title)
    return _cut(task, parts, title)


def check(task: TaskCard, classes: tuple[str, ...], train: Pool, test: Pool) -> None:
    """Ids are unique, no part is empty, and no class lacks images unless the card allows it.

    Raises:
        UserError: otherwise.
    """
    ids = np.concatenate([train.ids, test.ids])
    if len(np.unique(ids)) != len(ids):
        raise UserError(f"Task `{task.name}` lists an example twice.", "Its ids are not unique.")
    for name, pool in (("training", train), ("test", test)):
        if len(pool):
            _check_classes(task, classes, name, pool.labels)
        elif name == "test" or not _is_test_only(task):
            raise UserError(f"Task `{task.name}` has no {name} images.")


def own_validation(task: TaskCard, parts: Mapping[str, Part], title: str) -> Pool | None:
    """The source's validation part, where the card's rule names one.

    Raises:
        UserError: the source has no such part.
    """
    name = task.split.validation
    if name is None:
        return None
    if name not in parts:
        raise UserError(
            f"Task `{task.name}` lacks its part {name}.",
            f"{title} has the parts: {', '.join(parts)}.",
            "Leave `validation` out of the card's `split`, or correct the name.",
        )
    return Pool((_whole(parts[name]),))


def reduce(task: TaskCard, ref: TaskRef, train: Pool, own: Pool | None = None) -> tuple[Pool, Pool]:
    """The frozen subset of `train_images`, and the frozen validation share of it.

    Args:
        own: the source's validation part, which is then the validation part as it is.

    Raises:
        UserError: there are not as many images as asked for, or a class would lose its last one.
    """
    if ref.train_images is not None and ref.train_images != len(train):
        train = _subset(task, ref.train_images, train)
    if own is not None:
        return train, own
    if not ref.validation:
        return train, Pool()
    total = round(len(train) * ref.validation)
    if not total:
        raise UserError(
            f"Task `{task.name}`: a validation share of {ref.validation} was asked for.",
            f"Of {len(train)} training images that is none.",
        )
    chosen = _choose(task, "validation", train, total)
    held_out = np.isin(np.arange(len(train)), chosen)
    return train.where(~held_out), train.where(held_out)


def _named(task: TaskCard, parts: Mapping[str, Part], title: str) -> tuple[Pool, Pool]:
    rule = task.split
    needed = {rule.test} if _is_test_only(task) else {rule.train, rule.test}
    if missing := sorted(needed - parts.keys()):
        raise UserError(
            f"Task `{task.name}` lacks its part{'s' * (len(missing) > 1)} {', '.join(missing)}.",
            f"{title} has the parts: {', '.join(parts)}.",
            "Say which part is which, `split: {train: NAME, test: NAME}`, or cut one pool into "
            "two, `split: {stratified: {test: 0.2}}`.",
        )
    names = [] if _is_test_only(task) else [rule.train]
    if rule.rule == "merge" and "validation" in parts and rule.test != "validation":
        names.append("validation")
    return Pool(tuple(_whole(parts[name]) for name in names)), Pool((_whole(parts[rule.test]),))


def _cut(task: TaskCard, parts: Mapping[str, Part], title: str) -> tuple[Pool, Pool]:
    rule = task.split
    if len(parts) != 1:
        raise UserError(
            f"Task `{task.name}` cannot be split by the rule `{rule.rule}`.",
            f"{title} already has the parts: {', '.join(parts)}; the rule cuts one pool.",
            "Use `split: official`, or choose the part to cut in the source: `parts: {all: NAME}`.",
        )
    pool = Pool((_whole(next(iter(parts.values()))),))
    if rule.rule == "alternate":
        in_train = np.arange(len(pool)) % 2 == 0
    elif rule.rule == "first_per_class":
        in_train = splits.first_per_class(pool.labels, rule.per_class or 0)
    else:
        total = round(len(pool) * (rule.test_share or 0))
        chosen = _choose(task, "test", pool, total)
        in_train = ~np.isin(np.arange(len(pool)), chosen)
    return pool.where(in_train), pool.where(~in_train)


def _choose(task: TaskCard, purpose: str, pool: Pool, total: int) -> np.ndarray:
    """Rows that go to another part; by content, every class gives one at least."""
    ids = pool.ids.tolist()
    if task.split.by == "id":
        return splits.stratified(task.name, purpose, ids, pool.labels, total, leave=1)
    order = splits.content_order(purpose, content_digests(pool))
    return splits.stratified(
        task.name, purpose, ids, pool.labels, total, at_least=1, leave=1, order=order
    )


def content_digests(pool: Pool) -> list[bytes]:
    """SHA-256 of what each example is stored as; of the pixels, where it is stored as an image."""
    return [_content(part.fetch(int(row))) for part, rows in pool.pieces for row in rows]


def _content(raw: Any) -> bytes:
    if isinstance(raw, Path):
        state = raw.stat()
        return _file_content(raw, state.st_size, state.st_mtime_ns)
    if isinstance(raw, bytes) or raw is None:
        return hashlib.sha256(raw or b"").digest()
    return hashlib.sha256(f"{raw.mode} {raw.size} ".encode() + raw.tobytes()).digest()


@functools.lru_cache(maxsize=1 << 20)
def _file_content(path: Path, size: int, modified: int) -> bytes:
    """Kept while the file's state is the same: a task is opened once for every run."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _subset(task: TaskCard, size: int, train: Pool) -> Pool:
    present = len(np.unique(train.labels))
    if not present <= size <= len(train):
        raise UserError(
            f"Task `{task.name}`: {size:,} training images were asked for.",
            f"It has {len(train):,} of {present} classes, and each class needs one.",
            "Leave `train_images` out to use them all." if size > len(train) else "",
        )
    order = None
    if task.split.by == "content":
        order = splits.content_order("train_images", content_digests(train))
    chosen = splits.stratified(
        task.name, "train_images", train.ids.tolist(), train.labels, size, at_least=1, order=order
    )
    return train.where(np.isin(np.arange(len(train)), chosen))


def _is_test_only(task: TaskCard) -> bool:
    return task.sizes is not None and task.sizes.train == 0


def _check_classes(task: TaskCard, classes: tuple[str, ...], name: str, labels: np.ndarray) -> None:
    if task.empty_classes:
        return
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty):
        shown = ", ".join(classes[index] for index in empty[:5]) + (" …" if len(empty) > 5 else "")
        raise UserError(
            f"Task `{task.name}` has classes without {name} images.",
            f"{len(empty)} of {len(classes)}: {shown}.",
            "Remove them from the data, or say `empty_classes: true` in the card.",
        )


def _whole(part: Part) -> tuple[Part, np.ndarray]:
    return part, np.arange(len(part.labels))

"""Frozen splits: which examples train, validate and test, as a function of the card alone.

Every choice ranks examples by a hash of the task's name and the example's id. It depends on no
seed of a run, on no random stream, and not on the order of the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from sparse_transfer.errors import UserError


def frozen_order(task: str, purpose: str, ids: Sequence[str]) -> np.ndarray:
    """(n,) int64: rows in a fixed pseudo-random order; a part of `ids` keeps its relative order."""
    prefix = f"{task}/{purpose}/".encode()
    keys = [hashlib.sha256(prefix + str(name).encode()).digest() for name in ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def content_order(purpose: str, digests: Sequence[bytes]) -> np.ndarray:
    """(n,) int64: as `frozen_order`, by the examples' content alone; equal content stays together.

    Args:
        purpose: tells the choices of one task apart.
        digests: of the examples' bytes.
    """
    keys = [hashlib.sha256(f"{purpose}/".encode() + digest).digest() for digest in digests]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def shares(counts: np.ndarray, total: int, most: np.ndarray | None = None) -> np.ndarray:
    """Split `total` over classes in proportion to `counts`, exactly, by largest remainder.

    Args:
        counts: (k,) int, examples of each class.
        total: at most the sum of `most`.
        most: (k,) int, the most that a class may give (default: `counts`).

    Returns:
        (k,) int, adding up to `total`; ties go to the larger class, then to the lower number.
    """
    most = counts if most is None else most
    exact = counts * (total / max(int(counts.sum()), 1))
    given = np.minimum(np.floor(exact).astype(np.int64), most)
    while (missing := total - int(given.sum())) > 0:
        room = np.flatnonzero(given < most)
        order = np.lexsort((room, -counts[room], -(exact - given)[room]))
        given[room[order[:missing]]] += 1
    return given


def stratified(
    task: str,
    purpose: str,
    ids: Sequence[str],
    labels: np.ndarray,
    total: int,
    *,
    at_least: int = 0,
    leave: int = 0,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Rows of a frozen stratified choice of exactly `total` examples, ascending.

    Args:
        task: the task's name.
        purpose: tells the choices of one task apart.
        ids: (n,) stable ids.
        labels: (n,) int class numbers.
        total: number of rows to choose.
        at_least: rows that every class that has any gets, before shares are computed.
        leave: rows that must remain in every class that has any.
        order: (n,) rows, those to choose first; None takes `frozen_order`.

    Raises:
        UserError: these conditions leave no room for `total` rows.
    """
    classes, numbers = np.unique(labels, return_inverse=True)
    counts = np.bincount(numbers, minlength=len(classes)).astype(np.int64)
    most, least = np.maximum(counts - leave, 0), np.minimum(counts, at_least)
    if not int(least.sum()) <= total <= int(most.sum()):
        raise UserError(
            f"{total} examples of task `{task}` cannot be chosen for {purpose}.",
            f"It has {len(labels)} examples in {len(classes)} classes, so between "
            f"{int(least.sum())} and {int(most.sum())} are possible.",
        )
    quota = least + shares(counts - least, total - int(least.sum()), most - least)
    if order is None:
        order = frozen_order(task, purpose, ids)
    chosen = [order[numbers[order] == index][:wanted] for index, wanted in enumerate(quota)]
    return np.sort(np.concatenate(chosen)) if chosen else np.zeros(0, np.int64)


def first_per_class(labels: np.ndarray, per_class: int) -> np.ndarray:
    """(n,) bool: whether a row is among the first `per_class` of its class."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[:per_class]] = True
    return chosen


def split_digest(header: bytes, parts: Sequence[tuple[str, Sequence[str], np.ndarray]]) -> str:
    """SHA-256 over a header and the name, ids and labels of each part, in hex."""
    state = hashlib.sha256(header)
    for name, ids, labels in parts:
        state.update(f"\n{name} {len(ids)}\n".encode())
        state.update("\n".join(str(example) for example in ids).encode())
        state.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    return state.hexdigest()

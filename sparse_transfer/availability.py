"""Which tasks can be used here: where their data lies, whether it is what the card says, else how
to get it. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparse_transfer import data
from sparse_transfer.config import TaskRef
from sparse_transfer.errors import UserError


@dataclass(frozen=True)
class TaskState:
    """One task on this machine.

    Attributes:
        state: `here`; `broken` where data is here but cannot be what the card says; `download`
            where the first use would fetch it; `missing`.
        found: what there is, or for every source why there is nothing.
        manual: how to get the data by hand; empty where it is here.
    """

    name: str
    state: Literal["here", "broken", "download", "missing"]
    found: tuple[str, ...]
    manual: str = ""


def survey(names: Iterable[str], data_root: Path | None, cache: Path) -> list[TaskState]:
    """The state of every task; data that is here is listed (no image is decoded) and compared."""
    return [_state(name, data_root, cache) for name in names]


def _state(name: str, data_root: Path | None, cache: Path) -> TaskState:
    try:
        card = data.card(name)
    except UserError as error:
        return TaskState(name, "broken", (str(error),))
    sources = data.availability(card, data_root)
    states = [one.presence.state for one in sources]
    if "here" in states:
        first = sources[states.index("here")]
        try:
            data.split_hash(TaskRef(name=name), data_root, cache)
        except UserError as error:
            return TaskState(name, "broken", (error.why or error.what,), card.by_hand)
        return TaskState(name, "here", (f"{first.source}: {first.presence.detail}",))
    reasons = tuple(f"{one.source}: {one.presence.detail}" for one in sources)
    state = "download" if "download" in states else "missing"
    return TaskState(name, state, reasons, card.by_hand)

"""What every stage needs beside its run: accelerator, folders, progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class Progress(Protocol):
    """Shows how far a run is; a bar on a terminal, plain lines in a log."""

    def update(self, what: str, done: int, total: int) -> None: ...
    def done(self) -> None: ...


class Silent:
    """Shows nothing."""

    def update(self, what: str, done: int, total: int) -> None:
        """Ignore it."""

    def done(self) -> None:
        """Ignore it."""


@dataclass(frozen=True)
class Context:
    """Attributes:
    accelerator: the one Accelerator of this process.
    data_root: where local data sets lie, or None.
    cache: decoded images and features.
    progress: where to report it.
    debug: let unexpected errors through.
    """

    accelerator: Accelerator
    data_root: Path | None
    cache: Path
    progress: Progress = field(default_factory=Silent)
    debug: bool = False

    def agreed(self, question: Callable[[], T]) -> T:
        """The answer of process 0, on every process."""
        if self.accelerator.num_processes == 1:
            return question()
        from accelerate.utils import broadcast_object_list

        answer = [question() if self.accelerator.is_main_process else None]
        return broadcast_object_list(answer)[0]  # type: ignore[return-value]

"""Logging and progress on the console: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time

_LINE_EVERY = 30.0  # seconds between progress lines in a log


def set_up_logging(verbose: bool, quiet: bool) -> None:
    """Send the library's log to standard error: coloured on a terminal, with times in a file."""
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logger = logging.getLogger("sparse_transfer")
    logger.setLevel(level)
    logger.handlers.clear()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, show_time=False, markup=False
        )
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S")
        )
    logger.addHandler(handler)


def progress() -> _Bar | _Lines:
    """A rich bar if standard error is a terminal, plain lines otherwise."""
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Bar:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        self._make = lambda: Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress = None
        self._tasks: dict[str, int] = {}

    def update(self, what: str, done: int, total: int) -> None:
        if self._progress is None:
            self._progress = self._make()
            self._progress.start()
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)  # type: ignore[arg-type]

    def done(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}


class _Lines:
    def __init__(self) -> None:
        self._last = time.monotonic()

    def update(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last >= _LINE_EVERY:
            self._last = now
            logging.getLogger(__name__).info("    %s: %d of %d", what, done, total)

    def done(self) -> None:
        self._last = time.monotonic()

"""SIGTERM and SIGUSR1 stop a run after its current step; the same command goes on later."""

from __future__ import annotations

import signal
from types import FrameType

from sparse_transfer.errors import StopRequested

_received: list[int] = []  # the one place where the operating system tells us something


def listen() -> None:
    """Catch the two signals from now on (called once by the command line)."""
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows knows no SIGUSR1
            signal.signal(getattr(signal, name), _remember)


def received() -> bool:
    """Whether one of the signals has arrived in this process since `listen`."""
    return bool(_received)


def name() -> str:
    """The signal that arrived first, or that it was another process which got one."""
    return signal.Signals(_received[0]).name if _received else "a signal to another process"


def raise_if_stopped() -> None:
    """Raise StopRequested if one of the signals has arrived since `listen`."""
    if received():
        raise StopRequested(name())


def _remember(number: int, frame: FrameType | None) -> None:
    _received.append(number)

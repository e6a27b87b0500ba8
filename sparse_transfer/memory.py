"""The memory of this process: its peak, and large blocks kept for reuse."""

from __future__ import annotations

import ctypes
from pathlib import Path

import psutil

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Start a new peak measurement; where the system cannot, `peak` stays that of the process."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak() -> int:
    """Bytes: the largest resident set since `reset_peak`, on systems that report one."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return psutil.Process().memory_info().rss


def keep_freed_blocks() -> None:
    """Make glibc keep freed memory for the next allocation instead of returning it at once.

    Activations are allocated and freed at every step; given back to the system, each page of them
    is zeroed and mapped again at the next step, which costs up to half the time of a training on
    a CPU. A no-op with another C library.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    largest = 2**31 - 1
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, largest)


def release_freed_blocks() -> None:
    """Give what is free back to the system, between two runs; a no-op with another C library."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return

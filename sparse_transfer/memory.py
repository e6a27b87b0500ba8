"""Peak resident memory of this process, resettable where Linux allows it."""

from __future__ import annotations

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

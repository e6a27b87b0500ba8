"""The working memory of programs."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from sparse_transfer.sparse.library import Library

HUGE = 2**21  # bytes of a huge page


class _Arenas(threading.local):
    """Working memory, one block for each Python thread, kept from call to call."""

    memory: Tensor | None = None


_ARENAS = _Arenas()


def clear() -> None:
    """Fill this thread's working memory with zeros, before times are taken.

    What other programs left there may be denormal numbers in another type, which are slow.
    """
    if _ARENAS.memory is not None:
        with torch.inference_mode():  # where it may have been made
            _ARENAS.memory.zero_()


def address(library: Library, floats: int) -> int:
    """The address of that much working memory, at the beginning of a huge page."""
    bytes_ = floats * 4 + HUGE
    if _ARENAS.memory is None or _ARENAS.memory.numel() < bytes_:
        _ARENAS.memory = None  # the old one first
        _ARENAS.memory = torch.zeros(bytes_ + HUGE, dtype=torch.uint8)
        start = -(-_ARENAS.memory.data_ptr() // HUGE) * HUGE
        library.handle.sparse_advise(start, bytes_ // HUGE * HUGE)
    return -(-_ARENAS.memory.data_ptr() // HUGE) * HUGE

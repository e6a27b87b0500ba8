"""Memory that lives from a forward to its backward pass, used again instead of being freed.

Fresh memory of hundreds of megabytes would cost a step as much as its arithmetic: the system clears
every page before it hands it out.
"""

from __future__ import annotations

import threading
import weakref
from typing import final

import numpy as np
import torch
from torch import Tensor

from sparse_transfer.sparse.arena import HUGE
from sparse_transfer.sparse.library import Library


@final
class SavedMemory:
    """Lends memory; one block that came back is kept, the largest."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._free: np.ndarray | None = None
        # a collection of garbage within `take` may give another block back, in the same thread
        self._lock = threading.RLock()

    def take(self, floats: int) -> Tensor:
        """(at least `floats`,) float32, not initialised; comes back when nothing refers to it."""
        with self._lock:
            block, self._free = self._free, None
        if block is None or len(block) < floats:
            block = self._allocate(floats)
        lent = block[:floats]
        weakref.finalize(lent, self._give_back, block).atexit = False
        return torch.from_numpy(lent)

    def _give_back(self, block: np.ndarray) -> None:
        with self._lock:
            if self._free is None or len(self._free) < len(block):
                self._free = block

    def _allocate(self, floats: int) -> np.ndarray:
        bytes_ = -(-(4 * floats) // HUGE) * HUGE
        raw = np.empty(bytes_ + HUGE, dtype=np.uint8)
        skip = -raw.ctypes.data % HUGE
        block = raw[skip : skip + bytes_].view(np.float32)
        self._library.handle.sparse_advise(block.ctypes.data, bytes_)
        return block

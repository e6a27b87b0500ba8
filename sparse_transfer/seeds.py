"""Sub-seeds by name, so that no two uses of a run's seed ever share a random stream."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed that is a function of `seed` and `names` alone.

    `derive(0, "augment", 3)` is the augmentation stream of epoch 3 of run seed 0. The same on
    every machine and process, which is what makes a resumed run equal an uninterrupted one.
    """
    text = "/".join([str(int(seed)), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

"""Data sets that need no file: scikit-learn's handwritten digits and drawn shapes and textures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import numpy as np

from sparse_transfer import drawing
from sparse_transfer.cards import SourceSpec, TaskCard
from sparse_transfer.errors import unknown_name
from sparse_transfer.examples import AbstractSource, Listing, Part, Place, Presence


def digits() -> Listing:
    """1,797 real scans of handwritten digits, 8×8 grey, in one pool of parts.

    Source: the test part of Alpaydin and Kaynak's "Optical Recognition of Handwritten Digits"
    (UCI, 1998), as distributed with scikit-learn.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    names = tuple(str(number) for number in range(10))
    ids = [f"digit/{row:04d}" for row in range(len(pixels))]
    labels = bunch.target.astype(np.int64)
    return Listing(names, {"all": Part(ids, labels, lambda row: Image.fromarray(pixels[row]))})


def shapes() -> Listing:
    """6,000 + 1,000 drawn images of shape × fill, 32×32 (`drawing.shape`)."""
    return _drawn(drawing.SHAPE_CLASSES, drawing.shape, {"train": 6000, "test": 1000})


def textures() -> Listing:
    """500 + 1,000 drawn textures, 32×32 (`drawing.texture`)."""
    return _drawn(drawing.TEXTURE_CLASSES, drawing.texture, {"train": 500, "test": 1000})


def _drawn(
    classes: tuple[str, ...], draw: Callable[[int, int], np.ndarray], sizes: dict[str, int]
) -> Listing:
    """Parts of images drawn from their number; classes take turns."""
    parts, first = {}, 0
    for name, size in sizes.items():
        parts[name] = Part(
            ids=[f"{name}/{row:05d}" for row in range(size)],
            labels=np.arange(size, dtype=np.int64) % len(classes),
            fetch=_fetch(draw, first, len(classes)),
        )
        first += size
    return Listing(classes, parts)


def _fetch(
    draw: Callable[[int, int], np.ndarray], first: int, classes: int
) -> Callable[[int], Any]:
    from PIL import Image

    return lambda row: Image.fromarray(draw(row % classes, first + row))


# name → (listing, version of what it draws)
SETS: dict[str, tuple[Callable[[], Listing], int]] = {
    "digits": (digits, 1),
    "shapes": (shapes, drawing.VERSION),
    "textures": (textures, drawing.VERSION),
}


@final
class BuiltinSource(AbstractSource):
    """A set that the program itself brings."""

    def __init__(self, spec: SourceSpec, card: TaskCard, place: Place) -> None:
        if spec.location not in SETS:
            raise unknown_name("built-in data set", spec.location, SETS)
        self.spec = spec

    def presence(self) -> Presence:
        return Presence("here", "built in")

    def fingerprint(self) -> Any:
        return ["builtin", self.spec.location, SETS[self.spec.location][1]]

    def listing(self) -> Listing:
        return SETS[self.spec.location][0]()


def open_source(spec: SourceSpec, card: TaskCard, place: Place) -> AbstractSource:
    """The source of a card's entry `builtin: NAME`.

    Raises:
        UserError: there is no such set.
    """
    return BuiltinSource(spec, card, place)

"""Images drawn from a number: shapes with fills (an upstream task) and textures (a downstream one).

Every image is a function of its class and its number alone. What is class-defining (outline, fill
pattern, kind of texture) is mixed with much that is not: position, size, rotation, colours, light,
background clutter and noise, so that pixels by themselves say little about the class.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

VERSION = 1  # raised when any image changes
SIDE = 32  # pixels

OUTLINES = ("disc", "square", "triangle", "cross", "ring")
FILLS = ("plain", "stripes", "checks")
SHAPE_CLASSES = tuple(f"{fill} {outline}" for outline in OUTLINES for fill in FILLS)
TEXTURE_CLASSES = (
    "banded",
    "blotched",
    "bricked",
    "chequered",
    "dotted",
    "grid",
    "ringed",
    "spoked",
    "waved",
    "zigzag",
)

_AXIS = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
_X, _Y = np.meshgrid(_AXIS, _AXIS)
_SOFT = 2 / SIDE  # one pixel, the width of an anti-aliased edge


def shape(label: int, number: int) -> np.ndarray:
    """A filled shape on a cluttered background.

    Args:
        label: index into SHAPE_CLASSES.
        number: of the image; decides everything else.

    Returns:
        (32, 32, 3) uint8 RGB.
    """
    random = np.random.Generator(np.random.PCG64([1, number]))
    outline, fill = divmod(label, len(FILLS))
    image = _background(random)
    for _ in range(int(random.integers(1, 4))):
        image = _blend(image, _bar(random), _colour(random, 0.1, 0.7), 0.8)
    radius = _between(random, 0.55, 0.85)
    x, y = _frame(random, shift=0.9 - 0.9 * radius, turn=np.pi / 6, stretch=0.2)
    x, y = x / radius, y / radius
    inside = _mask(_OUTLINES[OUTLINES[outline]](x, y) * radius)[..., None]
    bright, middle = _colour(random, 0.65, 1.0), _colour(random, 0.35, 0.65)
    share = _FILLS[FILLS[fill]](x, y, random)[..., None]
    image = image * (1 - inside) + inside * (bright * (1 - share) + middle * share)
    return _finish(image, random, noise=0.05)


def texture(label: int, number: int) -> np.ndarray:
    """A texture that fills the image.

    Args:
        label: index into TEXTURE_CLASSES.
        number: of the image; decides everything else.

    Returns:
        (32, 32, 3) uint8 RGB.
    """
    random = np.random.Generator(np.random.PCG64([2, number]))
    x, y = _frame(random, shift=1.0, turn=np.pi / 4, stretch=0.2)
    share = _TEXTURES[TEXTURE_CLASSES[label]](x, y, random)[..., None]
    image = _colour(random, 0.0, 0.5) * (1 - share) + _colour(random, 0.5, 1.0) * share
    return _finish(image, random, noise=0.05)


def _between(random: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(random.random())


def _frame(
    random: np.random.Generator, *, shift: float, turn: float, stretch: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates after a random shift, rotation (at most `turn` radians) and stretch."""
    x, y = _X - _between(random, -shift, shift), _Y - _between(random, -shift, shift)
    angle = _between(random, -turn, turn)
    ratio = np.exp(_between(random, -stretch, stretch) / 2)
    cosine, sine = np.cos(angle), np.sin(angle)
    return (cosine * x + sine * y) * ratio, (cosine * y - sine * x) / ratio


def _colour(random: np.random.Generator, low: float, high: float) -> np.ndarray:
    return low + (high - low) * random.random(3)


def _background(random: np.random.Generator) -> np.ndarray:
    """A gradient between two colours in a random direction."""
    angle = _between(random, 0.0, 2 * np.pi)
    slope = 0.5 + 0.35 * (np.cos(angle) * _X + np.sin(angle) * _Y)
    first, second = _colour(random, 0.0, 0.4), _colour(random, 0.0, 0.4)
    return first * (1 - slope[..., None]) + second * slope[..., None]


def _bar(random: np.random.Generator) -> np.ndarray:
    """(32, 32) coverage of a thin bar across the image."""
    angle, offset = _between(random, 0.0, np.pi), _between(random, -0.9, 0.9)
    width = _between(random, 0.03, 0.12)
    return _mask(np.abs(np.cos(angle) * _X + np.sin(angle) * _Y - offset) - width)


def _mask(distance: np.ndarray) -> np.ndarray:
    """Coverage in [0, 1] from a signed distance, negative inside."""
    return np.clip(0.5 - distance / _SOFT, 0.0, 1.0)


def _blend(image: np.ndarray, mask: np.ndarray, colour: np.ndarray, strength: float) -> np.ndarray:
    share = strength * mask[..., None]
    return image * (1 - share) + colour * share


def _finish(image: np.ndarray, random: np.random.Generator, *, noise: float) -> np.ndarray:
    """Random contrast and light, noise, 8 bits."""
    image = 0.5 + (image - 0.5) * _between(random, 0.6, 1.0) + _between(random, -0.15, 0.15)
    grain = random.random((2, SIDE, SIDE, 3)).sum(axis=0) - 1.0  # triangular, sd 0.41
    image = image + grain * (noise / 0.41)
    return np.round(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)


def _polygon(x: np.ndarray, y: np.ndarray, sides: int) -> np.ndarray:
    """Signed distance (to the nearest side's line) of a regular polygon inscribed in radius 1."""
    angles = 2 * np.pi * np.arange(sides) / sides
    sides_distance = [np.cos(a) * x + np.sin(a) * y - np.cos(np.pi / sides) for a in angles]
    return np.max(sides_distance, axis=0)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    longest, shortest = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(longest - 0.95, shortest - 0.32)


_OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: np.hypot(x, y) - 0.85,
    "square": lambda x, y: _polygon(x, y, 4),
    "triangle": lambda x, y: _polygon(x / 1.2, y / 1.2, 3) * 1.2,
    "cross": _cross,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.25,
}


def _wave(coordinate: np.ndarray, sharp: float = 3.0) -> np.ndarray:
    """A soft square wave in [0, 1] with period 2π."""
    return np.clip(0.5 + sharp * 0.5 * np.sin(coordinate), 0.0, 1.0)


def _phase(random: np.random.Generator) -> float:
    return _between(random, 0.0, 2 * np.pi)


def _stripes(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _wave(_between(random, 5.5, 8.0) * x + _phase(random))


def _checks(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    rate = _between(random, 5.0, 6.5)
    return _wave_product(rate * x + _phase(random), rate * y + _phase(random))


def _wave_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 2.0 * np.sin(first) * np.sin(second), 0.0, 1.0)


_FILLS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "plain": lambda x, y, random: np.zeros_like(x),
    "stripes": _stripes,
    "checks": _checks,
}


def _banded(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _wave(_between(random, 6.0, 10.0) * x + _phase(random))


def _blotched(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    field = np.zeros_like(x)
    for _ in range(6):
        angle, rate = _phase(random), _between(random, 4.0, 9.0)
        field += np.sin(rate * (np.cos(angle) * x + np.sin(angle) * y) + _phase(random))
    return np.clip(0.5 + field, 0.0, 1.0)


def _bricked(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    rate = _between(random, 1.3, 2.0)
    row = y * rate + _between(random, 0.0, 1.0)
    column = x * rate * 0.55 + 0.5 * (np.floor(row) % 2) + _between(random, 0.0, 1.0)
    joint = np.minimum(_to_edge(row), _to_edge(column) / 0.55)
    return np.clip((joint - 0.1) * 8, 0.0, 1.0)


def _chequered(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    rate = _between(random, 4.0, 7.0)
    return _wave_product(rate * x + _phase(random), rate * y + _phase(random))


def _dotted(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    rate = _between(random, 1.2, 2.0)
    column, row = rate * x + _between(random, 0.0, 1.0), rate * y + _between(random, 0.0, 1.0)
    distance = np.hypot(column % 1.0 - 0.5, row % 1.0 - 0.5)
    return np.clip((0.3 - distance) * 8 + 0.5, 0.0, 1.0)


def _grid(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    rate = _between(random, 1.1, 1.8)
    column, row = rate * x + _between(random, 0.0, 1.0), rate * y + _between(random, 0.0, 1.0)
    return np.clip((np.minimum(_to_edge(column), _to_edge(row)) - 0.1) * 8, 0.0, 1.0)


def _ringed(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _wave(_between(random, 6.0, 12.0) * np.hypot(x, y) + _phase(random))


def _spoked(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return _wave(int(random.integers(6, 13)) * np.arctan2(y, x) + _phase(random))


def _waved(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    bend = _between(random, 0.9, 1.6) * np.sin(_between(random, 3.5, 6.0) * y + _phase(random))
    return _wave(_between(random, 6.0, 11.0) * x + bend + _phase(random))


def _zigzag(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> np.ndarray:
    teeth = _between(random, 1.0, 1.7) * y + _between(random, 0.0, 1.0)
    bend = _between(random, 4.0, 6.5) * np.abs(teeth % 1.0 - 0.5)
    return _wave(_between(random, 6.0, 11.0) * x + bend + _phase(random))


def _to_edge(cell: np.ndarray) -> np.ndarray:
    """Distance to the nearest whole number."""
    return np.abs((cell + 0.5) % 1.0 - 0.5)


_TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]] = {
    "banded": _banded,
    "blotched": _blotched,
    "bricked": _bricked,
    "chequered": _chequered,
    "dotted": _dotted,
    "grid": _grid,
    "ringed": _ringed,
    "spoked": _spoked,
    "waved": _waved,
    "zigzag": _zigzag,
}

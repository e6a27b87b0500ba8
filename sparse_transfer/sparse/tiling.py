"""How a convolution is cut into tiles and blocks of channels, before anything is measured."""

from __future__ import annotations

import itertools

from sparse_transfer.sparse.layout import Layout
from sparse_transfer.sparse.library import Library

FIRST_LEVEL = 32 * 1024  # bytes of a data cache that may be counted on
LONGEST, DENSE_GRADIENT = 28, 56  # positions of a row, and of a tile, of a dense gradient


def tiles(
    library: Library, count: tuple[int, int], step: int, *, is_gradient: bool = False
) -> list[tuple[int, int]]:
    """Heights and widths of tiles that a kernel has, those with least overhead first.

    Every non-zero costs a tile its positions and about two loads more, so fewer tiles are better.

    Args:
        count: outputs of a block.
        step: from one input to the next.
        is_gradient: to the non-zeros, whose tiles are others.
    """
    is_tall = step == 1 or (is_gradient and step == 2)
    tallest = library.max_height if is_tall else min(2, library.max_height)
    most = library.gradient_tile if is_gradient else library.max_tile
    found = {}
    for height, width in itertools.product(
        range(1, min(tallest, count[0]) + 1), range(1, min(library.max_width, count[1]) + 1)
    ):
        if height * width <= most:
            number = -(-count[0] // height) * -(-count[1] // width)
            found[height, width] = (number, height * width)
    return sorted(found, key=lambda tile: found[tile])


def blocks(source: Layout, tile: tuple[int, int], step: tuple[int, int], reach: tuple[int, int],
           cache: int = FIRST_LEVEL) -> int:  # fmt: skip
    """Into how many groups the input channels go, so that what a tile reads of one stays in cache.

    Args:
        reach: pixels beyond the first that a tap reads, in y and x.
        cache: bytes.
    """
    rows = (tile[0] - 1) * step[0] + reach[0] + 1
    columns = (tile[1] - 1) * step[1] + reach[1] + 1
    channels = max(4, cache // (rows * columns * 64))
    return -(-source.channels // channels)


def dense_tile(library: Library, width: int) -> tuple[int, int]:
    """The tile of a dense convolution over rows of that many outputs."""
    return 1, -(-width // -(-width // library.dense_width))


def dense_gradient_tile(count: tuple[int, int]) -> tuple[int, int]:
    """The tile of the gradient of a dense matrix: what a few rows of it read stays in cache."""
    width = -(-count[1] // -(-count[1] // LONGEST))
    return max(1, min(count[0], DENSE_GRADIENT // width)), width

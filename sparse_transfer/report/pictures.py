"""Pictures inside the page: small JPEGs as data addresses, each with a few lines of text."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SIDE = 112  # pixels of the longer side; they are shown at this size or smaller
_QUALITY = 78


@dataclass(frozen=True)
class Picture:
    """A thumbnail.

    Attributes:
        address: a `data:` address.
        title: what it is in words, for who cannot see it.
        lines: set below it.
    """

    address: str
    title: str
    lines: tuple[str, ...]


def thumbnail(image: Image.Image) -> str:
    """A JPEG of at most `SIDE` pixels as a data address; tiny images are enlarged by whole pixels.

    Args:
        image: 8-bit RGB.
    """
    from PIL import Image as pil

    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    times = SIDE // max(small.size)
    if times > 1:
        small = small.resize((times * small.width, times * small.height), pil.Resampling.NEAREST)
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

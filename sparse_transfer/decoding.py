"""Any image file becomes 8-bit RGB the same way everywhere, or is refused with a reason.

Grey, palette and CMYK images are converted; transparent ones are composited on white (so that what
is invisible does not show up); 16-bit grey is scaled to 8 bits, never clipped; the orientation that
a camera noted (EXIF) is applied. The whole file is decoded, so a truncated one is noticed.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps


class DamagedImage(Exception):  # noqa: N818 - counted and reported, see images.py
    """An image that cannot be used; its message is the reason, in a few words."""


BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, TypeError)


def decode(fetch: Callable[[], Any]) -> Image.Image:
    """An 8-bit RGB image.

    Args:
        fetch: gives encoded bytes, a file, an image of any mode, or None; what goes wrong in it
            is the image's fault too.

    Raises:
        DamagedImage: it is empty, truncated, or of a kind that has no 8-bit meaning.
    """
    try:
        raw = fetch()
        if raw is None or raw == b"":
            raise DamagedImage("empty")
        image = raw if isinstance(raw, Image.Image) else _load(raw)
        return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise DamagedImage("too large to be decoded safely") from error
    except FileNotFoundError as error:
        raise DamagedImage("file not found") from error
    except BROKEN as error:
        raise DamagedImage("truncated or damaged") from error


def _load(raw: bytes | Path) -> Image.Image:
    if isinstance(raw, Path) and raw.stat().st_size == 0:
        raise DamagedImage("empty")
    image = Image.open(io.BytesIO(raw) if isinstance(raw, bytes) else raw)
    image.load()
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise DamagedImage("floating-point pixels, whose range is not defined")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """(h, w) 16-bit grey to uint8, 0 → 0 and 65535 → 255."""
    values = pixels.astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise DamagedImage("pixels of more than 16 bits, whose range is not defined")
    return np.round(values * (255 / 65535)).astype(np.uint8)

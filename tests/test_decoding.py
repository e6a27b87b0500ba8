"""Any image file becomes 8-bit RGB, or is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_transfer.decoding import DamagedImage, decode
from tests.made_images import picture, png


def pixels(raw: object) -> np.ndarray:
    return np.asarray(decode(lambda: raw))


def test_rgb_is_unchanged() -> None:
    image = picture(0)
    assert np.array_equal(pixels(png(image)), np.asarray(image))


def test_file_and_decoded_image_give_the_same(tmp_path: Path) -> None:
    image = picture(1)
    image.save(tmp_path / "x.png")
    assert np.array_equal(pixels(tmp_path / "x.png"), pixels(image))


def test_grey_is_repeated_over_channels() -> None:
    grey = picture(2).convert("L")
    assert np.array_equal(pixels(png(grey)), np.repeat(np.asarray(grey)[..., None], 3, axis=2))


def test_palette_gives_its_colours() -> None:
    palette = picture(3).quantize(8)
    assert np.array_equal(pixels(png(palette)), np.asarray(palette.convert("RGB")))


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    decoded = pixels(png(Image.fromarray(values)))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (decoded == decoded[..., :1]).all()


def test_transparent_pixels_show_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 255, 0))
    assert pixels(png(image)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_transparent_palette_entry_shows_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert pixels(png(image, transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_cmyk_jpeg_keeps_its_colour() -> None:
    red = Image.new("RGB", (8, 8), (200, 30, 30)).convert("CMYK")
    assert np.abs(pixels(png(red, "JPEG", quality=95)).mean(axis=(0, 1)) - [200, 30, 30]).max() < 12


def test_exif_orientation_is_applied() -> None:
    image = picture(4, (6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn by 270 degrees
    decoded = decode(lambda: png(image, "PNG", exif=exif))
    assert decoded.size == (4, 6)
    assert np.array_equal(np.asarray(decoded), np.rot90(np.asarray(image), 3))


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b"not an image at all", "truncated or damaged"),
        (png(picture(5, (64, 64)), "JPEG")[:-700], "truncated or damaged"),
        (png(picture(6, (64, 64)))[:-2000], "truncated or damaged"),
        (Path("/nowhere/at/all.png"), "file not found"),
        (Image.new("F", (2, 2)), "floating-point"),
        (Image.fromarray(np.array([[70000]], dtype=np.int32)), "more than 16 bits"),
    ],
)
def test_unusable_images_say_why(raw: object, reason: str) -> None:
    with pytest.raises(DamagedImage, match=reason):
        decode(lambda: raw)

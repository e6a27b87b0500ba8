"""What is done to one decoded image or a batch of them: resize, crop, shift, mirror.

Resizing and cropping follow torchvision's transforms on PIL images (antialiased), which the study
(arXiv 2111.13445) used. Random parameters come in as numbers drawn beforehand, so that every
function here is pure.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

from sparse_transfer.config import Preprocess
from sparse_transfer.seeds import derive

Augment = Literal["none", "flip", "crop_flip", "random_resized_crop"]
Interpolation = Literal["bilinear", "bicubic"]

PADDING = 4  # pixels, of crop_flip
CROP_AREA = (0.08, 1.0)  # share of the image, of random_resized_crop
CROP_RATIO = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def fixed_transform(
    image: Image.Image, preprocess: Preprocess, interpolation: Interpolation
) -> np.ndarray:
    """An RGB image as (3, S, S) uint8, by `preprocess` without augmentation.

    `crop: center` resizes the shorter side to `shorter_side` (torchvision's rounding: the longer
    one is truncated) and takes the central square; `crop: none` resizes to the square.
    """
    size, method = preprocess.image_size, RESAMPLING[interpolation]
    if preprocess.crop == "none":
        square = image if image.size == (size, size) else image.resize((size, size), method)
    else:
        shorter = preprocess.shorter_side
        scale = shorter / min(image.size)
        width = (
            shorter if image.width <= image.height else int(shorter * image.width / image.height)
        )
        height = (
            shorter if image.height <= image.width else int(shorter * image.height / image.width)
        )
        resized = image if scale == 1 else image.resize((width, height), method)
        left, top = round((width - size) / 2), round((height - size) / 2)
        square = resized.crop((left, top, left + size, top + size))
    return np.asarray(square).transpose(2, 0, 1)


def crop_box(width: int, height: int, draws: np.ndarray) -> tuple[int, int, int, int]:
    """The box of torchvision's RandomResizedCrop: left, top, width, height in pixels.

    Args:
        width, height: of the image.
        draws: (41,) uniform in [0, 1): area, ratio, left, top of ten attempts; the last is unused.

    The first attempt that fits is taken; if none does, the central crop nearest to the ratios.
    """
    area, ratio, left, top = draws[: 4 * CROP_ATTEMPTS].reshape(CROP_ATTEMPTS, 4).T
    target = width * height * (CROP_AREA[0] + (CROP_AREA[1] - CROP_AREA[0]) * area)
    low, high = np.log(CROP_RATIO[0]), np.log(CROP_RATIO[1])
    aspect = np.exp(low + (high - low) * ratio)
    widths = np.round(np.sqrt(target * aspect)).astype(int)
    heights = np.round(np.sqrt(target / aspect)).astype(int)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    if fits.any():
        first = int(np.argmax(fits))
        crop_width, crop_height = int(widths[first]), int(heights[first])
        return (
            int(left[first] * (width - crop_width + 1)),
            int(top[first] * (height - crop_height + 1)),
            crop_width,
            crop_height,
        )
    crop_width, crop_height = width, height
    if width / height < CROP_RATIO[0]:
        crop_height = round(width / CROP_RATIO[0])
    elif width / height > CROP_RATIO[1]:
        crop_width = round(height * CROP_RATIO[1])
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def flipped(pixels: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """Mirror left and right the images for which `flip`, (b,) bool, is true; in place."""
    pixels[flip] = pixels[flip][..., ::-1]
    return pixels


def shifted(pixels: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Crops at (top, left) in 0..2·PADDING of the images padded with black, (b, 3, S, S) uint8.

    This is torchvision's RandomCrop(S, padding=4): zeros before normalisation.
    """
    count, channels, height, width = pixels.shape
    padded = np.zeros((count, channels, height + 2 * PADDING, width + 2 * PADDING), np.uint8)
    padded[:, :, PADDING:-PADDING, PADDING:-PADDING] = pixels
    out = np.empty_like(pixels)
    for row in range(count):
        y, x = int(top[row]), int(left[row])
        out[row] = padded[row, :, y : y + height, x : x + width]
    return out


@lru_cache(maxsize=4)
def draws(examples: int, columns: int, seed: int, epoch: int) -> np.ndarray:
    """(examples, columns) float64 uniform in [0, 1): every example's own numbers of an epoch."""
    stream = np.random.Generator(np.random.PCG64(derive(seed, "augment", epoch)))
    values = stream.random((examples, columns))
    values.setflags(write=False)
    return values

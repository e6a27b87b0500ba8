"""Resize and crop agree with torchvision; random parameters keep their laws."""

from __future__ import annotations

import numpy as np
import pytest
from torchvision import transforms as tv

from sparse_transfer import transforms
from sparse_transfer.config import Preprocess
from tests.made_images import picture

WHOLE = Preprocess(image_size=16, crop="none")
CENTER = Preprocess(image_size=16, resize=20)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 33), (20, 51), (9, 7), (20, 20)])
def test_fixed_transform_is_torchvisions(size: tuple[int, int], interpolation: str) -> None:
    method = tv.InterpolationMode(interpolation)
    reference = tv.Compose([tv.Resize(20, method), tv.CenterCrop(16), tv.PILToTensor()])
    image = picture(1, size)
    found = transforms.fixed_transform(image, CENTER, interpolation)  # type: ignore[arg-type]
    assert np.array_equal(found, reference(image).numpy())
    squash = tv.Compose([tv.Resize((16, 16), method), tv.PILToTensor()])
    found = transforms.fixed_transform(image, WHOLE, interpolation)  # type: ignore[arg-type]
    assert np.array_equal(found, squash(image).numpy())


def test_256_pixel_image_is_only_cropped_at_224() -> None:
    image = picture(2, (256, 256))
    found = transforms.fixed_transform(image, Preprocess(image_size=224, resize=256), "bilinear")
    assert np.array_equal(found, np.asarray(image)[16:240, 16:240].transpose(2, 0, 1))


def test_shift_pads_with_black_as_torchvision() -> None:
    pixels = np.arange(1, 1 + 2 * 3 * 6 * 6, dtype=np.uint8).reshape(2, 3, 6, 6)
    found = transforms.shifted(pixels, np.array([4, 0]), np.array([4, 7]))
    assert np.array_equal(found[0], pixels[0])
    assert (found[1, :, :4] == 0).all()
    assert (found[1, :, :, 3:] == 0).all()
    assert np.array_equal(found[1, :, 4:, :3], pixels[1, :, :2, 3:])


def test_every_shift_occurs() -> None:
    offsets = (transforms.draws(4000, 3, 0, 0)[:, :2] * (2 * transforms.PADDING + 1)).astype(int)
    assert set(offsets.ravel().tolist()) == set(range(9))


def test_crop_box_stays_inside_and_keeps_its_laws() -> None:
    draws = np.random.default_rng(0).random((500, 41))
    for width, height in ((300, 200), (32, 32), (50, 200)):
        boxes = np.array([transforms.crop_box(width, height, row) for row in draws])
        left, top, w, h = boxes.T
        assert (left >= 0).all() and (top >= 0).all() and (w > 0).all() and (h > 0).all()
        assert (left + w <= width).all() and (top + h <= height).all()
        assert 0.05 < (w * h / (width * height)).min() < 0.12
    ratios = np.array([transforms.crop_box(3000, 3000, row) for row in draws])
    ratios = ratios[:, 2] / ratios[:, 3]
    assert ratios.min() > 0.74 and ratios.max() < 1.34


def test_crop_box_by_hand() -> None:
    draws = np.zeros(41)
    draws[:4] = [(0.25 - 0.08) / 0.92, 0.5, 0.5, 0.999]  # a quarter of the area, ratio 1
    assert transforms.crop_box(100, 100, draws) == (25, 50, 50, 50)


def test_crop_box_of_an_extreme_image_falls_back_to_its_middle() -> None:
    # no attempt can fit 1000×2 with area 1: the central crop of the largest allowed ratio
    draws = np.full(41, 0.999)
    assert transforms.crop_box(1000, 2, draws) == (498, 0, 3, 2)

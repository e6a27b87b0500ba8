"""Drawn images: functions of class and number, balanced, and no gift to a linear classifier."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from sparse_transfer import drawing

SETS = [(drawing.shape, drawing.SHAPE_CLASSES), (drawing.texture, drawing.TEXTURE_CLASSES)]


@pytest.mark.parametrize(("draw", "classes"), SETS)
def test_image_is_a_function_of_class_and_number(draw, classes) -> None:
    first = draw(2, 17)
    draw(1, 5)
    assert first.shape == (32, 32, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(draw(2, 17), first)
    assert not np.array_equal(draw(2, 18), first)
    assert not np.array_equal(draw(3, 17), first)


@pytest.mark.parametrize(("draw", "classes"), SETS)
def test_no_image_is_blank(draw, classes) -> None:
    for label in range(len(classes)):
        spread = [draw(label, number).std(axis=(0, 1)).max() for number in range(20)]
        assert min(spread) > 8


@pytest.mark.parametrize(("draw", "classes"), SETS)
def test_pixels_alone_say_little(draw, classes) -> None:
    count = 60 * len(classes)
    labels = np.arange(count) % len(classes)
    pixels = np.stack([draw(int(label), row) for row, label in enumerate(labels)])
    flat = pixels.reshape(count, -1) / 255 - 0.5
    half = count // 2
    fitted = RidgeClassifier(alpha=1000).fit(flat[:half], labels[:half])
    # a small convolutional network reaches about 0.9 on the shapes
    assert fitted.score(flat[half:], labels[half:]) < 0.35


def test_classes_have_different_names() -> None:
    for _, classes in SETS:
        assert len(set(classes)) == len(classes) >= 10

"""What is said of a trial before it runs."""

from __future__ import annotations

import re

import pytest
from scipy.stats import binomtest

from sparse_transfer.trial.prepare import _few


@pytest.mark.parametrize("images", [1, 4, 7, 50, 90])
def test_few_test_images_are_said_with_the_width_to_expect(images: int):
    (said,) = _few(images)
    limits = binomtest(images // 2, images).proportion_ci(method="wilson")
    found = re.fullmatch(r"Only (\d+) test images?: .* about ± (\d+) points\.", said)
    assert found is not None and int(found.group(1)) == images
    assert int(found.group(2)) == pytest.approx(50 * (limits.high - limits.low), abs=0.51)


def test_enough_test_images_need_no_note():
    assert _few(100) == _few(10_000) == ()

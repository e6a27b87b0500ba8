"""The difference of two error shares on the same test images, with an interval for few images."""

from __future__ import annotations

import math

from sparse_transfer.statistics.intervals import Interval, wilson_interval


def paired_difference(
    both: int, first_only: int, second_only: int, neither: int, *, confidence: float = 0.95
) -> Interval:
    """Share of errors of the second model minus that of the first, with its score interval.

    Wilson limits of the two shares, joined with the correlation of the errors. Unlike a bootstrap
    it has width where the models err on the same images.

    Source: Newcombe 1998, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", method 10.

    Args:
        both: images on which both models err.
        first_only, second_only: on which one errs.
        neither: on which none errs.

    Raises:
        ValueError: a negative count, or no image at all.
    """
    counts = (both, first_only, second_only, neither)
    n = sum(counts)
    if n < 1 or min(counts) < 0:
        raise ValueError(f"{counts} are no counts of images")
    first = wilson_interval(both + first_only, n, confidence=confidence)
    second = wilson_interval(both + second_only, n, confidence=confidence)
    phi = _correlation(both, first_only, second_only, neither)
    below, above = second.estimate - second.low, first.high - first.estimate
    down = math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    below, above = first.estimate - first.low, second.high - second.estimate
    up = math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    estimate = second.estimate - first.estimate
    return Interval(estimate, max(-1.0, estimate - down), min(1.0, estimate + up))


def _correlation(both: int, first_only: int, second_only: int, neither: int) -> float:
    """Of the two models' errors; a positive one is corrected for continuity."""
    margins = (both + first_only, second_only + neither, both + second_only, first_only + neither)
    if not math.prod(margins):
        return 0.0
    product = both * neither - first_only * second_only
    if product > 0:
        product = max(0.0, product - (both + first_only + second_only + neither) / 2)
    return product / math.sqrt(math.prod(margins))

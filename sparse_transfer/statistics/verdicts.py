"""Verdicts in words: better, worse, equivalent, or undecided at a minimum detectable effect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

CONDITIONAL = "conditional on one checkpoint per method"

Word = Literal["better", "worse", "equivalent", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What an interval of relative error (positive = more errors) says.

    Attributes:
        word: the verdict.
        margin: half-width of the region called equivalent, relative error.
        mde: minimum detectable effect, relative error; NaN where it is not known.
        conditional: the interval does not cover the choice of the upstream checkpoint.
    """

    word: Word
    margin: float
    mde: float
    conditional: bool = False

    @property
    def text(self) -> str:
        """The verdict as a reader sees it; effects in percent of the dense error."""
        if self.word == "equivalent":
            text = f"equivalent within ±{100 * self.margin:.3g} %"
        elif self.word == "undecided" and math.isfinite(self.mde):
            text = f"undecided at a minimum detectable effect of {100 * self.mde:.3g} %"
        else:
            text = self.word
        return f"{text}, {CONDITIONAL}" if self.conditional else text


def verdict(
    low: float, high: float, margin: float, mde: float, *, conditional: bool = False
) -> Verdict:
    """Put an interval of a relative error difference into words.

    An interval inside ±margin is *equivalent* even where it excludes zero: the margin states what
    is too small to matter. An interval that is not known (NaN) is *undecided*.

    Args:
        low, high: the interval, relative error, positive = more errors than the reference.
        margin: half-width of the region called equivalent, at least 0.
        mde: see `minimum_detectable_effect`; NaN where unknown.
    """
    word: Word = "undecided"
    if not (math.isnan(low) or math.isnan(high)):
        if -margin <= low and high <= margin:
            word = "equivalent"
        elif high < 0:
            word = "better"
        elif low > 0:
            word = "worse"
    return Verdict(word, margin, mde, conditional)

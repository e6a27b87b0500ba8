"""Verdict words from intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_transfer.statistics import CONDITIONAL, verdict

NAN = float("nan")


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.2, -0.05, "better"),
        (0.05, 0.2, "worse"),
        (-0.005, 0.008, "equivalent"),
        (0.002, 0.008, "equivalent"),
        (-0.005, 0.02, "undecided"),
        (-0.1, 0.1, "undecided"),
        (NAN, NAN, "undecided"),
        (0.05, float("inf"), "worse"),
    ],
)
def test_words(low, high, word):
    assert verdict(low, high, 0.01, 0.07).word == word


def test_texts():
    assert verdict(-0.1, 0.1, 0.01, 0.0712).text == (
        "undecided at a minimum detectable effect of 7.12 %"
    )
    assert verdict(0, 0, 0.01, 0.07).text == "equivalent within ±1 %"
    assert verdict(0.1, 0.2, 0.01, 0.07).text == "worse"
    assert verdict(NAN, NAN, 0.01, NAN).text == "undecided"
    assert verdict(0.1, 0.2, 0.01, 0.07, conditional=True).text == f"worse, {CONDITIONAL}"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 0.1))
def test_swapping_the_methods_swaps_the_words(low, width, margin):
    swapped = {"better": "worse", "worse": "better"}
    word = verdict(low, low + width, margin, 0.1).word
    assert verdict(-(low + width), -low, margin, 0.1).word == swapped.get(word, word)

"""Figures: deterministic, small, readable in both schemes, and true to their numbers."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from sparse_transfer.report import canvas, colours, cost_figures, figures
from sparse_transfer.statistics.fronts import front

LOOKS = colours.assign(["dense", "gmp", "acdc"])
INCREASES = pd.DataFrame(
    {
        "method": ["gmp", "gmp", "acdc", "acdc"],
        "sparsity": [0.8, 0.95, 0.8, 0.95],
        "increase": [0.1, 0.4, 0.05, 0.2],
        "low": [0.05, 0.3, math.nan, 0.1],
        "high": [0.15, 0.5, math.nan, 0.3],
    }
)
TASKS = INCREASES.assign(task="digits", value=[0.9, 0.8, 0.95, 0.9])


def drawn() -> canvas.Drawing:
    return figures.increase_by_sparsity(
        INCREASES, LOOKS, name="a", title="Full <fine> & tuning", caption="c", limits=(-0.1, 0.6)
    )


def test_equal_numbers_give_equal_bytes():
    assert drawn().file == drawn().file


def test_the_page_version_has_no_literal_colour_and_the_file_has_no_variable():
    assert not re.search(r"#[0-9a-f]{6}\b", drawn().inline)
    assert "var(--blue)" in drawn().inline
    assert "var(" not in drawn().file
    assert "prefers-color-scheme:dark" in drawn().file


def test_both_versions_are_well_formed_and_text_stays_text():
    for svg in (drawn().inline, drawn().file):
        root = ElementTree.fromstring(svg)
        text = " ".join(root.itertext())
        assert "80 % sparse" in text
        assert "Full <fine> & tuning" in text


def test_every_kind_of_figure_is_small():
    cost = INCREASES.assign(model="net", cost=[0.3, 0.1, 0.25, 0.06], error=[0.1, 0.2, 0.1, 0.1])
    layers = INCREASES.assign(layer="conv", place=[0, 1, 0, 1], density=0.2)
    words = {"name": "x", "title": "t", "caption": "c"}
    made = [
        drawn(),
        figures.accuracy_by_task(TASKS, LOOKS, tasks=["digits"], **words),
        figures.heat_map(TASKS, tasks=["digits"], **words),
        cost_figures.pareto(cost, LOOKS, unit="MACs", **words),
        figures.layer_lines(layers, LOOKS, column="density", what="weights kept", **words),
    ]
    for one in made:
        ElementTree.fromstring(one.inline)
        assert len(one.inline) < 30_000


def test_a_layer_without_a_value_is_left_out():
    layers = INCREASES.assign(layer="conv", place=[0, 1, 0, 1], dead=[0.1, math.nan, 0.2, 0.3])
    words = {"name": "x", "title": "t", "caption": "c", "what": "dead channels"}
    made = figures.layer_lines(layers, LOOKS, column="dead", **words)
    assert "nan" not in made.inline.lower()
    assert ">gmp<" in made.inline


def test_the_heat_map_prints_every_value():
    made = figures.heat_map(TASKS, tasks=["digits"], name="h", title="t", caption="c")
    for value in TASKS["increase"]:
        assert f">{canvas.signed(100 * value)}<" in made.inline


def test_the_front_holds_what_nothing_beats():
    points = [(1.0, 0.1), (0.5, 0.2), (0.6, 0.3), (0.5, 0.25), (2.0, 0.1)]
    assert front(points) == [(0.5, 0.2), (1.0, 0.1)]


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8))
def test_spread_labels_keep_their_distance_and_their_order(values):
    placed = canvas.spread(values, 0.5, -5, 15)
    ordered = sorted(placed)
    assert all(b - a > 0.5 - 1e-9 for a, b in zip(ordered, ordered[1:], strict=False))
    pairs = sorted(zip(values, placed, strict=True))
    assert all(a[1] <= b[1] for a, b in zip(pairs, pairs[1:], strict=False) if a[0] < b[0])


def test_common_limits_hold_zero_and_ignore_what_is_missing():
    low, high = canvas.common_limits([0.2, math.nan, 0.5, math.inf])
    assert low < 0 < 0.5 < high < 0.6
    assert canvas.common_limits([])[0] < 0 < canvas.common_limits([])[1]


def test_signed_numbers():
    shown = [canvas.signed(value) for value in (0.04, -3.14, 12.3, 9.96, 202.4)]
    assert shown == ["0", "−3.1", "+12", "+10", "+202"]


def test_a_method_keeps_its_colour_whatever_else_is_shown():
    alone = colours.assign(["fggp"])["fggp"]
    assert colours.assign(["dense", "acdc", "fggp", "gmp"])["fggp"] == alone
    assert colours.assign(["dense"])["dense"][0] == colours.INK
    assert colours.assign(["AC/DC", "gmp"])["AC/DC"] == colours.assign(["acdc"])["acdc"]


def test_another_spelling_of_a_known_method_keeps_its_place():
    study = ["AC/DC", "LTH-T", "RigL ERK 1x", "RigL ERK 5x", "STR", "WoodFisher"]
    looks = colours.assign(study)
    for name, known in (("AC/DC", "acdc"), ("STR", "str"), ("WoodFisher", "woodfisher")):
        assert looks[name] == colours.assign([known])[known]
    assert len({colour for colour, _ in looks.values()}) == len(study)


def test_methods_differ_in_colour_as_long_as_there_are_colours():
    names = ["gmp", "fggp", "acdc", "mine", "yours", "theirs", "ours"]
    assert len({colour for colour, _ in colours.assign(names).values()}) == len(names)
    many = colours.assign([f"method{number}" for number in range(20)])
    assert len(set(many.values())) == 20

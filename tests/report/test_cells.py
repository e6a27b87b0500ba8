"""What a cell shows: percent for people, empty for missing, the interval beside the number."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from sparse_transfer.report.cells import Column, Table, show, with_values


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("percent", 0.87671, "87.7"),
        ("percent", -0.002, "−0.2"),
        ("change", 0.159, "+15.9"),
        ("change", -0.03, "−3.0"),
        ("change", math.inf, "∞"),
        ("sparsity", 0.95, "95"),
        ("sparsity", 0.965, "96.5"),
        ("ratio", 4.1666, "4.17×"),
        ("count", 10000.0, "10,000"),
        ("milliseconds", 0.0205, "20.5"),
        ("text", "worse", "worse"),
    ],
)
def test_a_value_is_shown_in_the_unit_of_its_kind(kind, value, text):
    assert show({"x": value}, Column("x", "x", kind)).text == text


@pytest.mark.parametrize("value", [None, float("nan"), "", pd.NA])
def test_a_missing_value_is_an_empty_cell_and_never_zero(value):
    for kind in ("text", "percent", "change", "count", "ratio"):
        cell = show({"x": value}, Column("x", "x", kind))
        assert (cell.text, cell.detail, cell.sort) == ("", "", None)
    assert show({}, Column("x", "x", "percent")).text == ""


def test_the_interval_stands_beside_its_number():
    column = Column("x", "x", "change")
    cell = show({"x": 0.1, "x_low": -0.05, "x_high": 0.25}, column)
    assert cell.plain == "+10.0 [−5.0, +25.0]"
    assert show({"x": 0.1, "x_low": float("nan"), "x_high": 0.25}, column).plain == "+10.0"


def test_a_value_beside_another_stands_in_brackets():
    column = Column("x", "x", "sparsity", beside="y")
    assert show({"x": 0.8, "y": 0.8004}, column).plain == "80 (80.04)"
    assert show({"x": 0.8, "y": float("nan")}, column).plain == "80"


def test_csv_keeps_fractions_and_leaves_missing_values_empty(tmp_path):
    frame = pd.DataFrame({"method": ["gmp", "acdc"], "mor": [0.123456789, float("nan")]})
    Table("t", "T", frame, (Column("mor", "MoR, %", "change"),)).save(tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "method,mor\ngmp,0.123456789\nacdc,\n"


def test_columns_without_any_value_are_left_out():
    frame = pd.DataFrame({"a": [1.0, None], "b": [None, None]})
    columns = (Column("a", "a", "count"), Column("b", "b", "count"), Column("c", "c"))
    assert [column.key for column in with_values(frame, columns)] == ["a"]

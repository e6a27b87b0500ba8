"""Break-even: counted by hand, and never promised by noise."""

from __future__ import annotations

import math

import pytest

from sparse_transfer.statistics.break_even import break_even
from sparse_transfer.statistics.intervals import t_interval


def test_the_extra_time_over_the_saving_per_task_rounded_up():
    found = break_even(100.0, [20, 22, 24], [10, 13, 13])
    assert found.tasks == 10  # 100 s over 10 s a task
    assert found.saving == t_interval([10, 9, 11])
    assert break_even(101.0, [20, 22, 24], [10, 13, 13]).tasks == 11


def test_a_saving_that_could_be_noise_never_pays_back():
    assert math.isinf(break_even(100.0, [20, 22, 24], [10, 30, 23]).tasks)
    assert math.isinf(break_even(100.0, [20, 22], [25, 26]).tasks)


@pytest.mark.parametrize("extra", [0.0, -5.0])
def test_what_cost_no_more_has_nothing_to_pay_back(extra):
    assert break_even(extra, [20, 22, 24], [10, 13, 13]).tasks == 0
    assert break_even(extra, [20, 22, 24], [20, 23, 23.5]).tasks == 0
    assert math.isinf(break_even(extra, [20, 22, 24], [30, 33, 35]).tasks)


def test_one_task_says_nothing():
    assert math.isnan(break_even(100.0, [20], [10]).tasks)
    assert math.isnan(break_even(math.nan, [20, 22, 24], [10, 13, 13]).tasks)

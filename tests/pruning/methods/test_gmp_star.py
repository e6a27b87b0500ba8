"""gmp_star: the jump and the few updates after it, and its place beside gmp."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.methods.gmp_star import GmpStarOptions
from tests.pruning.training import copy_of, make_pruner, prune, same, small_cnn


def test_half_goes_at_once_and_the_rest_in_six_updates() -> None:
    pruner = prune(small_cnn(), "gmp_star", 0.9, 100)
    events = [(event["step"], event["sparsity"]) for event in pruner.summary()["events"]]
    assert [step for step, _ in events] == [7, 20, 34, 47, 60, 74, 87]
    # .9 - .4 (1 - (t - 7) / 80)^3
    expected = [0.5, 0.665029, 0.783690, 0.85, 0.884623, 0.898284, 0.9]
    assert [sparsity for _, sparsity in events] == pytest.approx(expected, abs=1e-6)
    assert pruner.masks is not None and pruner.masks.kept() == 162


def test_it_is_gmp_with_other_numbers() -> None:
    left, right = small_cnn(), small_cnn()
    prune(left, "gmp_star", 0.9, 40)
    prune(right, "gmp", 0.9, 40, start=0.07, end=0.87, updates=6, initial_sparsity=0.5)
    assert same(copy_of(left), copy_of(right))


def test_a_target_below_the_jump_is_refused_under_its_own_name() -> None:
    with pytest.raises(UserError, match="gmp_star cannot start at sparsity 0.5 to reach 0.5"):
        make_pruner(small_cnn(), "gmp_star", 0.5, 40)
    make_pruner(small_cnn(), "gmp_star", 0.5, 40, initial_sparsity=0.25)
    with pytest.raises(ValidationError, match="`start` must lie before `end`"):
        GmpStarOptions(start=0.9)


def test_a_pattern_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="groups of 4"):
        make_pruner(small_cnn(), "gmp_star", 0.75, 40, allocation="1:4")

"""Frozen choices are exact in size, stratified, and depend on nothing but names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_transfer import splits
from sparse_transfer.errors import UserError

counts_and_total = st.lists(st.integers(1, 40), min_size=1, max_size=12).flatmap(
    lambda counts: st.tuples(st.just(counts), st.integers(0, sum(counts)))
)


def labelled(counts: list[int]) -> tuple[list[str], np.ndarray]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return [f"{label}/{row}" for row, label in enumerate(labels)], labels


@given(counts_and_total)
def test_shares_are_exact_and_nearly_proportional(case: tuple[list[int], int]) -> None:
    counts, total = np.array(case[0]), case[1]
    given_out = splits.shares(counts, total)
    assert given_out.sum() == total
    assert (np.abs(given_out - counts * total / counts.sum()) < 1).all()


def test_shares_by_hand() -> None:
    # 10 of (5, 3, 2) × 1.0 and 4 of (5, 3, 2): exact 2.0, 1.2, 0.8; the last unit goes to 0.8
    assert splits.shares(np.array([5, 3, 2]), 4).tolist() == [2, 1, 1]


@given(counts_and_total)
def test_choice_is_exact_and_keeps_its_bounds(case: tuple[list[int], int]) -> None:
    counts, total = case
    ids, labels = labelled(counts)
    least, most = len(counts), sum(counts)
    if not least <= total <= most:
        with pytest.raises(UserError, match="cannot be chosen"):
            splits.stratified("t", "p", ids, labels, total, at_least=1)
        return
    chosen = splits.stratified("t", "p", ids, labels, total, at_least=1)
    assert len(chosen) == len(set(chosen.tolist())) == total
    assert (np.diff(chosen) > 0).all()
    assert (np.bincount(labels[chosen], minlength=len(counts)) >= 1).all()


def test_leave_keeps_one_example_of_every_class() -> None:
    ids, labels = labelled([1, 1, 20])
    chosen = splits.stratified("t", "validation", ids, labels, 10, leave=1)
    assert np.bincount(labels[chosen], minlength=3).tolist() == [0, 0, 10]


def test_choice_does_not_depend_on_the_order_of_the_files() -> None:
    ids, labels = labelled([7, 9, 5])
    shuffle = np.random.default_rng(0).permutation(len(ids))
    first = {ids[row] for row in splits.stratified("t", "p", ids, labels, 8)}
    mixed = [ids[row] for row in shuffle]
    second = {mixed[row] for row in splits.stratified("t", "p", mixed, labels[shuffle], 8)}
    assert first == second


def test_choices_of_different_purposes_and_tasks_differ() -> None:
    ids, labels = labelled([50])
    base = splits.stratified("t", "p", ids, labels, 10).tolist()
    assert base != splits.stratified("t", "q", ids, labels, 10).tolist()
    assert base != splits.stratified("u", "p", ids, labels, 10).tolist()


def test_frozen_order_is_frozen() -> None:
    # recorded once; a change here changes every split that was ever reported
    assert splits.frozen_order("digits", "test", list("abcdef")).tolist() == ORDER


ORDER = [4, 5, 3, 0, 2, 1]


def test_first_per_class_takes_rows_in_order() -> None:
    labels = np.array([1, 0, 1, 1, 0, 1])
    assert splits.first_per_class(labels, 2).tolist() == [True, True, True, False, True, False]


def test_digest_sees_ids_labels_parts_and_header() -> None:
    part = ("train", ["a", "b"], np.array([0, 1]))
    base = splits.split_digest(b"card", [part])
    assert base == splits.split_digest(b"card", [("train", ["a", "b"], np.array([0, 1], np.int32))])
    others = [
        splits.split_digest(b"other", [part]),
        splits.split_digest(b"card", [("test", ["a", "b"], np.array([0, 1]))]),
        splits.split_digest(b"card", [("train", ["b", "a"], np.array([0, 1]))]),
        splits.split_digest(b"card", [("train", ["a", "b"], np.array([1, 0]))]),
        splits.split_digest(b"card", [part, ("test", [], np.zeros(0))]),
    ]
    assert len({base, *others}) == 6

"""GraNet: pruning sets the counts, regrowth the positions; gmp and RigL-ITOP as special cases."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.methods.granet import GranetOptions
from sparse_transfer.pruning.schedule import cubic
from tests.pruning.methods.regrowing import SHAPES, rates, reference, updates, watched
from tests.pruning.training import copy_of, make_pruner, prune, same, small_cnn

WINDOW = {"start": 0.2, "end": 0.6, "updates": 8}


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_without_regrowth_it_is_global_gmp(optimizer: str) -> None:
    left, right = small_cnn(), small_cnn()
    options = {"optimizer": optimizer, **WINDOW}
    granet = prune(left, "granet", 0.9, 40, rate=0.0, final_rate=0.0, **options)
    gmp = prune(right, "gmp", 0.9, 40, allocation="global", **options)
    assert granet.summary()["digest"] == gmp.summary()["digest"]
    assert same(copy_of(left), copy_of(right))
    with_regrowth = prune(small_cnn(), "granet", 0.9, 40, **options)
    assert with_regrowth.summary()["digest"] != gmp.summary()["digest"]


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_with_a_start_as_sparse_as_the_target_it_is_rigl_itop(optimizer: str) -> None:
    left, right = small_cnn(), small_cnn()
    granet = prune(left, "granet", 0.8, 40, sparse_start=0.8, updates=10, optimizer=optimizer)
    itop = prune(right, "rigl_itop", 0.8, 40, updates=19, optimizer=optimizer)
    assert granet.summary()["digest"] == itop.summary()["digest"]
    steps = [[event["step"] for event in run.summary()["events"]] for run in (granet, itop)]
    assert steps[0] == steps[1] == list(range(0, 40, 2))
    assert same(copy_of(left), copy_of(right))


@pytest.mark.parametrize("sparse_start", [0.0, 0.5])
def test_pruning_sets_the_counts_and_regrowth_the_positions(sparse_start: float) -> None:
    options = {"updates": 5, "sparse_start": sparse_start}
    pruner, _, steps = watched("granet", 0.9, 40, **options)
    window, later = [4, 8, 12, 16, 20], [24, 28, 32, 36]
    assert updates(pruner, "random start") == ([0] if sparse_start else [])
    assert updates(pruner, "prune and regrow") == window
    assert updates(pruner, "regrow") == later
    if sparse_start:  # ERK: the classifier full, the other 270 shared as 17 : 26
        assert steps[1].before.counts() == {"0.weight": 107, "3.weight": 163, "7.weight": 540}
    regrown_at_once = 0
    for step, seen in steps.items():
        if step not in window + later:
            assert seen.before.digest() == seen.after.digest()
            continue
        sparsity = cubic(step / 20, sparse_start, 0.9)
        assert seen.after.kept() == round(1620 * (1 - sparsity))
        weights = {name: seen.trained[name] for name in SHAPES}
        pruned = remove(seen.before, [Stage(magnitude(weights))], sparsity, "global")
        assert seen.after.counts() == pruned.counts()
        rate = 0.005 + 0.495 * (1 + math.cos(math.pi * step / 40)) / 2
        for name, count in pruned.counts().items():
            args = pruned[name], seen.trained[name], seen.gradients[name]
            assert torch.equal(seen.after[name], reference(*args, math.ceil(rate * count)))
            new = seen.after[name] & ~seen.before[name]
            for tensor in (seen.left[name], *seen.state[name]):
                assert not tensor[new].any()
            back = seen.before[name] & ~pruned[name] & seen.after[name]
            regrown_at_once += int(back.sum())
            assert torch.equal(seen.left[name][back], seen.trained[name][back])
    assert regrown_at_once > 0, "what the first half prunes may return in the second"


def test_the_share_falls_over_the_whole_training() -> None:
    found = rates("granet", 0.9, 40, updates=2)
    assert found == pytest.approx({10: 0.4275, 20: 0.2525, 30: 0.0775}, abs=5e-5)
    found = rates("granet", 0.9, 40, updates=2, rate=0.3, final_rate=0.1)
    assert found[20] == pytest.approx(0.2)


def test_an_update_after_the_last_step_grows_nothing() -> None:
    _, model, steps = watched("granet", 0.9, 40, updates=5, end=1.0)
    assert rates("granet", 0.9, 40, updates=5, end=1.0)[40] == 0
    assert all(not bool((steps[40].after[n] & ~steps[40].before[n]).any()) for n in SHAPES)
    assert all(bool(model.get_parameter(n)[steps[40].after[n]].all()) for n in SHAPES)
    assert steps[40].after.kept() == 162


def test_a_sparse_model_goes_on_from_its_masks() -> None:
    half = prune(small_cnn(), "magnitude", 0.5, 0).masks
    assert half is not None
    pruner, _, steps = watched("granet", 0.9, 40, updates=5, sparse_start=0.3, masks=half)
    assert updates(pruner, "random start") == []
    assert steps[3].after.digest() == half.digest()
    assert steps[4].after.kept() == round(1620 * (1 - cubic(0.2, 0.5, 0.9)))
    pruner, _, steps = watched("granet", 0.5, 40, masks=half)
    assert {seen.after.kept() for seen in steps.values()} == {810}
    assert pruner.masks is not None and pruner.masks.digest() != half.digest()


def test_short_trainings_update_once_in_each_step() -> None:
    pruner, _, steps = watched("granet", 0.8, 8)
    assert updates(pruner, "prune and regrow") == [1, 2, 3, 4]
    assert updates(pruner, "regrow") == [5, 6, 7]
    assert isinstance(pruner.masks, Masks) and steps[8].after.kept() == 324


def test_impossible_windows_and_starts_are_refused() -> None:
    with pytest.raises(ValidationError, match="`start` must lie before `end`"):
        GranetOptions(start=0.5)
    with pytest.raises(UserError, match="cannot start at sparsity 0.9 to reach 0.8") as refusal:
        make_pruner(small_cnn(), "granet", 0.8, 40, sparse_start=0.9)
    assert "0.8 or less" in refusal.value.hint
    with pytest.raises(UserError, match="gradual schedule cannot run in 2"):
        make_pruner(small_cnn(), "granet", 0.8, 2)

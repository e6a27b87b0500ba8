"""RigL: what goes and comes, what an update step leaves untouched, the share, and refusals."""

from __future__ import annotations

import pytest
import torch

from sparse_transfer.errors import UserError
from tests.pruning.methods.regrowing import ERK_COUNTS, SHAPES, rates, reference, updates, watched
from tests.pruning.training import make_pruner, prune, small_cnn


def test_updates_agree_with_two_sorts_and_counts_never_change() -> None:
    pruner, _, steps = watched("rigl", 0.8, 24)
    assert updates(pruner, "random start") == [0]
    assert updates(pruner, "regrow") == [2, 4, 6, 8, 10, 12, 14, 16]
    scheduled = rates("rigl", 0.8, 24)
    for step, seen in steps.items():
        assert seen.before.counts() == seen.after.counts() == ERK_COUNTS
        if step not in scheduled:
            assert seen.before.digest() == seen.after.digest()
            continue
        for name, count in ERK_COUNTS.items():
            replaced = int(scheduled[step] * count)
            args = seen.before[name], seen.forward[name], seen.gradients[name]
            assert torch.equal(seen.after[name], reference(*args, replaced))
    assert steps[2].before.digest() != steps[2].after.digest()


@pytest.mark.parametrize("optimizer", ["nesterov", "adam", "adamw"])
def test_an_update_moves_no_weight_that_stays_and_starts_new_ones_at_zero(optimizer: str) -> None:
    pruner, _, steps = watched("rigl", 0.8, 24, optimizer=optimizer)
    for step in updates(pruner, "regrow"):
        before, seen = steps[step - 1], steps[step]
        for name, old in before.left.items():
            assert torch.equal(seen.trained[name], old), "the optimizer step is left out"
            if name not in SHAPES:  # biases and batch norm
                assert torch.equal(seen.left[name], old)
                continue
            stay = seen.after[name] & seen.before[name]
            assert torch.equal(seen.left[name], old * stay)
            for slot, value in zip(seen.state[name], before.state[name], strict=True):
                assert torch.equal(slot, value * stay)
        assert not torch.equal(steps[step + 1].left["7.bias"], seen.left["7.bias"])


def test_new_weights_train_from_the_next_step() -> None:
    pruner, _, steps = watched("rigl", 0.8, 24)
    for step in updates(pruner, "regrow")[:4]:
        new = {name: steps[step].after[name] & ~steps[step].before[name] for name in SHAPES}
        moved = [steps[step + 1].left[name][new[name]] != 0 for name in SHAPES]
        # inputs that are zero in the whole next batch leave the others where they are
        assert torch.cat(moved).float().mean() > 0.5


def test_the_share_falls_from_the_rate_to_zero_at_the_end() -> None:
    found = rates("rigl", 0.8, 80, end=0.5, interval=10)
    # 0.15 (1 + cos(pi t / 40)), and no update at t = 40 itself
    assert found == pytest.approx({10: 0.256066, 20: 0.15, 30: 0.043934}, abs=1e-6)
    assert rates("rigl", 0.8, 32000, updates=249, end=25000 / 32000)[100] == pytest.approx(
        0.3, abs=2e-5
    )


def test_options_have_their_effect() -> None:
    digests = {
        prune(small_cnn(), "rigl", 0.8, 24, **options).summary()["digest"]
        for options in (
            {},
            {"allocation": "uniform"},
            {"rate": 0.5},
            {"end": 1.0},
            {"updates": 2},
            {"interval": 7},
        )
    }
    assert len(digests) == 6
    still = prune(small_cnn(), "rigl", 0.8, 24, rate=0.0).masks
    start = make_pruner(small_cnn(), "rigl", 0.8, 24)
    start.start()
    assert still is not None and start.masks is not None
    assert still.digest() == start.masks.digest(), "no share, no change"


def test_a_sparser_target_narrows_a_sparse_model_and_an_equal_one_keeps_it() -> None:
    half = prune(small_cnn(), "magnitude", 0.5, 0).masks
    assert half is not None
    pruner = make_pruner(small_cnn(), "rigl", 0.8, 24, masks=half)
    pruner.start()
    assert pruner.masks is not None and pruner.masks.kept() == 324
    assert all(not bool((pruner.masks[name] & ~half[name]).any()) for name in half)
    pruner = make_pruner(small_cnn(), "rigl", 0.5, 24, masks=half)
    pruner.start()
    assert pruner.masks is not None and pruner.masks.digest() == half.digest()


def test_a_training_without_room_for_an_update_is_refused() -> None:
    with pytest.raises(UserError, match="rigl cannot change its masks in 4 training steps"):
        make_pruner(small_cnn(), "rigl", 0.8, 4)
    make_pruner(small_cnn(), "rigl", 0.8, 6)
    with pytest.raises(UserError, match="every 100 steps"):
        make_pruner(small_cnn(), "rigl", 0.8, 100, interval=100)

"""RigL-ITOP: the share, the optimizer step that stays, and what was ever active."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from sparse_transfer.pruning.driver import Pruner
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.regrowth import explored, union
from tests.pruning.methods.regrowing import (
    ERK_COUNTS,
    SHAPES,
    Step,
    rates,
    reference,
    updates,
    watched,
)
from tests.pruning.training import OPTIMIZERS, make_pruner, prune, small_cnn, train


def memory(pruner: Pruner) -> dict[str, Tensor]:
    return {n: v for n, v in pruner.state_dict().items() if n.startswith("memory.")}


def test_the_share_falls_over_the_whole_training() -> None:
    found = rates("rigl_itop", 0.8, 40, updates=3)
    assert found == pytest.approx({10: 0.4275, 20: 0.2525, 30: 0.0775}, abs=5e-5)
    assert rates("rigl_itop", 0.8, 40, interval=10) == found
    source = rates("rigl_itop", 0.9, 97750, interval=4000)
    assert len(source) == len(rates("rigl_itop", 0.9, 97750)) == 24


def test_updates_come_after_the_optimizer_step_and_agree_with_two_sorts() -> None:
    pruner, _, steps = watched("rigl_itop", 0.8, 24, updates=5)
    assert updates(pruner, "regrow") == [4, 8, 12, 16, 20]
    scheduled = rates("rigl_itop", 0.8, 24, updates=5)
    for step, seen in steps.items():
        assert seen.before.counts() == seen.after.counts() == ERK_COUNTS
        assert not torch.equal(seen.trained["7.weight"], seen.forward["7.weight"])
        assert not torch.equal(seen.trained["7.bias"], seen.forward["7.bias"])
        if step not in scheduled:
            continue
        for name, count in ERK_COUNTS.items():
            replaced = math.ceil(scheduled[step] * count)
            args = seen.before[name], seen.trained[name], seen.gradients[name]
            assert torch.equal(seen.after[name], reference(*args, replaced))
            new = seen.after[name] & ~seen.before[name]
            for tensor in (seen.left[name], *seen.state[name]):
                assert not tensor[new].any()


def ever_active(steps: dict[int, Step]) -> Masks:
    ever = steps[1].before
    for seen in steps.values():
        ever = union(ever, seen.after)
    return ever


@pytest.mark.parametrize("growth", ["gradient", "random"])
def test_it_explores_and_remembers_what_was_ever_active(growth: str) -> None:
    pruner, _, steps = watched("rigl_itop", 0.8, 40, growth=growth, updates=9)
    ever = ever_active(steps)
    assert explored(memory(pruner), 1620) == ever.kept() / 1620 == pruner.summary()["explored"]
    assert explored(memory(pruner), 1620) > 1.2 * 0.2
    packed = {f"memory.{name}": bits for name, bits in ever.pack().items()}
    assert packed.keys() == memory(pruner).keys() == {f"memory.{name}" for name in SHAPES}
    assert all(torch.equal(packed[name], bits) for name, bits in memory(pruner).items())


def test_the_memory_survives_a_resumed_run() -> None:
    whole = prune(small_cnn(), "rigl_itop", 0.8, 20, updates=4)
    model = small_cnn()
    pruner = make_pruner(model, "rigl_itop", 0.8, 20, updates=4)
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 10))
    saved = copy.deepcopy((bound.state_dict(), pruner.state_dict()))

    pruner = make_pruner(model, "rigl_itop", 0.8, 20, updates=4)
    bound = OPTIMIZERS["sgd"](model.parameters())
    bound.load_state_dict(saved[0])
    pruner.load_state_dict(saved[1])
    pruner.bind(bound)
    train(model, pruner, bound, range(10, 21))
    pruner.finish()
    assert 0.2 < explored(memory(pruner), 1620) < 1
    assert all(torch.equal(memory(whole)[name], bits) for name, bits in memory(pruner).items())


def test_options_have_their_effect() -> None:
    digests = {
        prune(small_cnn(), "rigl_itop", 0.8, 24, **options).summary()["digest"]
        for options in (
            {},
            {"allocation": "uniform"},
            {"growth": "random"},
            {"rate": 0.3},
            {"final_rate": 0.2},
            {"updates": 2},
            {"interval": 7},
        )
    }
    assert len(digests) == 7

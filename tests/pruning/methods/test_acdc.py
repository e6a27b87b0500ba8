"""AC/DC: the phases by step, the reset at decompression, and equivalence to one-shot."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.methods.acdc import AcdcOptions
from tests.pruning.training import OPTIMIZERS, copy_of, make_pruner, prune, same, small_cnn, train


def test_default_phases_are_those_of_a_hundred_epochs() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "acdc", 0.9, 100)
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    sparse: list[int] = []

    def look(step: int) -> None:
        if pruner.masks is not None:
            assert pruner.masks.kept() == 162
            sparse.append(step)

    train(model, pruner, bound, range(1, 101), after_step=look)
    pruner.finish()
    compressed = [range(start, start + 5) for start in range(10, 70, 10)]
    expected = [*compressed, range(70, 75), range(85, 101)]
    assert sparse == [step for phase in expected for step in phase]
    kinds = [event["kind"] for event in pruner.summary()["events"]]
    assert kinds == ["compress", "decompress"] * 7 + ["compress"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decompression_zeroes_all_state_and_leaves_removed_weights_at_zero(optimizer: str) -> None:
    model = small_cnn()
    pruner = make_pruner(model, "acdc", 0.8, 10, compress=(0.2, 0.8), decompress=(0.6,))
    bound = OPTIMIZERS[optimizer](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 6))
    masks = pruner.masks
    assert masks is not None
    train(model, pruner, bound, range(6, 7))
    assert pruner.masks is None
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
    assert len(bound.state) == len(list(model.parameters()))
    for state in bound.state.values():
        assert not any(value.any() for value in state.values())
    train(model, pruner, bound, range(7, 8))
    for name, mask in masks.items():
        assert model.get_parameter(name).detach()[~mask].count_nonzero() > 0, "all weights train"


def test_after_the_reset_the_optimizer_is_as_new() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "acdc", 0.8, 10, compress=(0.2, 0.8), decompress=(0.5,))
    bound = OPTIMIZERS["adam"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 6))
    fresh = small_cnn()
    fresh.load_state_dict(model.state_dict())
    train(fresh, None, OPTIMIZERS["adam"](fresh.parameters()), range(6, 8))
    train(model, pruner, bound, range(6, 8))
    assert same(copy_of(model), copy_of(fresh))


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk", "lamp"])
def test_without_decompression_it_is_one_shot_and_fine_tuning(allocation: str) -> None:
    cyclic, once = small_cnn(), small_cnn()
    left = prune(cyclic, "acdc", 0.9, 8, compress=(0.0,), decompress=(), allocation=allocation)
    right = prune(once, "magnitude", 0.9, 8, allocation=allocation)
    assert left.summary()["digest"] == right.summary()["digest"]
    assert same(copy_of(cyclic), copy_of(once))


def test_every_compression_is_to_the_pattern_and_weights_return_between() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "acdc", 0.5, 40, keep_dense=("first_conv",), allocation="2:4")
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    seen: dict[int, Masks] = {}

    def look(step: int) -> None:
        if pruner.masks is not None:
            seen[step] = pruner.masks
            for mask in pruner.masks.values():
                assert set(mask.movedim(1, -1).reshape(-1, 4).sum(1).tolist()) == {2}

    train(model, pruner, bound, range(1, 41), after_step=look)
    pruner.finish()
    assert {4, 40} <= set(seen) and 7 not in seen
    assert bool((seen[40]["3.weight"] & ~seen[4]["3.weight"]).any())
    with pytest.raises(UserError, match="groups of 4"):
        make_pruner(small_cnn(), "acdc", 0.5, 40, allocation="2:4")


def test_each_phase_needs_a_step_of_its_own_and_the_advice_works() -> None:
    with pytest.raises(UserError, match="at least 20 steps"):
        make_pruner(small_cnn(), "acdc", 0.9, 9)
    for steps in range(20, 120):
        make_pruner(small_cnn(), "acdc", 0.9, steps)


@pytest.mark.parametrize(
    "options",
    [
        {"compress": (0.1, 0.2), "decompress": ()},
        {"compress": (0.2,), "decompress": (0.1,)},
        {"compress": (0.1,), "decompress": (0.5,)},
        {"compress": (0.1, 0.5), "decompress": (0.5,)},
        {"compress": (), "decompress": ()},
    ],
    ids=str,
)
def test_phases_that_do_not_alternate_are_refused(options: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValidationError):
        AcdcOptions.model_validate(options)

"""gmp: its updates, monotone masks and ranked-again ones, equivalence to one-shot, patterns."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.methods.gmp import GmpOptions
from sparse_transfer.pruning.schedule import cubic
from tests.pruning.training import OPTIMIZERS, copy_of, make_pruner, prune, same, small_cnn, train


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk", "lamp"])
@pytest.mark.parametrize("initial", [0.0, 0.3])
def test_sparsity_follows_the_cubic_and_masks_only_shrink(allocation: str, initial: float) -> None:
    model = small_cnn()
    pruner = make_pruner(
        model,
        "gmp",
        0.9,
        40,
        allocation=allocation,
        start=0.25,
        end=0.75,
        updates=5,
        initial_sparsity=initial,
    )
    seen: list[Masks | None] = []
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 41), after_step=lambda step: seen.append(pruner.masks))
    pruner.finish()
    total = 216 + 864 + 540
    expected = 0.0
    for step, masks in enumerate(seen, start=1):
        if step == 10:
            expected = initial
        elif step in (14, 18, 22, 26, 30):
            expected = cubic((step - 10) / 20, initial, 0.9)
        kept = total if masks is None else masks.kept()
        assert kept == round(total * (1 - expected)), step
    held = [masks for masks in seen if masks is not None]
    for before, after in zip(held, held[1:], strict=False):
        assert all(bool((before[name] | ~after[name]).all()) for name in after)


def test_one_update_equals_one_shot_of_the_weights_at_that_step() -> None:
    gradual, plain = small_cnn(), small_cnn()
    mask = prune(gradual, "gmp", 0.8, 1, start=0.0, end=1.0, updates=1).masks
    train(plain, None, OPTIMIZERS["sgd"](plain.parameters()), range(1, 2))
    reference = prune(plain, "magnitude", 0.8, 0).masks
    assert mask is not None and reference is not None
    assert mask.digest() == reference.digest()
    assert torch.equal(gradual.get_parameter("3.weight"), plain.get_parameter("3.weight"))


def test_impossible_windows_and_starts_are_refused() -> None:
    with pytest.raises(ValidationError, match="`start` must lie before `end`"):
        GmpOptions(start=0.5, end=0.5)
    with pytest.raises(UserError, match="cannot start at sparsity 0.9 to reach 0.8"):
        make_pruner(small_cnn(), "gmp", 0.8, 40, initial_sparsity=0.9)


def test_runs_share_every_bit_until_the_first_event() -> None:
    plain, pruned = small_cnn(), small_cnn()
    train(plain, None, OPTIMIZERS["sgd"](plain.parameters()), range(1, 10))
    pruner = make_pruner(pruned, "gmp", 0.9, 40, start=0.25)
    bound = OPTIMIZERS["sgd"](pruned.parameters())
    pruner.bind(bound)
    pruner.start()
    train(pruned, pruner, bound, range(1, 10))
    assert pruner.masks is None
    pairs = zip(plain.parameters(), pruned.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_pattern_is_reached_along_the_cubic_and_never_undercut() -> None:
    model = small_cnn()
    pruner = make_pruner(
        model, "gmp", 0.5, 40, keep_dense=("first_conv",), allocation="2:4", updates=5
    )
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    seen: list[Masks] = []

    def look(step: int) -> None:
        if pruner.masks is not None:
            seen.append(pruner.masks)
            for mask in pruner.masks.values():
                assert int(mask.movedim(1, -1).reshape(-1, 4).sum(1).min()) >= 2

    train(model, pruner, bound, range(1, 41), after_step=look)
    pruner.finish()
    assert len({masks.kept() for masks in seen}) == 5
    for mask in seen[-1].values():
        assert set(mask.movedim(1, -1).reshape(-1, 4).sum(1).tolist()) == {2}
    for before, after in pairwise(seen):
        assert all(bool((before[name] | ~after[name]).all()) for name in after)
    with pytest.raises(UserError, match="2:4 sparsity is 0.5, but 0.9"):
        make_pruner(small_cnn(), "gmp", 0.9, 40, keep_dense=("first_conv",), allocation="2:4")


def four_weights(rerank: bool) -> list[float]:
    """.3 goes before training; the one step takes .5 to .1 and .6 to .2, then two may stay."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.9, 0.3, 0.5, 0.6]]))
    options = {"start": 0.0, "end": 1.0, "updates": 1, "initial_sparsity": 0.25}
    pruner = make_pruner(model, "gmp", 0.5, 1, rerank=rerank, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    pruner.bind(optimizer)
    pruner.start()
    assert model.weight.detach()[0, 1] == 0
    model(torch.tensor([[0.0, 7.0, 0.4, 0.4]])).sum().backward()
    pruner.after_backward(1)
    optimizer.step()
    pruner.after_step(1)
    pruner.finish()
    assert optimizer.state[model.weight]["momentum_buffer"][0, 1] == 0
    return model.weight[0].tolist()


def test_ranked_again_a_weight_returns_with_the_value_that_it_had() -> None:
    assert four_weights(rerank=False) == pytest.approx([0.9, 0.0, 0.0, 0.2])
    assert four_weights(rerank=True) == pytest.approx([0.9, 0.3, 0.0, 0.0])


def test_a_weight_is_remembered_for_longer_than_one_update() -> None:
    """.3 goes before training, .5 after step 1; step 2 takes .9 and .6 below both."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.9, 0.3, 0.5, 0.6]]))
    options = {"start": 0.0, "end": 1.0, "updates": 2, "initial_sparsity": 0.25}
    pruner = make_pruner(model, "gmp", 0.5, 2, rerank=True, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    pruner.bind(optimizer)
    pruner.start()
    for step, gradient in ((1, [0.0] * 4), (2, [0.8, 0.0, 0.0, 0.4])):
        optimizer.zero_grad()
        model(torch.tensor([gradient])).sum().backward()
        pruner.after_backward(step)
        optimizer.step()
        pruner.after_step(step)
        if step == 1:
            assert model.weight[0].tolist() == pytest.approx([0.9, 0.0, 0.0, 0.6])
    assert model.weight[0].tolist() == pytest.approx([0.0, 0.3, 0.5, 0.0])


@pytest.mark.parametrize("allocation", ["global", "lamp"])
def test_ranking_again_changes_nothing_while_no_weight_moves(allocation: str) -> None:
    models = []
    for rerank in (False, True):
        model = small_cnn()
        pruner = make_pruner(model, "gmp", 0.9, 20, rerank=rerank, allocation=allocation)
        bound = torch.optim.SGD(model.parameters(), lr=0.0)
        pruner.bind(bound)
        pruner.start()
        train(model, pruner, bound, range(1, 21))
        pruner.finish()
        models.append(copy_of(model))
    assert same(*models)


def test_ranking_again_lets_weights_return_and_keeps_every_count() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "gmp", 0.9, 40, rerank=True, start=0.25, updates=5)
    bound = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    pruner.bind(bound)
    pruner.start()
    seen: list[Masks] = []

    def look(step: int) -> None:
        if pruner.masks is not None:
            seen.append(pruner.masks)

    train(model, pruner, bound, range(1, 41), after_step=look)
    pruner.finish()
    events = pruner.summary()["events"]
    counts = list(dict.fromkeys(masks.kept() for masks in seen))
    assert counts == [round(1620 * (1 - event["sparsity"])) for event in events]
    returned = [
        int((after[name] & ~before[name]).sum())
        for before, after in pairwise(seen)
        for name in after
    ]
    assert sum(returned) > 20


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
def test_remembered_values_survive_an_interruption(optimizer: str) -> None:
    whole = small_cnn()
    expected = prune(whole, "gmp", 0.9, 24, rerank=True, optimizer=optimizer).summary()
    for stop in (3, 11, 17):
        model = small_cnn()
        pruner = make_pruner(model, "gmp", 0.9, 24, rerank=True)
        bound = OPTIMIZERS[optimizer](model.parameters())
        pruner.bind(bound)
        pruner.start()
        train(model, pruner, bound, range(1, stop + 1))
        saved = copy.deepcopy((model.state_dict(), bound.state_dict(), pruner.state_dict()))
        model = small_cnn(seed=1)
        pruner = make_pruner(model, "gmp", 0.9, 24, rerank=True)
        bound = OPTIMIZERS[optimizer](model.parameters())
        model.load_state_dict(saved[0])
        bound.load_state_dict(saved[1])
        pruner.load_state_dict(saved[2])
        pruner.bind(bound)
        train(model, pruner, bound, range(stop + 1, 25))
        pruner.finish()
        assert same(copy_of(whole), copy_of(model)) and pruner.summary() == expected

"""sr_ste: forward, backward and pull by hand, exact groups at the end, plain weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.methods.sr_ste import Method, SrSteOptions, StraightThrough
from tests.pruning.training import OPTIMIZERS, copy_of, make_pruner, prune, same, small_cnn, train

FIRST = ("first_conv",)


def test_four_weights_by_hand() -> None:
    weight = torch.tensor([[0.1, -0.4, 0.3, 0.2]], requires_grad=True)
    gradient = torch.tensor([[1.0, 2.0, -3.0, 4.0]])
    method, module = Method(SrSteOptions(decay=0.5)), StraightThrough((2, 4))
    masked = module(weight)
    assert masked.tolist() == torch.tensor([[0.0, -0.4, 0.3, 0.0]]).tolist()
    masked.backward(gradient)
    assert torch.equal(weight.grad, gradient)  # straight through
    pull = method.penalty({"w": module})
    assert pull is not None and pull.item() == pytest.approx(0.25 * (0.01 + 0.04))
    pull.backward()
    expected = gradient + 0.5 * torch.tensor([[0.1, 0.0, 0.0, 0.2]])
    torch.testing.assert_close(weight.grad, expected)


def test_n_of_n_is_the_identity_with_its_own_gradient() -> None:
    weight = torch.randn(3, 8, 2, 2, requires_grad=True)
    masked = StraightThrough((4, 4))(weight)
    gradient = torch.randn(3, 8, 2, 2)
    masked.backward(gradient)
    assert torch.equal(masked, weight) and torch.equal(weight.grad, gradient)


def test_what_is_masked_decays_geometrically_and_the_rest_stays() -> None:
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.1, -0.4, 0.3, 0.2]]))
    pruner = make_pruner(model, "sr_ste", 0.5, 20, decay=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pruner.bind(optimizer)
    pruner.start()
    for step in range(1, 21):
        optimizer.zero_grad()
        loss = (0 * model(torch.ones(1, 4))).sum()
        pull = pruner.penalty()
        assert pull is not None
        (loss + pull).backward()
        pruner.after_backward(step)
        optimizer.step()
        pruner.after_step(step)
    dense = model.get_parameter("parametrizations.weight.original").detach()
    factor = (1 - 0.5 * 0.2) ** 20
    torch.testing.assert_close(dense, torch.tensor([[0.1 * factor, -0.4, 0.3, 0.2 * factor]]))
    pruner.finish()
    assert torch.equal(model.weight.detach(), torch.tensor([[0.0, -0.4, 0.3, 0.0]]))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_ends_with_plain_weights_in_exact_groups(optimizer: str) -> None:
    model = small_cnn()
    pruner = make_pruner(model, "sr_ste", 0.75, 12, keep_dense=FIRST, pattern="1:4")
    bound = OPTIMIZERS[optimizer](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 13))
    images = torch.randn(3, 3, 8, 8)
    model.eval()
    with torch.no_grad():
        before = model(images)
        pruner.finish()
        assert torch.equal(model(images), before)
    assert copy_of(model).keys() == copy_of(small_cnn()).keys()
    assert pruner.masks is not None and pruner.masks.sparsity() == 0.75
    for name, mask in pruner.masks.items():
        assert set(mask.movedim(1, -1).reshape(-1, 4).sum(1).tolist()) == {1}
        assert not model.get_parameter(name).detach()[~mask].any()


def test_weights_that_are_masked_train_and_return() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "sr_ste", 0.5, 12, keep_dense=FIRST)
    start = (model[3].weight != 0).clone()  # type: ignore[union-attr]
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 13))
    pruner.finish()
    assert pruner.masks is not None
    returned = int((pruner.masks["3.weight"] & ~start).sum())
    assert 0 < returned < 432


def test_exact_groups_also_where_kept_weights_are_zero() -> None:
    masks = Method(SrSteOptions()).final_masks({"w": torch.tensor([[0.0, 0.0, 0.0, 3.0]])})
    assert masks["w"].int().tolist() == [[1, 0, 0, 1]]


def test_a_pattern_that_keeps_all_is_plain_training() -> None:
    pruned, plain = small_cnn(), small_cnn()
    prune(pruned, "sr_ste", 0.0, 5, pattern="4:4")
    train(plain, None, OPTIMIZERS["sgd"](plain.parameters()), range(1, 6))
    assert same(copy_of(pruned), copy_of(plain))


def test_a_resumed_run_equals_an_uninterrupted_one() -> None:
    whole = small_cnn()
    expected = prune(whole, "sr_ste", 0.5, 10, keep_dense=FIRST, optimizer="adamw").summary()
    model = small_cnn()
    pruner = make_pruner(model, "sr_ste", 0.5, 10, keep_dense=FIRST)
    bound = OPTIMIZERS["adamw"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 5))
    saved = copy.deepcopy((model.state_dict(), bound.state_dict(), pruner.state_dict()))
    model = small_cnn(seed=1)
    pruner = make_pruner(model, "sr_ste", 0.5, 10, keep_dense=FIRST)
    bound = OPTIMIZERS["adamw"](model.parameters())
    model.load_state_dict(saved[0])
    bound.load_state_dict(saved[1])
    pruner.load_state_dict(saved[2])
    pruner.bind(bound)
    train(model, pruner, bound, range(5, 11))
    pruner.finish()
    assert same(copy_of(whole), copy_of(model)) and pruner.summary() == expected


def test_what_does_not_fit_is_refused_before_the_first_step() -> None:
    with pytest.raises(UserError, match="2:4 sparsity is 0.5, but 0.9"):
        make_pruner(small_cnn(), "sr_ste", 0.9, 10, keep_dense=FIRST)
    with pytest.raises(UserError, match="input channels that come in groups of 4"):
        make_pruner(small_cnn(), "sr_ste", 0.5, 10)


def test_the_pull_does_not_grow_with_accumulation() -> None:
    gradients = []
    for parts in (1, 4):
        model = small_cnn()
        pruner = make_pruner(model, "sr_ste", 0.5, 2, keep_dense=FIRST, decay=100.0)
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        for part in range(parts):
            loss = model(images).sum() * 0
            pull = pruner.penalty() if part == parts - 1 else None
            (loss if pull is None else loss + pull).backward()
        gradients.append(model.get_parameter("3.parametrizations.weight.original").grad)
        copy.deepcopy(model)  # no graph is left behind
    assert gradients[0] is not None and gradients[0].abs().sum() > 0
    assert torch.equal(gradients[0], gradients[1])  # type: ignore[arg-type]

"""l1: the proximal step against a numerical minimum, its fixed point, and where zeros come from."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from sparse_transfer.pruning.methods.l1 import L1Options, Method
from tests.pruning.training import OPTIMIZERS, copy_of, make_pruner, prune, same, small_cnn, train


def test_by_hand() -> None:
    weight = torch.tensor([0.5, -0.5, 0.125, -0.125, 0.0, 0.25])
    Method(L1Options(strength=0.5)).shrink({"w": weight}, 0.5)
    assert weight.tolist() == [0.25, -0.25, 0, 0, 0, 0]


@pytest.mark.parametrize("value", [-1.3, -0.2, 0.0, 0.07, 2.0])
def test_it_is_the_proximal_operator(value: float) -> None:
    weight = torch.tensor([value])
    Method(L1Options(strength=3.0)).shrink({"w": weight}, 0.1)
    found = minimize_scalar(lambda x: 0.5 * (x - value) ** 2 + 0.3 * abs(x))
    assert weight.item() == pytest.approx(found.x, abs=1e-5)


def test_a_quadratic_ends_at_the_known_minimum() -> None:
    """0.5 (w - a)^2 + strength |w| is least at sign(a) max(|a| - strength, 0)."""
    model = nn.Linear(4, 1, bias=False)
    a = torch.tensor([[0.9, -0.5, 0.2, -0.1]])
    pruner = make_pruner(model, "l1", 0.0, 200, strength=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.bind(optimizer)
    pruner.start()
    for step in range(1, 201):
        optimizer.zero_grad()
        (0.5 * (model.weight - a) ** 2).sum().backward()
        pruner.after_backward(step)
        optimizer.step()
        pruner.after_step(step)
    pruner.finish()
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[0.6, -0.2, 0.0, 0.0]]))
    assert pruner.masks is not None
    assert pruner.masks["weight"].tolist() == [[True, True, False, False]]


def test_more_strength_gives_more_exact_zeros() -> None:
    found = []
    for strength in (1e-6, 0.1, 0.2, 0.4):
        model = small_cnn()
        pruner = prune(model, "l1", 0.0, 12, strength=strength)
        found.append(pruner.summary()["measured_sparsity"])
        if pruner.masks is not None:
            for name, mask in pruner.masks.items():
                assert torch.equal(model.get_parameter(name) != 0, mask)
    assert found == sorted(found) and found[0] == 0 and found[-1] > 0.5


def test_only_prunable_weights_shrink() -> None:
    model = small_cnn()
    before = copy_of(model)
    pruner = make_pruner(model, "l1", 0.0, 1, keep_dense=("first_conv",), strength=1.0)
    pruner.bind(torch.optim.SGD(model.parameters(), lr=0.01))
    pruner.start()
    pruner.after_step(1)
    changed = {name for name, value in copy_of(model).items() if not value.equal(before[name])}
    assert changed == {"3.weight", "7.weight"}
    expected = before["3.weight"].sign() * (before["3.weight"].abs() - 0.01).clamp(min=0)
    torch.testing.assert_close(model.get_parameter("3.weight").detach(), expected)


def test_zeros_return_until_training_ends() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "l1", 0.0, 12, strength=0.1)
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    weight = model.get_parameter("3.weight")
    alive: list[torch.Tensor] = []
    train(model, pruner, bound, range(1, 13), after_step=lambda step: alive.append(weight != 0))
    assert any(bool((after & ~before).any()) for before, after in pairwise(alive))


def test_at_learning_rate_zero_nothing_shrinks() -> None:
    weight = torch.randn(9)
    before = weight.clone()
    Method(L1Options()).shrink({"w": weight}, 0.0)
    assert torch.equal(weight, before)


def test_the_same_run_twice_is_the_same() -> None:
    models = [small_cnn(), small_cnn()]
    for model in models:
        prune(model, "l1", 0.0, 6, strength=0.05)
    assert same(copy_of(models[0]), copy_of(models[1]))

"""str: the threshold and its gradients in closed form, its decay, and plain weights at the end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sparse_transfer.pruning.methods.str_method import SoftThreshold
from tests.pruning.training import OPTIMIZERS, copy_of, make_pruner, prune, same, small_cnn, train

SIGMOID_IS_THREE_QUARTERS = math.log(3)


def test_three_weights_by_hand() -> None:
    relaxation = SoftThreshold(torch.zeros(1), SIGMOID_IS_THREE_QUARTERS)
    found = relaxation(torch.tensor([-2.0, 0.5, 1.0]))
    torch.testing.assert_close(found, torch.tensor([-1.25, 0.0, 0.25]))
    assert found[1] == 0


def test_gradients_are_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, generator=generator, dtype=torch.double).requires_grad_()
    gradient = torch.randn(6, 4, generator=generator, dtype=torch.double)
    relaxation = SoftThreshold(weight.detach(), -0.4)
    relaxation(weight).backward(gradient)
    f = 1 / (1 + math.exp(0.4))
    survives = weight.detach().abs() > f
    assert 0 < survives.sum() < 24
    expected = -f * (1 - f) * (weight.detach().sign() * gradient)[survives].sum()
    assert relaxation.threshold.grad is not None
    torch.testing.assert_close(relaxation.threshold.grad[0], expected)
    torch.testing.assert_close(weight.grad, gradient * survives)


def test_a_threshold_of_zero_is_the_identity() -> None:
    weight = torch.randn(50)
    assert torch.equal(SoftThreshold(weight, -3200.0)(weight), weight)


def test_with_threshold_zero_and_no_decay_it_is_plain_training() -> None:
    relaxed, plain = small_cnn(), small_cnn()
    pruner = make_pruner(relaxed, "str", 0.0, 12, s_init=-3200.0, threshold_decay=0.0)
    extra = pruner.parameter_groups()
    added = {id(p) for group in extra for p in group["params"]}
    own = [p for p in relaxed.parameters() if id(p) not in added]
    bound = OPTIMIZERS["sgd"]([{"params": own}, *extra])
    pruner.bind(bound)
    pruner.start()
    train(relaxed, pruner, bound, range(1, 13))
    pruner.finish()
    train(plain, None, OPTIMIZERS["sgd"](plain.parameters()), range(1, 13))
    assert same(copy_of(relaxed), copy_of(plain)) and pruner.masks is None


@pytest.mark.parametrize(("decay", "used"), [(None, 1e-3), (4e-3, 4e-3)])
def test_without_a_task_gradient_s_decays_by_the_formula(decay: float | None, used: float) -> None:
    """s(t) = s_init exp(-decay sum(lr) / (1 - momentum)), up to the start of the momentum."""
    model = nn.Linear(4, 1, bias=False)
    steps, lr, momentum = 800, 0.25, 0.5
    pruner = make_pruner(model, "str", 0.0, steps, s_init=-3200.0, threshold_decay=decay)
    (group,) = pruner.parameter_groups()
    assert ("weight_decay" in group) == (decay is not None)
    optimizer = torch.optim.SGD([group], lr=lr, momentum=momentum, weight_decay=1e-3)
    (s,) = group["params"]
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 4)).sum().backward()
        assert s.grad == 0  # the sigmoid and its slope are exactly zero there
        optimizer.step()
    expected = -3200 * math.exp(-used * steps * lr / (1 - momentum))
    assert s.item() == pytest.approx(expected, rel=4e-3)


def test_one_threshold_for_each_layer_in_a_group_of_its_own() -> None:
    pruner = make_pruner(small_cnn(), "str", 0.0, 5, threshold_decay=0.25)
    (group,) = pruner.parameter_groups()
    assert [tuple(p.shape) for p in group["params"]] == [(1,)] * 3
    assert [p.item() for p in group["params"]] == [-10.0] * 3
    assert group["weight_decay"] == 0.25


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_ends_with_plain_weights_and_their_zeros(optimizer: str) -> None:
    model = small_cnn()
    pruner = make_pruner(model, "str", 0.0, 12, s_init=-3.0)
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
    assert pruner.masks is not None and 0.2 < pruner.masks.sparsity() < 1
    for name, mask in pruner.masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
    assert pruner.summary()["target_sparsity"] is None


def test_a_start_nearer_to_zero_gives_more_zeros() -> None:
    found = [
        prune(small_cnn(), "str", 0.0, 8, s_init=s).summary()["measured_sparsity"]
        for s in (-10.0, -5.0, -3.0, -2.5)
    ]
    assert found == sorted(found) and found[0] < 0.01 and found[-1] > 0.5

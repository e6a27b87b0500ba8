"""slimming: the penalty's subgradient, exact percentiles, and when the penalty acts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.pruning.structured.shrinking import make_pruner, model_of, prune
from tests.pruning.training import OPTIMIZERS, small_cnn, train


def test_the_penalty_and_its_subgradient() -> None:
    model = small_cnn()
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([1.0, -2, 0, 3, 0, 0, -1, 0]))
    pruner = make_pruner(model, "slimming", 0.5, 10, strength=0.01)
    penalty = pruner.penalty()
    assert penalty is not None and float(penalty.detach()) == pytest.approx(0.01 * (7 + 12))
    penalty.backward()
    gradient = model.get_parameter("1.weight").grad
    assert gradient is not None
    expected = torch.tensor([0.01, -0.01, 0, 0.01, 0, 0, -0.01, 0])
    torch.testing.assert_close(gradient, expected)  # sign(0) = 0
    assert model.get_parameter("0.weight").grad is None
    assert make_pruner(model, "slimming", 0.5, 10, strength=0.0).penalty() is None
    assert make_pruner(model, "slimming", 0.0, 10).penalty() is None


def test_scales_of_channels_that_stay_pay_nothing() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "slimming", 0.2, 10, strength=0.01, keep_dense=("first_conv",))
    penalty = pruner.penalty()
    assert penalty is not None and float(penalty.detach()) == pytest.approx(0.01 * 12)


def test_exactly_the_smallest_scales_of_all_layers_go() -> None:
    model, size = model_of("vgg19_cifar")
    scales = {
        name: model.get_parameter(name).detach().clone()
        for name, p in model.named_parameters()
        if p.dim() == 1 and name.endswith("weight")
    }
    pruner = make_pruner(model, "slimming", 0.6, 0, size=size, at=0.0)
    pruner.start()
    pruner.finish()
    removed = pruner.summary()["events"][0]["channels"]
    values = np.concatenate([s.numpy() for s in scales.values()])
    cut = np.partition(values, removed)[removed]  # the smallest value that stays
    assert 0 < removed < len(values)
    for name, before in scales.items():
        assert torch.equal(model.get_parameter(name), before[before >= cut])


def test_the_penalty_shrinks_scales_until_the_cut_and_ends_there() -> None:
    def at_the_cut(strength: float) -> float:
        model = small_cnn()
        pruner = make_pruner(model, "slimming", 0.5, 40, strength=strength)
        bound = OPTIMIZERS["sgd"](model.parameters())
        pruner.bind(bound)
        pruner.start()
        train(model, pruner, bound, range(1, 20))  # type: ignore[arg-type]
        assert pruner.prunes == (20,) and (pruner.penalty() is not None) == (strength > 0)
        total = sum(float(model.get_parameter(f"{n}.weight").detach().abs().sum()) for n in (1, 4))
        train(model, pruner, bound, range(20, 21))  # type: ignore[arg-type]
        assert pruner.penalty() is None and pruner.last_cut is not None
        return total

    assert at_the_cut(0.05) < 0.9 * at_the_cut(0.0)


def test_each_layer_keeps_a_channel() -> None:
    model = small_cnn()
    with torch.no_grad():
        model.get_parameter("4.weight").fill_(1e-9)
    pruner = prune(model, "slimming", 0.3, 4, at=0.25)
    assert min(left for left, _ in pruner.summary()["channels"].values()) >= 1

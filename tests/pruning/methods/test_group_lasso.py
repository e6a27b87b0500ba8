"""group_lasso: whole channels shrink, the step against a numerical minimum, and its fixed point."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from sparse_transfer.pruning.methods.group_lasso import GroupLassoOptions, Method
from tests.pruning.training import copy_of, make_pruner, prune, small_cnn


def test_by_hand() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [-6.0, 8.0]])
    Method(GroupLassoOptions(strength=10.0)).shrink({"w": weight}, 0.1 / math.sqrt(2))
    expected = torch.tensor([[2.4, 3.2], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [-5.4, 7.2]])
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-6)
    assert not weight[2:4].any()


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 2), (2, 3, 2, 2)])
def test_it_is_the_proximal_operator(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.double)
    start = weight.clone()
    Method(GroupLassoOptions(strength=2.0)).shrink({"w": weight}, 0.1)
    for before, after in zip(start, weight, strict=True):
        w = before.flatten().numpy()
        threshold = 0.2 * math.sqrt(len(w))
        found = minimize(
            lambda x, w=w, t=threshold: 0.5 * ((x - w) ** 2).sum() + t * math.sqrt((x**2).sum()),
            w,
            tol=1e-10,
        )
        assert after.flatten().tolist() == pytest.approx(found.x.tolist(), abs=1e-4)


def test_a_quadratic_ends_at_the_known_minimum() -> None:
    """0.5 ||w - a||^2 + t ||w|| is least at a max(0, 1 - t / ||a||); t = strength sqrt(n) = .5."""
    model = nn.Linear(2, 3, bias=False)
    a = torch.tensor([[3.0, 4.0], [0.1, -0.1], [-0.6, 0.8]])
    pruner = make_pruner(model, "group_lasso", 0.0, 200, strength=0.5 / math.sqrt(2))
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
    expected = torch.tensor([[2.7, 3.6], [0.0, 0.0], [-0.3, 0.4]])
    torch.testing.assert_close(model.weight.detach(), expected, atol=1e-5, rtol=1e-5)
    assert pruner.masks is not None
    assert pruner.masks["weight"].tolist() == [[True] * 2, [False] * 2, [True] * 2]


def test_a_run_removes_whole_channels_and_more_of_them_with_strength() -> None:
    found = []
    for strength in (1e-6, 0.5, 0.9):
        model = small_cnn()
        pruner = prune(model, "group_lasso", 0.0, 12, keep_dense=("head",), strength=strength)
        found.append(pruner.summary()["measured_sparsity"])
        for mask in (pruner.masks or {}).values():
            channels = mask.flatten(1)
            assert torch.equal(channels.all(1), channels.any(1))
    assert found == sorted(found) and found[0] == 0 and 0 < found[1] < found[2]


def test_a_channel_of_any_layer_only_changes_its_length() -> None:
    model = small_cnn()
    before = copy_of(model)
    pruner = make_pruner(model, "group_lasso", 0.0, 1, keep_dense=("head",), strength=1.0)
    pruner.bind(torch.optim.SGD(model.parameters(), lr=0.01))
    pruner.start()
    pruner.after_step(1)
    for name, old in before.items():
        new = model.state_dict()[name]
        if name not in ("0.weight", "3.weight"):
            assert torch.equal(new, old)
            continue
        old, new = old.flatten(1), new.flatten(1)
        threshold = 0.01 * math.sqrt(old.shape[1])
        torch.testing.assert_close(new.norm(dim=1), old.norm(dim=1) - threshold)
        torch.testing.assert_close(nn.functional.normalize(new), nn.functional.normalize(old))

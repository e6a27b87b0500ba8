"""Gradients at chosen weights that leave the network alone, and removal in equal shares."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.criteria import Scores
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.sensitivity import (
    Statistics,
    gradients_of,
    hessian_product,
    leaves,
    loss_of,
    remove_in_rounds,
)
from tests.pruning.training import batch, copy_of, same, small_cnn


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_gradients_are_those_of_a_backward_pass(statistics: Statistics) -> None:
    model = small_cnn().eval()
    images, labels = batch(1, 0, 8)
    reference = copy.deepcopy(model).train(statistics == "batch")
    nn.functional.cross_entropy(reference(images) / 3, labels).backward()
    before = copy_of(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # frozen layers have gradients here, too
    weights = leaves(prunable(model))
    loss = loss_of(model, weights, images, labels, statistics=statistics, temperature=3.0)
    found = gradients_of(loss, weights)
    assert list(found) == ["0.weight", "3.weight", "7.weight"]
    for name, gradient in found.items():
        expected = reference.get_parameter(name).grad
        assert expected is not None and torch.allclose(gradient, expected, atol=1e-7)
    assert same(before, copy_of(model))
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_given_weights_take_the_place_of_the_models() -> None:
    model = small_cnn().eval()
    images, labels = batch(1, 0, 8)
    other = small_cnn(seed=1).eval()
    loss = loss_of(model, dict(other.named_parameters()), images, labels)
    assert torch.equal(loss, nn.functional.cross_entropy(other(images), labels))


def test_a_layer_outside_the_output_is_refused() -> None:
    x, y = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    with pytest.raises(UserError, match="gradient of 'idle.weight' is needed") as refusal:
        gradients_of((2 * x).sum(), {"used.weight": x, "idle.weight": y})
    assert "keep_dense" in refusal.value.hint


def test_the_hessian_of_a_quadratic_by_hand() -> None:
    root = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double()
    a = root @ root.T
    weights = leaves({"w": torch.tensor([1.0, -2.0, 0.5, 3.0]).double()})
    w = weights["w"].detach()

    def value() -> Tensor:
        return 0.5 * weights["w"] @ a @ weights["w"]

    gradient = gradients_of(value(), weights)
    assert torch.allclose(gradient["w"], a @ w)
    assert torch.allclose(hessian_product(value(), weights, gradient)["w"], a @ a @ w)


def test_rounds_remove_equal_shares_and_end_at_the_target() -> None:
    seen: list[int] = []

    def score(masks: Masks, round_: int) -> Scores:
        assert round_ == len(seen)
        seen.append(masks.kept())
        return {"w": torch.arange(1000.0).roll(100 * round_)}

    start = Masks.ones({"w": torch.empty(1000)})
    masks = remove_in_rounds(start, 0.992, 3, "global", score)
    assert [*seen, masks.kept()] == [1000, 200, 40, 8]  # .008 ** (k / 3)
    seen.clear()
    assert remove_in_rounds(masks, 0.992, 3, "global", score).kept() == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    def score(masks: Masks, round_: int) -> dict[str, Tensor]:
        return {"w": torch.tensor([1.0, bad])}

    with pytest.raises(UserError, match="diverged"):
        remove_in_rounds(Masks.ones({"w": torch.empty(2)}), 0.5, 1, "global", score)

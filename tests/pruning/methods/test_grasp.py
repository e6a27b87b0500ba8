"""grasp: w (H g) against an explicit Hessian and a difference quotient, its sign, its refusals."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.methods.grasp import GraspOptions, Method
from tests.pruning.scenes import examples_of, one_shot, scene_of
from tests.pruning.training import CLASSES, copy_of, same, small_cnn

BATCHES, SIZE = 3, 8
EXAMPLES = examples_of(4, torch.float64)


def grasp(**options: object) -> Method:
    defaults = {"batches": BATCHES, "batch_size": SIZE, "temperature": 2.0}
    return Method(GraspOptions.model_validate({**defaults, **options}))


def tiny() -> nn.Module:
    """64 prunable weights, with batch norm and a bias, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 2, 2, stride=2),
        nn.BatchNorm2d(2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).double()


def mean_loss(model: nn.Module, flat: Tensor) -> Tensor:
    """The mean over all the images, batch norm as in training, at the given prunable weights."""
    reference = copy.deepcopy(model).train()
    layers = prunable(reference)
    parts = flat.split([w.numel() for w in layers.values()])
    given = {n: part.reshape(w.shape) for (n, w), part in zip(layers.items(), parts, strict=True)}
    losses = []
    for number in range(BATCHES):
        images, labels = EXAMPLES(number, SIZE)
        logits = functional_call(reference, given, (images,)) / 2.0
        losses.append(nn.functional.cross_entropy(logits, labels))
    return torch.stack(losses).mean()


def flat_weights(model: nn.Module) -> Tensor:
    return torch.cat([w.detach().flatten() for w in prunable(model).values()])


def flat_scores(method: Method, model: nn.Module, masks: Masks | None = None) -> Tensor:
    scene = scene_of(model, EXAMPLES, masks=masks)
    scores = method.flow(scene, scene.masks)
    return torch.cat([score.flatten() for score in scores.values()]).double()


def test_scores_and_choice_agree_with_an_explicit_hessian() -> None:
    model = tiny()
    w = flat_weights(model)

    def loss(flat: Tensor) -> Tensor:
        return mean_loss(model, flat)

    gradient = torch.autograd.functional.jacobian(loss, w)
    hessian = torch.autograd.functional.hessian(loss, w)
    expected = w * (hessian @ gradient)
    assert (expected < 0).any() and (expected > 0).any()
    scores = flat_scores(grasp(), model)
    assert torch.allclose(scores, expected, rtol=1e-4, atol=1e-9)
    masks = one_shot(grasp(), scene_of(model, EXAMPLES), 0.5).masks
    assert masks is not None
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    # The largest -w (H g) go; an absolute value would keep the most negative ones.
    assert expected[kept].min() > expected[~kept].max()
    assert expected[~kept].min() == expected.min()


def test_scores_are_half_of_what_the_gradient_flow_loses() -> None:
    model = tiny()
    w = flat_weights(model).requires_grad_()

    def gradient_flow(flat: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(mean_loss(model, flat), flat)
        return gradient.square().sum()

    scores, step = flat_scores(grasp(), model), 1e-5
    for q in (0, 7, 23, 24, 40, 63):
        less, more = w.detach().clone(), w.detach().clone()
        less[q] *= 1 - step  # a little of the weight removed, and as much added
        more[q] *= 1 + step
        slope = (gradient_flow(more.requires_grad_()) - gradient_flow(less.requires_grad_())) / step
        assert scores[q].item() == pytest.approx(slope.item() / 4, rel=1e-4, abs=1e-9)


def test_gradients_of_pruned_weights_take_no_part() -> None:
    model = tiny()
    generator = torch.Generator().manual_seed(1)
    layers = prunable(model)
    masks = Masks({n: torch.rand(w.shape, generator=generator) < 0.5 for n, w in layers.items()})
    masks.apply(model.named_parameters())
    w = flat_weights(model)

    def loss(flat: Tensor) -> Tensor:
        return mean_loss(model, flat)

    active = torch.cat([mask.flatten() for mask in masks.values()])
    gradient = torch.autograd.functional.jacobian(loss, w)[active]
    hessian = torch.autograd.functional.hessian(loss, w)[active][:, active]
    scores = flat_scores(grasp(), model, masks)
    assert torch.allclose(scores[active], w[active] * (hessian @ gradient), rtol=1e-4, atol=1e-9)
    assert not scores[~active].any()
    further = one_shot(grasp(), scene_of(model, EXAMPLES, masks=masks), 0.8).masks
    assert further is not None and all(bool((masks[n] | ~further[n]).all()) for n in masks)


def test_temperature_and_statistics_matter() -> None:
    model = tiny()
    variants: list[dict[str, object]] = [{}, {"temperature": 200.0}, {"statistics": "running"}]
    scores = [flat_scores(grasp(**options), model) for options in variants]
    assert not torch.allclose(scores[0] / scores[0].sum(), scores[1] / scores[1].sum(), rtol=1e-2)
    assert not torch.allclose(scores[0], scores[2], rtol=1e-2)


def test_it_leaves_the_model_alone() -> None:
    model = small_cnn()
    before = copy_of(model)
    masks = one_shot(grasp(), scene_of(model, examples_of(8)), 0.9).masks
    assert masks is not None and masks.kept() == 162
    assert same(before, copy_of(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_allocation_that_squares_the_scores_is_refused() -> None:
    with pytest.raises(ValidationError, match="have a sign"):
        GraspOptions(allocation="lamp")

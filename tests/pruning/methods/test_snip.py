"""snip: the derivative by the mask, signed means over batches, symmetries, rounds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.methods.snip import Method, SnipOptions
from tests.pruning.scenes import Examples, examples_of, one_shot, scene_of
from tests.pruning.training import CLASSES, copy_of, same, small_cnn

DOUBLE = examples_of(8, torch.float64)


def snip(**options: object) -> Method:
    return Method(SnipOptions.model_validate({"batches": 3, "batch_size": 8, **options}))


def derivatives_by_the_mask(
    model: nn.Module, examples: Examples, batches: int
) -> dict[str, Tensor]:
    """dL/dm at m = 1 for the mean loss of the batches, batch norm as in training."""
    reference = copy.deepcopy(model).train()
    weights = {name: w.detach() for name, w in prunable(reference).items()}
    ones = {name: torch.ones_like(w, requires_grad=True) for name, w in weights.items()}
    masked = {name: w * ones[name] for name, w in weights.items()}
    losses = []
    for number in range(batches):
        images, labels = examples(number, 8)
        logits = functional_call(reference, masked, (images,))
        losses.append(nn.functional.cross_entropy(logits, labels))
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(ones.values()))
    return dict(zip(weights, gradients, strict=True))


def test_scores_are_the_derivatives_by_the_mask() -> None:
    model = small_cnn().double()
    scene = scene_of(model, DOUBLE)
    scores = snip().sensitivity(scene, scene.masks, 0)
    expected = derivatives_by_the_mask(model, DOUBLE, 3)
    for name, score in scores.items():
        assert torch.allclose(score, expected[name].abs().float(), rtol=1e-5)
    masks = one_shot(snip(), scene, 0.9).masks
    best = remove(scene.masks, [Stage(magnitude(expected))], 0.9, "global")
    assert masks is not None and masks.digest() == best.digest()


def test_signs_cancel_between_batches() -> None:
    # The logit of class 0 is w; labels 0 and 1 in turn give gradients -.5 x and .5 x at w = 0.
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model.get_parameter("2.weight").copy_(torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]))

    def examples(number: int, count: int) -> tuple[Tensor, Tensor]:
        channels = torch.tensor([[1.0, 2.0, -1.0], [1.0, 2.0, 1.0]])[number]
        return channels[None, :, None, None].expand(count, 3, 2, 2), torch.full((count,), number)

    scene = scene_of(model, examples)
    scores = snip(batches=2).sensitivity(scene, scene.masks, 0)["2.weight"]
    # Mean gradients of row 0: (-.5 x1 + .5 x2) / 2 = (0, 0, .5); those of row 1 are opposite.
    assert torch.allclose(scores, torch.tensor([[0.0, 0.0, 1.5], [0.0, 0.0, 1.5]]), atol=1e-6)


def test_a_scale_that_batch_norm_takes_back_changes_nothing() -> None:
    model = small_cnn().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30
    before = one_shot(snip(), scene_of(model, DOUBLE), 0.9).masks
    with torch.no_grad():
        model.get_parameter("3.weight").mul_(8)
    after = one_shot(snip(), scene_of(model, DOUBLE), 0.9).masks
    assert before is not None and after is not None and before.digest() == after.digest()
    running = one_shot(snip(statistics="running"), scene_of(model, DOUBLE), 0.9).masks
    assert running is not None and running.digest() != after.digest()


def test_a_scale_that_moves_between_layers_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 16, bias=False), nn.ReLU(), nn.Linear(16, CLASSES)
    ).double()
    before = one_shot(snip(), scene_of(model, DOUBLE), 0.9).masks
    with torch.no_grad():
        model.get_parameter("1.weight").mul_(16)
        model.get_parameter("3.weight").div_(16)
    after = one_shot(snip(), scene_of(model, DOUBLE), 0.9).masks
    assert before is not None and after is not None and before.digest() == after.digest()
    magnitudes = magnitude(prunable(model))
    by_magnitude = remove(Masks.ones(prunable(model)), [Stage(magnitudes)], 0.9, "global")
    assert by_magnitude.counts()["3.weight"] < after.counts()["3.weight"]


def test_two_rounds_score_the_network_that_the_first_one_left() -> None:
    model = small_cnn().double()
    masks = one_shot(snip(iterations=2), scene_of(model, DOUBLE), 0.96).masks

    first = remove(
        Masks.ones(prunable(model)),
        [Stage(magnitude(derivatives_by_the_mask(model, DOUBLE, 3)))],
        0.8,  # a fifth, and a fifth of that
        "global",
    )
    pruned = copy.deepcopy(model)
    first.apply(pruned.named_parameters())

    def later(number: int, count: int) -> tuple[Tensor, Tensor]:
        return DOUBLE(number + 3, count)

    scores = magnitude(derivatives_by_the_mask(pruned, later, 3))
    second = remove(first, [Stage(scores)], 0.96, "global")
    assert masks is not None and masks.digest() == second.digest()
    at_once = one_shot(snip(), scene_of(model, DOUBLE), 0.96).masks
    assert at_once is not None and at_once.digest() != masks.digest()


def test_it_asks_for_what_its_options_say_and_leaves_the_model_alone() -> None:
    model = small_cnn()
    asked: list[tuple[int, int]] = []

    def examples(number: int, count: int) -> tuple[Tensor, Tensor]:
        asked.append((number, count))
        return examples_of(8)(number, count)

    before = copy_of(model)
    masks = one_shot(snip(iterations=2), scene_of(model, examples), 0.9).masks
    assert asked == [(number, 8) for number in range(6)]
    assert same(before, copy_of(model))
    assert masks is not None and masks.kept() == 162


@pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp"])
def test_allocations(allocation: str) -> None:
    masks = one_shot(snip(allocation=allocation), scene_of(small_cnn(), examples_of(8)), 0.9).masks
    assert masks is not None and masks.kept() == 162
    if allocation == "uniform":
        assert masks.counts() == {"0.weight": 22, "3.weight": 86, "7.weight": 54}
    if allocation == "erk":
        assert masks.counts() == {"0.weight": 18, "3.weight": 27, "7.weight": 117}


def test_a_pattern_that_does_not_fit_is_refused_before_anything_is_scored() -> None:
    with pytest.raises(UserError, match="groups of 4"):
        one_shot(snip(allocation="2:4"), scene_of(small_cnn()), 0.5)

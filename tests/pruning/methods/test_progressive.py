"""progressive: relative budgets, caps, the shuffled control, trust, and the range test."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from sparse_transfer.pruning.methods.progressive import Method, ProgressiveOptions
from sparse_transfer.pruning.structured.budget import budget, relative_importance
from sparse_transfer.pruning.structured.method import Layer
from tests.pruning.structured.shrinking import make_pruner, model_of, prune
from tests.pruning.training import OPTIMIZERS, small_cnn, train


def layers_of(*importance: float) -> list[Layer]:
    """Layers of 64, 128 and 256 channels, each with one importance for all of them."""
    sizes = (64, 128, 256)
    return [
        Layer(str(i), torch.full((c,), math.exp(a)), c, 1.0)
        for i, (c, a) in enumerate(zip(sizes, importance, strict=True))
    ]


def rule_of(layers: list[Layer], seed: int = 0, **options: Any):
    method = Method(ProgressiveOptions(**options))
    room = [layer.live for layer in layers]
    return method.allocate(layers, room, torch.Generator().manual_seed(seed))


def test_the_worked_example_end_to_end() -> None:
    layers = layers_of(1.0, 0.0, -1.0)
    assert rule_of(layers, kappa=1.0)(30) == [1, 4, 25]
    assert rule_of(layers, kappa=0.0)(30) == [4, 9, 17]
    louder = [Layer(x.name, 1e3 * x.scores, x.before, x.fan) for x in layers]
    assert rule_of(louder, kappa=1.0)(30) == [1, 4, 25]


def test_kappa_zero_is_uniform_to_rounding() -> None:
    layers = layers_of(3.0, 0.0, -1.0)
    for n in range(0, 448, 7):
        counts = rule_of(layers, kappa=0.0)(n)
        assert counts == budget(n, [64, 128, 256], [0, 0, 0], 0.0, [64, 128, 256])
        exact = [n * c / 448 for c in (64, 128, 256)]
        assert all(abs(a - b) < 1 for a, b in zip(counts, exact, strict=True))


def test_the_control_gives_the_statistics_to_other_layers() -> None:
    layers = layers_of(1.0, 0.0, -1.0)
    seen = {tuple(rule_of(layers, seed, kappa=1.0, shuffle=True)(30)) for seed in range(40)}
    orders = [(1, 0, -1), (1, -1, 0), (0, 1, -1), (0, -1, 1), (-1, 1, 0), (-1, 0, 1)]
    expected = {tuple(budget(30, [64, 128, 256], z, 1.0, [64, 128, 256])) for z in orders}
    assert seen == expected
    again = rule_of(layers, 5, kappa=1.0, shuffle=True)
    assert again(30) == rule_of(layers, 5, kappa=1.0, shuffle=True)(30)
    assert [sum(again(n)) for n in range(40)] == list(range(40))


def test_caps_by_hand() -> None:
    method = Method(ProgressiveOptions(cap=0.05, max_share=0.8, min_channels=8))
    assert method.room(100, 100, False) == 5
    assert method.room(100, 100, True) == 80
    assert method.room(22, 100, False) == 1  # 5 % of 22, and two above the fifth that stays
    assert method.room(20, 100, False) == method.room(20, 100, True) == 0
    assert method.room(9, 10, True) == 1 and method.room(8, 10, True) == 0


def test_no_step_takes_more_than_its_cap_before_the_last() -> None:
    model, size = model_of("vgg19_cifar")
    pruner = make_pruner(model, "progressive", 0.6, 20, size=size, cap=0.2, importance="l2")
    bound = OPTIMIZERS["adamw"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    before = {n: int(left.sum()) for n, left in pruner._alive.items()}
    for step in range(1, 21):
        train(model, pruner, bound, range(step, step + 1), size=size)  # type: ignore[arg-type]
        now = {n: int(left.sum()) for n, left in pruner._alive.items()}
        if step < pruner.prunes[-1]:
            assert all(before[n] - now[n] <= max(1, 0.2 * before[n]) for n in now)
        before = now
    pruner.finish()


def test_statistics_survive_a_rescaling_that_batch_norm_absorbs() -> None:
    def statistics(factor: float) -> list[float]:
        model, size = model_of("vgg19_cifar")
        with torch.no_grad():
            model.get_parameter("features.3.weight").mul_(factor)
        pruner = make_pruner(model, "progressive", 0.5, 20, size=size)
        pruner.bind(torch.optim.SGD(model.parameters(), lr=0.0))
        pruner.start()
        train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.0), range(1, 2), size=size)  # type: ignore[arg-type]
        weights = dict(model.named_parameters())
        layers = [pruner._layer(name, weights) for name in pruner._alive]
        return relative_importance([x.scores for x in layers], [x.fan for x in layers])

    assert statistics(4.0) == pytest.approx(statistics(1.0), rel=1e-2, abs=1e-2)


def test_scores_are_a_running_mean() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "progressive", 0.5, 20, ema=0.75, start=0.5)
    fresh = make_pruner(model, "progressive", 0.5, 20, ema=0.0, start=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    pruner.after_backward(1)
    first = pruner._means["3"].clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    pruner.after_backward(2)
    # the score is quadratic in the gradient: nine times as large
    torch.testing.assert_close(pruner._means["3"], 0.75 * first + 0.25 * 9 * first)
    fresh.after_backward(1)
    assert not fresh._means  # without a mean only the step of an event counts
    fresh.after_backward(fresh.prunes[0])
    torch.testing.assert_close(fresh._means["3"], 9 * first)


def test_a_running_mean_stays_with_its_channel() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "progressive", 0.5, 2, start=0.5, updates=1)
    pruner._means = {"0": torch.arange(8.0).flip(0), "3": torch.arange(12.0)}
    pruner.start()
    pruner.after_step(1)
    assert pruner.last_cut is not None
    for name, numbers in (("0", torch.arange(8.0).flip(0)), ("3", torch.arange(12.0))):
        left = numbers[pruner._alive[name]]
        assert 0 < len(left) < len(numbers)
        assert torch.equal(pruner._means[name], left)


class Loss:
    """Stands in for the loss: so much for every channel that is gone."""

    def __init__(self, per_channel: float) -> None:
        self.per_channel = per_channel

    def __call__(self, alive: dict, images: object, labels: object) -> float:
        gone = sum(int((~left).sum()) for left in alive.values())
        return 1.0 + self.per_channel * gone


def chosen(monkeypatch: pytest.MonkeyPatch, per_channel: float, **options: Any) -> list[int]:
    """Channels removed at each event of small_cnn under an artificial loss."""
    model = small_cnn()
    options = {"importance": "l2", "step_size": "constant", "cap": 1.0} | options
    pruner = make_pruner(model, "progressive", 0.75, 20, updates=3, **options)
    monkeypatch.setattr(pruner, "_loss", Loss(per_channel))
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 21))  # type: ignore[arg-type]
    pruner.finish()
    return [event["channels"] for event in pruner.summary()["events"]]


def test_trust_halves_a_step_and_defers_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    free = chosen(monkeypatch, 0.0, trust=0.1)
    assert free == chosen(monkeypatch, 1.0) and min(free) > 1  # no limit, or nothing to fear
    none = chosen(monkeypatch, 1.0, trust=0.1)
    assert none[:2] == [0, 0] and sum(none) >= free[-1]  # the last event completes
    # a channel costs 0.04 of a loss of 1, so 0.1 allows two
    first = chosen(monkeypatch, 0.04, trust=0.1)[0]
    count = free[0]
    while count > 2:
        count //= 2
    assert first == count < free[0]


def test_the_range_test_caps_every_step_but_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1, 2 and 4 channels stay below 0.17, 8 do not: every later step takes at most 4
    capped = chosen(monkeypatch, 0.04, trust=0.17, range_test=True)
    assert capped[0] <= 4 and capped[1] <= 4
    tight = chosen(monkeypatch, 0.04, trust=0.05, range_test=True)
    assert tight[:2] == [1, 1]


def test_the_trial_loss_leaves_the_model_alone() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "progressive", 0.5, 20, trust=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    model.train()
    alive = {n: left.clone() for n, left in pruner._alive.items()}
    whole = pruner._loss(alive, images, labels)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(model(images), labels)  # batch statistics
    assert whole == pytest.approx(float(expected), rel=1e-6)
    model.load_state_dict(before)
    alive["0"][:4] = False
    assert pruner._loss(alive, images, labels) != whole
    assert model.training
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_layers_that_matter_less_give_more() -> None:
    def left(kappa: float) -> dict[str, list[int]]:
        model, size = model_of("vgg19_cifar")
        with torch.no_grad():
            model.get_parameter("features.4.weight").mul_(1e-3)
        options = {"importance": "bn_gamma", "max_share": 1.0, "start": 0.0, "updates": 1}
        pruner = prune(model, "progressive", 0.5, 0, size=size, kappa=kappa, **options)
        return pruner.summary()["channels"]

    assert left(2.0)["features.3"][0] < left(0.0)["features.3"][0]


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(ValidationError, match="`start` must lie before `end`"):
        ProgressiveOptions(start=0.8)
    with pytest.raises(ValidationError, match="give it a value"):
        ProgressiveOptions(range_test=True)
    assert Method(ProgressiveOptions(trust=0.1)).needs_images
    assert not Method(ProgressiveOptions()).needs_images

"""SET: counts, what a newly active weight starts with, uniform growth, and equivalences."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from sparse_transfer import plugins
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import Event, Scene, Target
from tests.pruning.methods.regrowing import ERK_COUNTS, SHAPES, rates, updates, watched
from tests.pruning.training import copy_of, prune, same, small_cnn

UNIFORM_COUNTS = {"0.weight": 43, "3.weight": 173, "7.weight": 108}


@pytest.mark.parametrize(
    ("allocation", "counts"), [("erk", ERK_COUNTS), ("uniform", UNIFORM_COUNTS)]
)
def test_every_layer_keeps_its_count_and_replaces_at_most_the_share(
    allocation: str, counts: dict[str, int]
) -> None:
    pruner, _, steps = watched("set", 0.8, 24, allocation=allocation)
    assert updates(pruner, "random start") == [0]
    assert updates(pruner, "regrow") == [2, 4, 6, 8, 10, 12, 14, 16]
    for step, seen in steps.items():
        assert seen.before.counts() == seen.after.counts() == counts
        if step not in updates(pruner, "regrow"):
            assert seen.before.digest() == seen.after.digest()
            continue
        for name, count in counts.items():
            gone = int((seen.before[name] & ~seen.after[name]).sum())
            assert 0 < gone <= int(0.3 * count)
            size = seen.trained[name].abs()
            dropped = size[seen.before[name]].sort().values[: int(0.3 * count)]
            assert bool((size[seen.before[name] & ~seen.after[name]] <= dropped[-1]).all())


@pytest.mark.parametrize("optimizer", ["nesterov", "adam", "adamw"])
def test_new_weights_start_at_zero_with_zero_state_and_train(optimizer: str) -> None:
    pruner, _, steps = watched("set", 0.8, 24, optimizer=optimizer)
    for step in updates(pruner, "regrow"):
        for name in SHAPES:
            new = steps[step].after[name] & ~steps[step].before[name]
            for tensor in (steps[step].left[name], *steps[step].state[name]):
                assert not tensor[new].any()
            still = new & steps[step + 1].after[name]
            assert steps[step + 1].left[name][still].count_nonzero() > 0
            stay = steps[step].after[name] & steps[step].before[name]
            assert torch.equal(steps[step].left[name][stay], steps[step].trained[name][stay])


def test_the_share_is_constant_or_falls_to_zero() -> None:
    assert rates("set", 0.8, 40, end=1.0, interval=10) == {10: 0.3, 20: 0.3, 30: 0.3}
    annealed = rates("set", 0.8, 40, end=1.0, interval=10, annealed=True)
    assert annealed == pytest.approx({10: 0.256066, 20: 0.15, 30: 0.043934}, abs=1e-6)


def scene(
    masks: Masks, weights: dict[str, Tensor], gradients: dict[str, Tensor], seed: int
) -> Scene:
    def no_images(number: int, count: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("it needs none")

    return Scene(
        weights=weights,
        masks=masks,
        gradients=gradients,
        forward_weights={},
        generator=torch.Generator().manual_seed(seed),
        memory={},
        model=nn.Identity(),
        examples=no_images,
        image_size=None,
    )


def event_of(
    name: str, sparsity: float, shapes: dict[str, tuple[int, ...]], **options: object
) -> Event:
    """The update at step 4 of 8."""
    method = plugins.load("pruner", name)
    active = sum(torch.Size(shape).numel() for shape in shapes.values())
    target = Target(sparsity=sparsity, active=active, shapes=shapes, total_steps=8)
    return method(method.Options(interval=4, end=1.0, **options)).schedule(target)[4]


def chosen(event: Event, scene: Scene) -> Masks:
    masks = event.choose(scene)
    assert isinstance(masks, Masks)
    return masks


def test_growth_is_uniform_over_the_positions_that_are_not_kept() -> None:
    weight = torch.tensor([4.0, 3.0, 2.0, 1.0, *[0.0] * 36])
    masks = Masks({"w": weight != 0})
    event = event_of("set", 0.9, {"w": (40,)}, rate=0.5)
    often = torch.zeros(40)
    for seed in range(400):
        often += chosen(event, scene(masks, {"w": weight}, {}, seed))["w"]
    assert often[:2].tolist() == [400, 400]
    # two of 38 places: binomials (400, 1/19), mean 21, standard deviation 4.5; 4.5 deviations
    assert (often[2:] - 400 / 19).abs().max() < 20


def test_rigl_with_random_gradients_is_set() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    masks = Masks({name: weight > 0.8 for name, weight in weights.items()})
    drawn = torch.Generator().manual_seed(7)
    random = {name: torch.rand(shape, generator=drawn) for name, shape in SHAPES.items()}
    options = {"rate": 0.3}
    left = event_of("set", 0.8, SHAPES, annealed=True, **options)
    right = event_of("rigl", 0.8, SHAPES, **options)
    found = chosen(left, scene(masks, weights, {}, 7))
    assert found.digest() == chosen(right, scene(masks, weights, random, 0)).digest()
    assert found.digest() != masks.digest()
    assert not left.needs and right.needs == {"gradients"}
    assert dataclasses.replace(left, needs=right.needs, skips_optimizer=True) == right


def test_rigl_itop_with_random_growth_at_a_constant_share_is_set() -> None:
    # uniform halves of even layers, so that rounding up and down agree
    options = {"allocation": "uniform", "rate": 0.5, "interval": 3}
    left, right = small_cnn(), small_cnn()
    first = prune(left, "set", 0.5, 20, end=1.0, **options)
    second = prune(right, "rigl_itop", 0.5, 20, growth="random", final_rate=0.5, **options)
    assert first.summary()["digest"] == second.summary()["digest"]
    assert first.summary()["events"] == second.summary()["events"]
    assert same(copy_of(left), copy_of(right))


def test_a_model_that_is_sparse_already_keeps_its_masks_at_the_start() -> None:
    masks = prune(small_cnn(), "magnitude", 0.8, 0, allocation="uniform").masks
    pruner, _, steps = watched("set", 0.8, 24, masks=masks)
    assert masks is not None and steps[1].after.digest() == masks.digest()
    assert updates(pruner, "random start") == []
    assert steps[24].after.counts() == UNIFORM_COUNTS

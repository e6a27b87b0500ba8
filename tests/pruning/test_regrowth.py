"""Drop and grow: updates by hand, counts under ties, steps, refusals, exploration, and its use."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import Scene, Target
from sparse_transfer.pruning.regrowth import (
    drop_and_grow,
    exchange,
    explored,
    random_start,
    replaced,
    union,
    update_steps,
)
from tests.pruning.training import make_pruner

NAN = float("nan")


def bools(text: str) -> Tensor:
    return torch.tensor([character == "1" for character in text])


def text(mask: Tensor) -> str:
    return "".join("1" if kept else "0" for kept in mask.tolist())


@pytest.mark.parametrize(
    ("growth", "count", "expected"),
    [
        ([9, 0.0, 9, 0.1, 0.3, 0.2], 1, "101010"),  # index 1 goes, 4 comes; 0 and 2 are not ranked
        ([9, 0.4, 9, 0.1, 0.3, 0.2], 1, "111000"),  # the dropped one has the largest: it returns
        ([9, 0.0, 0.0, 0.1, 0.3, 0.2], 2, "100011"),
        ([0, 0.0, 0.0, 0.1, 0.3, 0.2], 3, "000111"),  # everything goes
        ([9, 9, 9, 9, 9, 9], 0, "111000"),
        ([0, 0, 0, 0, 0, 0], 1, "111000"),  # ties: the first of 1, 3, 4, 5
        ([0, 0, 0, 0, 0, 1e-30], 2, "110001"),
    ],
)
def test_an_exchange_by_hand(growth: list[float], count: int, expected: str) -> None:
    size = torch.tensor([0.9, 0.1, 0.5, 0.0, 0.0, 0.0])
    after = exchange(bools("111000"), size, torch.tensor(growth, dtype=torch.float32), count)
    assert text(after) == expected


def test_pruned_positions_are_not_dropped_whatever_their_value() -> None:
    size = torch.tensor([0.5, 0.4, 0.0, 0.0])
    assert text(exchange(bools("1100"), size, torch.tensor([0.0, 0.0, 0.0, 1.0]), 1)) == "1001"


def test_the_only_inactive_gradient_is_grown_in_any_shape() -> None:
    for index in range(6, 12):
        gradient = torch.zeros(12)
        gradient[index] = -1e-20
        size = torch.arange(12.0, 0.0, -1.0)
        mask = torch.arange(12) < 6
        after = drop_and_grow(
            Masks({"w": mask.reshape(3, 4)}),
            {"w": -size.reshape(3, 4)},
            {"w": gradient.abs().reshape(3, 4)},
            0.2,
        )["w"]
        assert after.shape == (3, 4)
        assert after.flatten().nonzero().flatten().tolist() == [0, 1, 2, 3, 4, index]


TIED = st.sampled_from([0.0, -0.0, 1.0, 1e-45, 3e38])


@given(
    positions=st.lists(st.tuples(st.booleans(), TIED, TIED), min_size=1, max_size=30),
    data=st.data(),
)
def test_the_count_survives_ties_and_the_right_ones_go_and_come(
    positions: list[tuple[bool, float, float]], data: st.DataObject
) -> None:
    mask, size, growth = (torch.tensor(column) for column in zip(*positions, strict=True))
    count = data.draw(st.integers(0, int(mask.sum())))
    after = exchange(mask, size, growth, count)
    # the same by stable sorting in plain Python
    active = [i for i, kept in enumerate(mask.tolist()) if kept]
    by_size = sorted(active, key=lambda i: -positions[i][1])
    stay = by_size[: len(active) - count]
    open_positions = [i for i in range(len(positions)) if i not in stay]
    grown = sorted(open_positions, key=lambda i: -positions[i][2])[:count]
    assert after.nonzero().flatten().tolist() == sorted(stay + grown)


@pytest.mark.parametrize(
    ("kept", "rate", "down", "up"),
    [
        (100, 0.3, 30, 30),
        (100, 0.07, 7, 7),  # 7.000000000000001 in floats
        (100, 0.29, 29, 29),  # 28.999999999999996 in floats
        (101, 0.5, 50, 51),
        (1, 0.3, 0, 1),
        (7, 0.0, 0, 0),
        (7, 1.0, 7, 7),
    ],
)
def test_counts_are_rounded_without_noise(kept: int, rate: float, down: int, up: int) -> None:
    assert replaced(kept, rate, math.floor) == down
    assert replaced(kept, rate, math.ceil) == up


def test_every_layer_keeps_its_own_count() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(6, 5, generator=generator), "b": torch.randn(40)}
    masks = Masks({name: weight > 0 for name, weight in weights.items()})
    growth = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    growth["a"] = torch.rand(6, 5, generator=generator)
    after = drop_and_grow(masks, weights, growth, 0.5)
    assert after.counts() == masks.counts()
    assert after.digest() != masks.digest()
    full = Masks.ones(weights)
    assert drop_and_grow(full, weights, growth, 0.5).digest() == full.digest(), "nothing to grow"


def test_weights_that_are_not_finite_are_refused() -> None:
    mask, growth = Masks({"w": bools("110")}), {"w": torch.zeros(3)}
    with pytest.raises(UserError, match="diverged"):
        drop_and_grow(mask, {"w": torch.tensor([1.0, NAN, 0.0])}, growth, 0.5)


def test_updates_are_evenly_spaced_inside_the_window() -> None:
    def steps(updates: int, interval: int | None, total_steps: int, end: float = 0.75) -> list[int]:
        return update_steps(
            end=end, updates=updates, interval=interval, total_steps=total_steps, name="rigl"
        )

    assert steps(2, None, 40) == [10, 20]
    assert steps(3, None, 40, end=1.0) == [10, 20, 30]
    assert steps(99, 10, 40) == [10, 20]  # `interval` overrides; 30 is the end, not inside
    assert steps(100, None, 24) == [2, 4, 6, 8, 10, 12, 14, 16]  # one in two steps at most
    source = steps(249, None, 32000, end=25000 / 32000)
    assert source == list(range(100, 25000, 100)) == steps(1, 100, 32000, end=25000 / 32000)
    for total_steps in range(4, 200):
        found = steps(37, None, total_steps, end=1.0)
        assert found[0] >= 2 and found[-1] < total_steps
        assert all(b - a >= 2 for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize(("interval", "enough"), [(None, 6), (30, 42)])
def test_a_training_without_room_is_refused_and_the_advice_works(
    interval: int | None, enough: int
) -> None:
    def steps(total_steps: int) -> list[int]:
        return update_steps(
            end=0.75, updates=9, interval=interval, total_steps=total_steps, name="rigl"
        )

    with pytest.raises(UserError, match="rigl cannot change its masks in 4 training") as refusal:
        steps(4)
    assert f"at least {enough} steps" in refusal.value.hint
    assert ("interval" in refusal.value.hint) == (interval is not None)
    assert steps(enough)


SHAPES = {"a": (4, 5), "b": (60,)}


def target(active: int, sparsity: float = 0.75) -> Target:
    return Target(sparsity=sparsity, active=active, shapes=SHAPES, total_steps=10)


def start(active: int, masks: Masks, seed: int) -> Masks:
    def no_images(number: int, count: int) -> tuple[Tensor, Tensor]:
        raise AssertionError("it needs none")

    scene = Scene(
        weights={name: torch.ones(shape) for name, shape in SHAPES.items()},
        masks=masks,
        gradients={},
        forward_weights={},
        generator=torch.Generator().manual_seed(seed),
        memory={},
        model=nn.Identity(),
        examples=no_images,
        image_size=None,
    )
    after = random_start(target(active), 0.75, "uniform")[0].choose(scene)
    assert isinstance(after, Masks)
    return after


def test_a_random_start_has_exact_counts_and_is_uniform_over_positions() -> None:
    ones = Masks.ones({name: torch.ones(shape) for name, shape in SHAPES.items()})
    drawn = [start(80, ones, seed) for seed in range(200)]
    assert all(masks.counts() == {"a": 5, "b": 15} for masks in drawn)
    often = torch.stack([masks["b"].float() for masks in drawn]).sum(0)
    # 60 binomials (200, 1/4): mean 50, standard deviation 6.1; 4.5 deviations
    assert (often - 50).abs().max() < 27.6
    assert often.std() > 3, "not a fixed mask"


def test_a_random_start_goes_on_from_the_masks_of_a_sparse_model() -> None:
    half = Masks({"a": torch.arange(20).reshape(4, 5) % 2 == 0, "b": torch.arange(60) % 2 == 0})
    after = start(40, half, 0)
    assert after.kept() == 20
    assert all(not bool((after[name] & ~half[name]).any()) for name in half)
    assert random_start(target(40, sparsity=0.5), 0.5, "erk") == {}


def test_explored_is_the_share_of_the_union() -> None:
    first = Masks({"a": bools("1100000000"), "b": bools("10100")})
    second = Masks({"a": bools("0110000001"), "b": bools("10100")})
    ever = union(first, second)
    assert {name: text(mask) for name, mask in ever.items()} == {"a": "1110000001", "b": "10100"}
    assert explored(ever.pack(), 15) == 6 / 15


def accuracy(name: str, seed: int, **options: object) -> float:
    """Of a 90 % sparse network where 4 of 64 inputs matter, after 80 steps, on new examples."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    pruner = make_pruner(model, name, 0.9, 80, seed=seed, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner.bind(optimizer)
    pruner.start()
    generator = torch.Generator().manual_seed(seed)

    def examples(count: int) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(count, 64, generator=generator)
        return inputs, (inputs[:, :4].sum(1) > 0).long()

    for step in range(1, 81):
        inputs, labels = examples(64)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        pruner.after_backward(step)
        if not pruner.skips_optimizer(step):
            optimizer.step()
        pruner.after_step(step)
    pruner.finish()
    assert pruner.masks is not None and pruner.masks.kept() == 211
    inputs, labels = examples(2000)
    with torch.no_grad():
        return (model(inputs).argmax(1) == labels).float().mean().item()


def test_growth_by_gradient_finds_the_inputs_that_matter() -> None:
    def mean(name: str, **options: object) -> float:
        return sum(accuracy(name, seed, **options) for seed in range(3)) / 3

    fixed = mean("random", allocation="uniform")
    assert fixed < 0.85
    for name in ("rigl", "rigl_itop"):
        assert mean(name, allocation="uniform", updates=10) > fixed + 0.1, name
    assert mean("granet", updates=10) > fixed + 0.1

"""woodfisher: against plain numpy, its limits, its memory, compensation, schedule."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import Change, Scene
from sparse_transfer.pruning.methods import woodfisher
from sparse_transfer.pruning.methods.woodfisher import Method, WoodfisherOptions
from tests.pruning.scenes import examples_of, one_shot, scene_of, target_of
from tests.pruning.training import CLASSES, copy_of, examples, prune, same, small_cnn

COUNT = 12  # gradients
EXAMPLES = examples_of(4)


def method(**options: object) -> Method:
    defaults: dict[str, object] = {"one_shot": True, "gradients": COUNT, "damping": 1e-2}
    return Method(WoodfisherOptions.model_validate({**defaults, **options}))


def tiny() -> nn.Module:
    """24 weights of a convolution and 40 of the classifier, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 2, 2, stride=2),
        nn.BatchNorm2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    ).double()


def double(number: int, count: int) -> tuple[Tensor, Tensor]:
    images, labels = EXAMPLES(number, count)
    return images.double(), labels


def reference(
    model: nn.Module,
    active: Mapping[str, np.ndarray],
    keep: int,
    *,
    images: int = 1,
    block: int = 10**6,
    damping: float = 1e-2,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Flat masks and values of one update by loops over weights, from ordinary backward passes."""
    sampled: dict[str, list[np.ndarray]] = {name: [] for name in active}
    for number in range(COUNT):
        model.zero_grad()
        inputs, labels = double(number, images)
        nn.functional.cross_entropy(model(inputs), labels).backward()
        for name, rows in sampled.items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            rows.append(gradient.flatten().numpy().copy())
    model.zero_grad()
    costs, inverses, values = [], [], {}
    for name, mask in active.items():
        w = model.get_parameter(name).detach().flatten().numpy()
        values[name] = w.copy()
        positions = np.flatnonzero(mask)
        for first in range(0, len(positions), block):
            inside = positions[first : first + block]
            g = np.stack(sampled[name])[:, inside]
            inverse = np.linalg.inv(damping * np.eye(len(inside)) + g.T @ g / COUNT)
            inverses.append((name, inside, inverse))
            costs += [
                (w[q] ** 2 / (2 * inverse[i, i]), name, q) for i, q in enumerate(inside)
            ]  # fmt: skip
    costs.sort()
    gone = {(name, q) for _, name, q in costs[: len(costs) - keep]}
    masks = {name: mask.copy() for name, mask in active.items()}
    for name, q in gone:
        masks[name][q] = False
    for name, inside, inverse in inverses:
        w = model.get_parameter(name).detach().flatten().numpy()
        for i, q in enumerate(inside):
            if (name, q) in gone:
                values[name][inside] -= w[q] / inverse[i, i] * inverse[:, i]
    return masks, {name: value * masks[name] for name, value in values.items()}


def assert_equal_to(
    change: Change, masks: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> None:
    assert change.masks is not None
    for name, mask in masks.items():
        np.testing.assert_array_equal(change.masks[name].flatten().numpy(), mask)
        found = change.values[name].flatten().numpy()
        np.testing.assert_allclose(found, values[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"gradient_batch": 3}, {"block": 7}], ids=str)
def test_one_update_agrees_with_plain_numpy(options: dict[str, int]) -> None:
    model = tiny()
    scene = scene_of(model, double)
    change = one_shot(method(**options), scene, 0.5)
    dense = {name: np.ones(w.numel(), bool) for name, w in prunable(model).items()}
    block, images = options.get("block", 50), options.get("gradient_batch", 1)
    assert_equal_to(change, *reference(model, dense, 32, images=images, block=block))


def test_blocks_are_of_active_weights_and_the_mask_is_in_force() -> None:
    model = tiny()
    generator = torch.Generator().manual_seed(1)
    layers = prunable(model)
    start = Masks({n: torch.rand(w.shape, generator=generator) < 0.6 for n, w in layers.items()})
    start.apply(model.named_parameters())
    change = one_shot(method(block=5), scene_of(model, double, masks=start), 0.75)
    active = {name: mask.flatten().numpy() for name, mask in start.items()}
    assert_equal_to(change, *reference(model, active, 16, block=5))
    for name, value in change.values.items():
        assert not value[~start[name]].any()


EXAMPLES8 = examples_of(8)


def digest(change: Change) -> str:
    assert change.masks is not None
    return change.masks.digest()


def test_a_large_damping_is_global_magnitude_pruning() -> None:
    model = small_cnn()
    scene = scene_of(model, EXAMPLES8)
    expected = remove(scene.masks, [Stage(magnitude(scene.weights))], 0.9, "global")
    large = one_shot(method(damping=1e8), scene, 0.9)
    assert digest(large) == expected.digest()
    for name, value in large.values.items():
        assert torch.allclose(value, scene.weights[name] * expected[name], rtol=1e-5)
    assert digest(one_shot(method(damping=1e-5), scene, 0.9)) != expected.digest()


def counting(asked: list[tuple[int, int]], scene: Scene) -> Scene:
    """The same scene, noting what is asked for."""

    def noted(number: int, count: int) -> tuple[Tensor, Tensor]:
        asked.append((number, count))
        return EXAMPLES8(number, count)

    return scene_of(scene.model, noted)


def test_memory_sets_the_number_of_passes_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_cnn()
    before = copy_of(model)
    asked: list[tuple[int, int]] = []
    scene = counting(asked, scene_of(model))
    whole = one_shot(method(block=20), scene, 0.9)
    assert asked == [(number, 1) for number in range(COUNT)]
    # 11 + 44 + 27 blocks of 20 weights; 30 to a group
    monkeypatch.setattr(woodfisher, "MEMORY", 30 * 20 * (8 * 20 + 4 * 32))
    asked.clear()
    parts = one_shot(method(block=20), scene, 0.9)
    assert asked == [(number, 1) for number in range(COUNT)] * 5  # three groups, two of them twice
    assert digest(whole) == digest(parts)
    for name, value in whole.values.items():
        assert torch.allclose(value, parts.values[name], rtol=1e-5, atol=1e-7)
    asked.clear()
    one_shot(method(block=20, compensation="none"), scene, 0.9)
    assert len(asked) == 3 * COUNT
    assert same(before, copy_of(model))


def test_compensation_lowers_the_cost_and_leaves_zeros() -> None:
    model = small_cnn()
    scene = scene_of(model, EXAMPLES8)
    layers = prunable(model)
    fishers = {}
    for name in layers:
        rows = []
        for number in range(COUNT):
            images, labels = EXAMPLES8(number, 1)
            loss = nn.functional.cross_entropy(model(images), labels)
            (gradient,) = torch.autograd.grad(loss, layers[name])
            rows.append(gradient.flatten().double())
        g = torch.stack(rows)
        fishers[name] = 1e-2 * torch.eye(g.shape[1], dtype=g.dtype) + g.T @ g / COUNT

    def cost(values: Mapping[str, Tensor]) -> float:
        moved = {n: (values[n] - layers[n].detach()).flatten().double() for n in layers}
        return sum((0.5 * d @ fishers[n] @ d).item() for n, d in moved.items())

    changes = {
        kind: one_shot(method(compensation=kind, block=540), scene, 0.5)
        for kind in ("none", "sum", "joint")
    }
    assert len({digest(change) for change in changes.values()}) == 1
    masks = changes["none"].masks
    assert masks is not None and not changes["none"].values
    plain = {name: layers[name].detach() * masks[name] for name in layers}
    joint = changes["joint"].values
    assert cost(joint) < 0.99 * cost(plain) and cost(joint) < cost(changes["sum"].values)
    for kind in ("sum", "joint"):
        for name, value in changes[kind].values.items():
            assert not value[~masks[name]].any()
            assert not torch.equal(value, plain[name])


def test_a_pattern_holds_in_every_group() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    change = one_shot(method(allocation="2:4"), scene_of(model, EXAMPLES), 0.5)
    for value in change.values.values():
        assert ((value != 0).reshape(-1, 4).sum(dim=1) == 2).all()


def trained(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that has learnt 256 images, whose class is the sign pattern of two means."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(256, 3, 4, 4, generator=generator)
    images[:, :2] += torch.randn(256, 2, 1, 1, generator=generator)
    means = images.mean(dim=(2, 3))
    labels = (means[:, 0] > 0).long() + 2 * (means[:, 1] > 0).long()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model, images, labels


def test_it_harms_a_trained_network_less_than_magnitude_does() -> None:
    harm = {"magnitude": 0.0, "sum": 0.0, "joint": 0.0}
    for seed in range(2):
        model, images, labels = trained(seed)

        def shown(
            number: int, count: int, images: Tensor = images, labels: Tensor = labels
        ) -> tuple[Tensor, Tensor]:
            return images[number : number + count], labels[number : number + count]

        scene = scene_of(model, shown)
        masks = remove(scene.masks, [Stage(magnitude(scene.weights))], 0.5, "global")
        values = {"magnitude": {n: w.detach() * masks[n] for n, w in scene.weights.items()}}
        for kind in ("sum", "joint"):
            options = {"gradients": 128, "damping": 1e-5, "compensation": kind}
            values[kind] = dict(one_shot(method(**options), scene, 0.5).values)
        for name in harm:
            logits = torch.func.functional_call(model, values[name], (images,))
            harm[name] += nn.functional.cross_entropy(logits, labels).item()
    assert harm["joint"] < harm["sum"] < 0.75 * harm["magnitude"], harm


def test_the_driver_writes_the_new_values() -> None:
    model = small_cnn()
    scene = scene_of(model, lambda number, count: examples(0, number, count))
    change = one_shot(method(), scene, 0.9)
    pruner = prune(model, "woodfisher", 0.9, 0, one_shot=True, gradients=COUNT, damping=1e-2)
    assert pruner.summary()["digest"] == digest(change)
    for name, value in change.values.items():
        assert torch.equal(model.get_parameter(name), value)


def test_gradual_pruning_keeps_what_is_pruned_at_zero() -> None:
    model = small_cnn()
    pruner = prune(model, "woodfisher", 0.9, 20, gradients=COUNT, updates=3)
    sparsities = [event["sparsity"] for event in pruner.summary()["events"]]
    assert sparsities == sorted(sparsities) and len(sparsities) == 3
    assert pruner.masks is not None and pruner.masks.kept() == 162
    for name, mask in pruner.masks.items():
        assert not model.get_parameter(name)[~mask].any()


def test_the_schedule_is_cubic_or_one_removal_before_training() -> None:
    scene = scene_of(small_cnn())
    events = Method(WoodfisherOptions()).schedule(target_of(scene, 0.9, total_steps=100))
    assert list(events) == [23, 36, 49, 62, 75]
    assert [round(event.sparsity, 4) for event in events.values()] == [
        round(0.9 * (1 - (1 - k / 5) ** 3), 4) for k in range(1, 6)
    ]
    assert events[75].sparsity == 0.9
    assert all(event.needs == frozenset({"model"}) for event in events.values())
    only = method().schedule(target_of(scene, 0.9, total_steps=100))
    assert {step: event.sparsity for step, event in only.items()} == {0: 0.9}


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ValidationError, match="must lie before"):
        WoodfisherOptions(start=0.5, end=0.5)
    with pytest.raises(UserError, match="cannot run in 1 training steps"):
        Method(WoodfisherOptions()).schedule(target_of(scene_of(small_cnn()), 0.9, total_steps=1))


def test_gradients_that_are_not_finite_are_refused() -> None:
    model = small_cnn()
    with torch.no_grad():
        model.get_parameter("7.bias")[0] = float("nan")
    with pytest.raises(UserError, match="diverged"):
        one_shot(method(), scene_of(model, EXAMPLES8), 0.9)

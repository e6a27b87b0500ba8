"""Selection: counts under ties, stages by hand, the guard, LAMP, N:M, torch.nn.utils.prune."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparse_transfer.errors import UserError
from sparse_transfer.pruning import criteria
from sparse_transfer.pruning.criteria import Stage, lamp, lowest, magnitude, remove, strongest
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from tests.pruning.training import small_cnn

W = torch.tensor([0.9, -0.1, 0.5, 0.2])
G = torch.tensor([0.01, 0.5, 0.02, 0.03])


def removed(masks: Masks, after: Masks) -> list[int]:
    return torch.nonzero(masks["w"] & ~after["w"]).flatten().tolist()


def stages(*steps: tuple[torch.Tensor, int | None]) -> list[Stage]:
    return [
        Stage(magnitude({"w": values}), None if pool is None else lambda r, n, pool=pool: pool)
        for values, pool in steps
    ]


def test_fggp_by_hand() -> None:
    masks = Masks.ones({"w": W})
    assert removed(masks, remove(masks, stages((G, 2), (W, None)), 0.25, "global")) == [2]
    assert removed(masks, remove(masks, stages((W, None)), 0.25, "global")) == [1]
    assert removed(masks, remove(masks, stages((W, 2), (G, None)), 0.25, "global")) == [3]


def test_a_pool_as_large_as_the_removal_is_the_first_criterion_alone() -> None:
    masks = Masks.ones({"w": W})
    assert removed(masks, remove(masks, stages((G, 2), (W, None)), 0.5, "global")) == [0, 2]


def test_pruned_weights_are_never_candidates() -> None:
    masks = Masks({"w": torch.tensor([False, True, True, True])})
    after = remove(masks, stages((G, 1), (W, None)), 0.5, "global")
    assert removed(masks, after) == [2]  # index 0 has the smallest gradient and is gone already


@given(
    scores=st.lists(
        st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, 1e-45, float("inf")]),
            st.floats(width=32, allow_nan=False),
        ),
        min_size=1,
        max_size=40,
    ),
    data=st.data(),
)
def test_lowest_equals_a_stable_sort(scores: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(scores)))
    chosen = lowest(torch.tensor(scores), count)
    # of equal scores the last go first: sort by (score, -index)
    order = sorted(range(len(scores)), key=lambda i: (scores[i], -i))
    assert sorted(order[:count]) == torch.nonzero(chosen).flatten().tolist()


def test_lowest_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criteria, "CHUNK", 7)
    scores = torch.randn(100, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    for count in (1, 33, 50, 100):
        order = sorted(range(100), key=lambda i: (scores[i].item(), -i))
        assert torch.nonzero(lowest(scores, count)).flatten().tolist() == sorted(order[:count])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    decimals=st.integers(0, 3),
    sparsity=st.floats(0.0, 0.9),
    allocation=st.sampled_from(["global", "uniform", "erk", "lamp"]),
    half=st.booleans(),
)
def test_counts_are_exact_under_ties_and_no_layer_is_empty(
    seed: int, decimals: int, sparsity: float, allocation: str, half: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 3, 3, 3), "b": (5, 4), "c": (2, 2), "d": (6, 1, 3)}
    weights = {n: torch.randn(s, generator=generator).round(decimals=decimals) for n, s in
               shapes.items()}  # fmt: skip
    weights["d"].zero_()
    if half:
        weights = {name: weight.half() for name, weight in weights.items()}
    masks = Masks.ones(weights)
    for target in (sparsity / 2, sparsity):
        after = remove(masks, [Stage(magnitude(weights))], target, allocation)
        assert after.kept() == round(masks.total * (1 - target))
        assert min(after.counts().values()) >= 1
        assert all(bool((masks[name] | ~after[name]).all()) for name in after)
        masks = after


def test_global_ranking_empties_no_layer() -> None:
    weights = {"small": torch.tensor([1.0, 2.0]), "large": torch.tensor([10.0, 20.0])}
    masks = remove(Masks.ones(weights), [Stage(magnitude(weights))], 0.5, "global")
    assert {n: m.tolist() for n, m in masks.items()} == {
        "small": [False, True],  # without the guard both would go
        "large": [False, True],
    }
    uniform = remove(Masks.ones(weights), [Stage(magnitude(weights))], 0.5, "uniform")
    assert uniform.counts() == {"small": 1, "large": 1}


def test_the_guard_protects_by_the_last_criterion_and_stays_exact() -> None:
    weights = {f"l{i}": torch.full((50,), 10.0**-i) + torch.arange(50) * 1e-9 for i in range(4)}
    masks = remove(Masks.ones(weights), [Stage(magnitude(weights))], 0.95, "global")
    assert masks.counts() == {"l0": 7, "l1": 1, "l2": 1, "l3": 1}


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
def test_rescaling_the_scores_changes_nothing(scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    w, g = torch.randn(200, generator=generator), torch.randn(200, generator=generator)
    masks = Masks.ones({"w": w})
    plain = remove(masks, stages((g, 100), (w, None)), 0.3, "global")
    for first, second in ((g * scale, w), (g, w * scale)):
        other = remove(masks, stages((first, 100), (second, None)), 0.3, "global")
        assert torch.equal(plain["w"], other["w"])


def test_permuting_channels_permutes_the_mask() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(6, 4, generator=generator), torch.randn(3, 6, generator=generator)
    order = torch.randperm(6, generator=generator)
    plain = {"a": first, "b": second}
    permuted = {"a": first[order], "b": second[:, order]}
    masks, moved = (
        remove(Masks.ones(w), [Stage(magnitude(w))], 0.7, "global") for w in (plain, permuted)
    )
    assert torch.equal(masks["a"][order], moved["a"])
    assert torch.equal(masks["b"][:, order], moved["b"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    weights = {"good": torch.ones(3), "bad": torch.tensor([1.0, value, 2.0])}
    with pytest.raises(UserError, match="diverged: 'bad'"):
        magnitude(weights)


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95])
def test_agrees_with_torch_prune_globally_and_by_layer(sparsity: float) -> None:
    model = small_cnn()
    layers = prunable(model)
    for layer in layers.values():
        nn.init.normal_(layer)  # of one scale, so that no layer would empty: torch has no guard
    for allocation in ("global", "uniform"):
        masks = remove(Masks.ones(layers), [Stage(magnitude(layers))], sparsity, allocation)
        reference = copy.deepcopy(model)
        modules = {n: reference.get_submodule(n.removesuffix(".weight")) for n in layers}
        places = [(module, "weight") for module in modules.values()]
        if allocation == "global":
            torch_prune.global_unstructured(
                places, pruning_method=torch_prune.L1Unstructured, amount=masks.total - masks.kept()
            )
        else:
            for name, count in masks.counts().items():
                amount = layers[name].numel() - count
                torch_prune.l1_unstructured(modules[name], "weight", amount=amount)
        for name, module in modules.items():
            assert torch.equal(module.get_buffer("weight_mask").bool(), masks[name])


def lamp_of(*weights: list[float]) -> list[list[float]]:
    layers = {str(i): torch.tensor(w) for i, w in enumerate(weights)}
    return [score.tolist() for score in lamp(magnitude(layers), Masks.ones(layers)).values()]


def test_lamp_by_hand() -> None:
    golden = pytest.approx([1 / 14, 4 / 13, 1.0], rel=1e-6)
    small, large = lamp_of([1.0, 2.0, 3.0], [-10.0, 20.0, -30.0])
    assert small == golden and large == golden
    assert lamp_of([3.0, 1.0, 2.0])[0] == pytest.approx([1.0, 1 / 14, 4 / 13], rel=1e-6)
    assert lamp_of([2.0, 2.0, 0.0])[0] == [1.0, 0.5, 0.0]  # of equal ones the first ranks higher
    assert lamp_of([0.0, 0.0])[0] == [0.0, 0.0]


def test_lamp_leaves_pruned_weights_out_of_the_sums() -> None:
    weights = {"w": torch.tensor([1.0, 2.0, 3.0, 9.0])}
    masks = Masks({"w": torch.tensor([True, True, True, False])})
    assert lamp(weights, masks)["w"].tolist() == pytest.approx([1 / 14, 4 / 13, 1, 0], rel=1e-6)


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**12])
def test_lamp_does_not_see_the_scale_of_a_layer(scale: float) -> None:
    weights = {"w": torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))}
    masks = Masks.ones(weights)
    scaled = {"w": weights["w"] * scale}
    assert torch.equal(lamp(magnitude(weights), masks)["w"], lamp(magnitude(scaled), masks)["w"])


def test_lamp_is_its_definition() -> None:
    w = torch.randn(40, generator=torch.Generator().manual_seed(1)).double()
    expected = [float(v**2 / (w[w.abs() >= v.abs()] ** 2).sum()) for v in w]
    scores = lamp(magnitude({"w": w}), Masks.ones({"w": w}))["w"]
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)


def test_lamp_ranks_across_layers_and_empties_none() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = {f"l{i}": torch.randn(50, generator=generator) * 10.0**-i for i in range(4)}
    ones = Masks.ones(weights)
    scores = lamp(magnitude(weights), ones)
    masks = remove(ones, [Stage(magnitude(weights))], 0.9, "lamp")
    joined = torch.cat(list(scores.values()))
    chosen = torch.zeros(200, dtype=torch.bool)
    chosen[joined.topk(20).indices] = True
    assert torch.equal(torch.cat(list(masks.values())), chosen)
    assert remove(ones, [Stage(magnitude(weights))], 0.98, "lamp").counts() == dict.fromkeys(
        weights, 1
    )
    assert remove(ones, [Stage(magnitude(weights))], 0.9, "global").counts()["l3"] == 1


def test_lamp_of_one_layer_ranks_as_magnitude() -> None:
    w = {"w": torch.randn(300, generator=torch.Generator().manual_seed(3))}
    left, right = (remove(Masks.ones(w), [Stage(magnitude(w))], 0.7, a) for a in ("lamp", "global"))
    assert left.digest() == right.digest()


def test_strongest_by_hand() -> None:
    row = torch.tensor([[0.1, 0.4, 0.3, 0.2, 5.0, 5.0, 5.0, 0.0]])
    assert strongest(row, (2, 4)).int().tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]
    assert strongest(row, (1, 8)).int().tolist() == [[0, 0, 0, 0, 1, 0, 0, 0]]
    assert strongest(row, (4, 4)).all()


@pytest.mark.parametrize("shape", [(3, 8), (2, 8, 3), (2, 12, 3, 2)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_groups_lie_along_the_input_channels(
    shape: tuple[int, ...], memory: torch.memory_format
) -> None:
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    if len(shape) == 4:
        scores = scores.to(memory_format=memory)
    mask = strongest(scores, (2, 4))
    assert mask.shape == scores.shape
    flat, flat_mask = scores.reshape(*shape[:2], -1), mask.reshape(*shape[:2], -1)
    for out in range(flat.shape[0]):
        for position in range(flat.shape[2]):
            for first in range(0, shape[1], 4):
                group = flat[out, first : first + 4, position].tolist()
                best = sorted(range(4), key=lambda i: -group[i])[:2]  # noqa: B023 - used at once
                found = torch.nonzero(flat_mask[out, first : first + 4, position]).flatten()
                assert found.tolist() == sorted(best)


def test_a_pattern_at_its_own_sparsity_is_the_pattern() -> None:
    generator = torch.Generator().manual_seed(5)
    weights = {
        "a": torch.randn(4, 8, 3, 3, generator=generator),
        "b": torch.randn(5, 12, generator=generator).round(),  # ties
        "c": torch.zeros(2, 4),
    }
    for n, m in ((2, 4), (1, 4), (3, 4), (1, 2)):
        masks = remove(Masks.ones(weights), [Stage(magnitude(weights))], 1 - n / m, f"{n}:{m}")
        for name, weight in weights.items():
            assert torch.equal(masks[name], strongest(weight.abs(), (n, m))), name


def test_on_the_way_to_a_pattern_the_lowest_outside_it_go_first() -> None:
    w = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.05, 0.04, 0.03, 0.6]])
    masks = Masks.ones({"w": w})
    gone = []
    for sparsity in (1 / 8, 2 / 8, 3 / 8, 4 / 8):
        after = remove(masks, [Stage(magnitude({"w": w}))], sparsity, "2:4")
        gone += torch.nonzero(masks["w"] & ~after["w"])[:, 1].tolist()
        masks = after
    assert gone == [6, 5, 3, 2]  # .05, index 4, is second in its group and stays


def test_a_pruned_weight_takes_no_place_in_its_group() -> None:
    w = torch.tensor([[9.0, 0.1, 0.3, 0.2, 0.9, 0.8, 0.7, 0.6]])
    masks = Masks({"w": torch.tensor([[False] + [True] * 7])})
    after = remove(masks, [Stage(magnitude({"w": w}))], 0.5, "2:4")
    assert after["w"].int().tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]


def test_n_of_n_keeps_everything() -> None:
    masks = Masks.ones({"w": torch.randn(3, 8)})
    assert remove(masks, [Stage(magnitude({"w": torch.randn(3, 8)}))], 0.0, "4:4") is masks

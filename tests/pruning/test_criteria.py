"""Selection: exact counts under ties, stages by hand, the guard, and torch.nn.utils.prune."""

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
from sparse_transfer.pruning.criteria import Stage, lowest, magnitude, remove
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
    allocation=st.sampled_from(["global", "uniform", "erk"]),
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
        after = remove(masks, [Stage(magnitude(weights))], target, allocation)  # type: ignore[arg-type]
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

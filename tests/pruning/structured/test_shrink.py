"""Shrink plans: cutting models, optimizer state, widths; JSON; refusals."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from torch import nn

from sparse_transfer import models
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.structured.graph import trace
from sparse_transfer.pruning.structured.shrink import Cut, ShrinkPlan
from tests.pruning.structured.shrinking import model_of
from tests.pruning.training import OPTIMIZERS, batch, small_cnn, tiny_mobilenet, train

PLAN = ShrinkPlan(
    {
        "0.weight": {0: Cut(8, (1, 2, 5))},
        "0.bias": {0: Cut(8, (1, 2, 5))},
        **{f"1.{n}": {0: Cut(8, (1, 2, 5))} for n in ("weight", "bias")},
        **{f"1.running_{n}": {0: Cut(8, (1, 2, 5))} for n in ("mean", "var")},
        "3.weight": {1: Cut(8, (1, 2, 5))},
    }
)


@pytest.mark.parametrize("optimizer", ["nesterov", "adam", "adamw"])
def test_weights_and_optimizer_state_are_cut_alike(optimizer: str) -> None:
    model = small_cnn()
    bound = OPTIMIZERS[optimizer](
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "lr_scale": 2.0},
            {"params": [p for p in model.parameters() if p.dim() == 1], "lr_scale": 1.0},
        ]
    )
    train(model, None, bound, range(1, 4))
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    old = {n: dict(bound.state[p]) for n, p in model.named_parameters()}
    names = [
        [n for p in g["params"] for n, q in model.named_parameters() if q is p]
        for g in bound.param_groups
    ]
    PLAN.apply(model, bound)
    kept = torch.tensor([1, 2, 5])
    dims = {"0.weight": 0, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 1}
    assert [g["lr_scale"] for g in bound.param_groups] == [2.0, 1.0]
    for name, parameter in model.named_parameters():

        def cut(t: torch.Tensor, name: str = name) -> torch.Tensor:
            return t.index_select(dims[name], kept) if name in dims else t

        assert torch.equal(parameter, cut(weights[name]))
        assert (parameter.grad is None) == (name in dims)
        assert old[name].keys() == bound.state[parameter].keys()
        for key, value in bound.state[parameter].items():
            per_weight = value.shape == parameter.shape and value.dim() > 0
            assert torch.equal(value, cut(old[name][key]) if per_weight else old[name][key]), key
    assert torch.equal(model.get_buffer("1.running_var"), weights["1.running_var"][kept])
    after = [
        [n for p in g["params"] for n, q in model.named_parameters() if q is p]
        for g in bound.param_groups
    ]
    assert after == names  # the same parameters in the same order
    assert len(bound.state) == len(list(model.parameters()))
    before = [p.detach().clone() for p in model.parameters()]
    train(model, None, bound, range(4, 6))
    assert all(bool((a != b).any()) for a, b in zip(model.parameters(), before, strict=True))


def test_attributes_follow_and_layouts_stay() -> None:
    model = small_cnn().to(memory_format=torch.channels_last)
    model.get_parameter("0.bias").requires_grad_(False)
    PLAN.apply(model)
    first, norm, second = model[0], model[1], model[3]  # type: ignore[index]
    assert (first.in_channels, first.out_channels, norm.num_features) == (3, 3, 3)
    assert (second.in_channels, second.out_channels) == (3, 12)
    assert not first.bias.requires_grad and first.weight.requires_grad
    for conv in (first, second):
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert not conv.weight.is_contiguous()
    assert model(batch(0, 0, 8)[0]).shape == (4, 5)


def test_depthwise_convolutions_lose_groups() -> None:
    model = tiny_mobilenet()
    graph = trace(model, image_size=16)
    graph.plan(graph.all_alive() | {"2.0": torch.arange(16) % 2 == 0}).apply(model)
    depthwise = model.get_submodule("2.3")
    assert isinstance(depthwise, nn.Conv2d)
    assert depthwise.groups == depthwise.in_channels == depthwise.out_channels == 8
    assert depthwise.weight.shape == (8, 1, 3, 3)


def test_tied_weights_stay_tied() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 4, bias=False), "b": nn.Linear(3, 4, bias=False)})
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    cut = {0: Cut(4, (0, 3))}
    ShrinkPlan({"a.weight": cut, "b.weight": cut}).apply(model, optimizer)
    assert model["a"].weight is model["b"].weight is optimizer.param_groups[0]["params"][0]
    assert model["a"].weight.shape == (2, 3)


@pytest.mark.parametrize(
    "name", ["resnet18_cifar", "vgg19_cifar", "test_resnet", "mobilenetv2_035"]
)
def test_a_new_head_fits(name: str) -> None:
    model, size = model_of(name)
    graph = trace(model, image_size=size)
    graph.plan({n: torch.arange(a.numel()) > 1 for n, a in graph.all_alive().items()}).apply(model)
    models.new_head(model, 7, seed=0)
    images = torch.rand(2, 3, size, size)
    assert model.eval()(images).shape == (2, 7)
    assert models.features(model, images).shape == (2, model.get_classifier().in_features)
    assert model.num_features == model.get_classifier().in_features


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "test_convnext"])
def test_a_new_head_fits_heads_with_hidden_layers(name: str) -> None:
    model = timm.create_model(name, num_classes=3)
    graph = trace(model, image_size=64)
    graph.plan({n: torch.arange(a.numel()) > 1 for n, a in graph.all_alive().items()}).apply(model)
    models.new_head(model, 4, seed=0)
    assert model.eval()(torch.rand(2, 3, 64, 64)).shape == (2, 4)


def test_json_and_digest() -> None:
    again = ShrinkPlan.from_json(json.loads(json.dumps(PLAN.to_json())))
    assert again == PLAN and again.digest() == PLAN.digest()
    shuffled = ShrinkPlan(dict(reversed(PLAN.cuts.items())))
    assert shuffled.digest() == PLAN.digest()
    other = ShrinkPlan({**PLAN.cuts, "3.weight": {1: Cut(8, (1, 2, 6))}})
    assert other.digest() != PLAN.digest()


@pytest.mark.parametrize(
    "stored",
    [
        [],
        {"a": [1]},
        {"a": {"0": {"size": 3}}},
        {"a": {"0": {"size": 3, "kept": [0, 3]}}},
        {"a": {"0": {"size": 3, "kept": [1, 0]}}},
        {"a": {"0": {"size": 3, "kept": [0, 0]}}},
        {"a": {"0": {"size": 3, "kept": [-1]}}},
        {"a": {"0": {"size": 3, "kept": []}}},
        {"a": {"0": {"size": 3, "kept": [0.5]}}},
        {"a": {"x": {"size": 3, "kept": [0]}}},
    ],
)
def test_damaged_plans_are_refused(stored: object) -> None:
    with pytest.raises(UserError, match="shrink plan is damaged"):
        ShrinkPlan.from_json(stored)


def test_composition_by_hand() -> None:
    first = ShrinkPlan({"w": {0: Cut(6, (1, 3, 4, 5))}})
    second = ShrinkPlan({"w": {0: Cut(4, (0, 2)), 1: Cut(3, (1,))}})
    assert first.then(second) == ShrinkPlan({"w": {0: Cut(6, (1, 4)), 1: Cut(3, (1,))}})
    assert ShrinkPlan({}).then(first) == first == first.then(ShrinkPlan({}))
    assert not ShrinkPlan({}) and first
    with pytest.raises(UserError, match="has 2 entries; the plan cuts 4"):
        second.then(second)
    tensor = torch.arange(18.0).reshape(6, 3)
    assert first.then(second).cut("w", tensor).tolist() == [[4.0], [13.0]]
    assert first.cut("other", tensor) is tensor


def test_a_plan_for_another_model_changes_nothing() -> None:
    model = small_cnn()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    for wrong in (
        {"3.weight": {1: Cut(9, (0,))}},
        {"5.weight": {0: Cut(8, (0,))}},
        {"0.bias": {1: Cut(8, (0,))}},
    ):
        with pytest.raises(UserError, match="does not fit the model"):
            ShrinkPlan({**PLAN.cuts, **wrong}).apply(model)
        assert {name: value.shape for name, value in model.state_dict().items()} == shapes


def test_state_of_another_shape_is_refused() -> None:
    model = small_cnn()
    optimizer = torch.optim.Adafactor(model.parameters())
    train(model, None, optimizer, range(1, 2))
    with pytest.raises(UserError, match="cannot be cut with the channels"):
        PLAN.apply(model, optimizer)

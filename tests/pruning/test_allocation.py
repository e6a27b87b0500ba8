"""Layer allocation: exact integer sums, ERK reference values, and which N:M patterns fit."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from sparse_transfer.config import Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.experiment_file import parse_yaml
from sparse_transfer.pruning.allocation import (
    Allocation,
    Pattern,
    apportion,
    check_allocation,
    check_keep,
    keep_count,
    keep_counts,
    pattern_of,
)
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.method import Target
from tests.pruning.training import small_cnn


@given(data=st.data())
def test_apportion_is_exact_within_its_bounds(data: st.DataObject) -> None:
    upper = data.draw(st.lists(st.integers(1, 1000), min_size=1, max_size=8))
    weights = data.draw(
        st.lists(st.floats(1e-3, 1e3), min_size=len(upper), max_size=len(upper)), label="weights"
    )
    total = data.draw(st.integers(len(upper), sum(upper)))
    counts = apportion(weights, total, upper)
    assert sum(counts) == total
    assert all(1 <= count <= most for count, most in zip(counts, upper, strict=True))
    # Proportional up to rounding wherever no bound is met: one scale explains all.
    free = [
        (count, weight)
        for count, weight, most in zip(counts, weights, upper, strict=True)
        if 1 < count < most
    ]
    if free:
        low = max((count - 1) / weight for count, weight in free)
        high = min((count + 1) / weight for count, weight in free)
        assert low <= high * (1 + 1e-9)


def test_apportion_by_hand() -> None:
    assert apportion([10.0, 20.0, 30.0], 30, [10, 20, 30]) == [5, 10, 15]
    assert apportion([1.0, 1.0, 1.0], 4, [9, 9, 9]) == [2, 1, 1]  # a tie goes to the first
    assert apportion([1.0, 1000.0], 100, [50, 1000]) == [1, 99]  # one weight at the least
    assert apportion([5.0, 1.0], 30, [10, 100]) == [10, 20]  # full, and the rest solved again


def test_uniform_keeps_the_same_share_of_each_layer() -> None:
    shapes = {"a": (10, 10), "b": (20, 5, 3, 3), "c": (7, 3)}
    active = {name: math.prod(shape) for name, shape in shapes.items()}
    counts = keep_counts("uniform", shapes, keep_count(1021, 0.9), active)
    assert counts == {"a": 10, "b": 90, "c": 2}


def test_a_layer_keeps_no_more_than_it_has() -> None:
    shapes = {"a": (10, 10), "b": (10, 10)}
    assert keep_counts("uniform", shapes, 100, {"a": 20, "b": 100}) == {"a": 20, "b": 80}


def test_a_sparsity_that_empties_a_layer_is_refused_with_the_highest_possible() -> None:
    check_keep(1000, 10, 0.99)
    with pytest.raises(UserError, match="highest possible sparsity here is 0.99") as refusal:
        check_keep(1000, 10, 0.995)
    assert "keeps 5 of 1000 weights in 10 layers" in refusal.value.why


def resnet50_macs() -> tuple[dict[str, nn.Parameter], dict[str, int]]:
    """Layers of timm's ResNet-50 and their multiply-accumulates at 224 px, without any data."""
    with torch.device("meta"):
        model = timm.create_model("resnet50")
        image = torch.empty(1, 3, 224, 224)
    macs: dict[str, int] = {}

    def count(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            positions = output[0, 0].numel() if output.dim() == 4 else 1
            macs[name] = positions * module.get_parameter("weight").numel()

        return hook

    for name in prunable(model):
        model.get_submodule(name.removesuffix(".weight")).register_forward_hook(count(name))
    model(image)
    return prunable(model), macs


@pytest.fixture(scope="module")
def resnet50() -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    layers, macs = resnet50_macs()
    return {name: tuple(layer.shape) for name, layer in layers.items()}, macs


def densities(shapes: dict[str, tuple[int, ...]], sparsity: float) -> dict[str, float]:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    keep = keep_count(sum(sizes.values()), sparsity)
    counts = keep_counts("erk", shapes, keep, sizes)
    assert sum(counts.values()) == keep
    return {name: counts[name] / sizes[name] for name in shapes}


def test_resnet50_counts(resnet50: tuple[dict[str, tuple[int, ...]], dict[str, int]]) -> None:
    shapes, macs = resnet50
    assert len(shapes) == 54
    assert sum(math.prod(shape) for shape in shapes.values()) == 25_502_912
    assert sum(macs.values()) / 1e9 == pytest.approx(4.089, abs=5e-4)


@pytest.mark.parametrize(
    ("sparsity", "ratio", "dense"), [(0.8, 0.414, 8), (0.9, 0.242, 1), (0.95, 0.122, 0)]
)
def test_erk_mac_ratios(
    resnet50: tuple[dict[str, tuple[int, ...]], dict[str, int]],
    sparsity: float,
    ratio: float,
    dense: int,
) -> None:
    shapes, macs = resnet50
    density = densities(shapes, sparsity)
    measured = sum(macs[name] * density[name] for name in shapes) / sum(macs.values())
    assert measured == pytest.approx(ratio, abs=5e-4)
    assert sum(d == 1 for d in density.values()) == dense


def test_which_layers_erk_leaves_dense(
    resnet50: tuple[dict[str, tuple[int, ...]], dict[str, int]],
) -> None:
    shapes, _ = resnet50
    density = densities(shapes, 0.8)
    stage1 = [n for n, s in shapes.items() if n.startswith("layer1") and s[2:] == (1, 1)]
    assert {n for n, d in density.items() if d == 1} == {*stage1, "layer2.0.conv1.weight"}
    assert density["layer4.2.conv2.weight"] == pytest.approx(0.0435, abs=5e-5)
    assert density["fc.weight"] == pytest.approx(0.148, abs=5e-4)
    at_90 = densities(shapes, 0.9)
    assert [n for n, d in at_90.items() if d == 1] == ["layer1.0.conv1.weight"]


class Options(Frozen):
    allocation: Allocation = "global"
    pattern: Pattern = "2:4"


@pytest.mark.parametrize("value", ["global", "uniform", "erk", "lamp", "2:4", "1:16", "4:4"])
def test_allocations_that_exist(value: str) -> None:
    options = Options.model_validate({"allocation": value})
    assert options.model_dump(mode="json")["allocation"] == value
    assert pattern_of(value) == (tuple(map(int, value.split(":"))) if ":" in value else None)


@pytest.mark.parametrize(
    "value", ["5:4", "0:4", "2:0", "2/4", " 2:4", "2:4:8", "Global", 124, None]
)
@pytest.mark.parametrize("field", ["allocation", "pattern"])
def test_allocations_that_do_not_exist(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match='in quotation marks, as in "2:4"'):
        Options.model_validate({field: value})


def test_a_pattern_is_no_rule_and_a_rule_is_no_pattern() -> None:
    with pytest.raises(ValidationError, match="N:M with N <= M"):
        Options.model_validate({"pattern": "global"})


def test_a_quoted_pattern_survives_yaml() -> None:
    raw, _ = parse_yaml('allocation: "1:4"', "x.yaml")
    assert Options.model_validate(raw).allocation == "1:4"


def target_of(model: nn.Module, sparsity: float, *keep_dense: str, removed: int = 0) -> Target:
    shapes = {name: tuple(layer.shape) for name, layer in prunable(model, keep_dense).items()}
    weights = sum(math.prod(shape) for shape in shapes.values())
    return Target(sparsity=sparsity, active=weights - removed, shapes=shapes, total_steps=10)


def test_layers_that_no_group_divides_are_named_and_the_advice_works() -> None:
    model = small_cnn()
    with pytest.raises(UserError, match="groups of 4") as refusal:
        check_allocation("2:4", target_of(model, 0.5))
    assert "1 of 3 layers" in refusal.value.why and "0.weight (3)" in refusal.value.why
    entries = refusal.value.hint.split("'")[1::2]
    assert entries == [r"^0\.weight$"]
    check_allocation("2:4", target_of(model, 0.5, *entries))


def test_a_long_list_of_layers_is_cut_but_the_advice_is_whole() -> None:
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(7)], nn.Linear(4, 4))
    with pytest.raises(UserError, match="and 2 more") as refusal:
        check_allocation("2:4", target_of(model, 0.5))
    check_allocation("2:4", target_of(model, 0.5, *refusal.value.hint.split("'")[1::2]))


def test_a_sparsity_that_the_pattern_has_not_is_refused_with_the_nearest_that_works() -> None:
    model = small_cnn()
    with pytest.raises(UserError, match="2:4 sparsity is 0.5, but 0.8 is asked for") as refusal:
        check_allocation("2:4", target_of(model, 0.8, "first_conv"))
    assert "1:4 is 0.75" in refusal.value.hint
    check_allocation("1:4", target_of(model, 0.75, "first_conv"))
    with pytest.raises(UserError, match="2:4 sparsity is 0.5, but 0.51"):
        check_allocation("2:4", target_of(model, 0.51, "first_conv"))
    for rule in ("global", "uniform", "erk", "lamp"):
        check_allocation(rule, target_of(model, 0.8))


def test_thirds_are_met_by_count() -> None:
    check_allocation("1:3", target_of(nn.Linear(6, 5), 2 / 3))


def test_a_pattern_wants_a_dense_start() -> None:
    with pytest.raises(UserError, match="has to start from a dense model"):
        check_allocation("2:4", target_of(nn.Linear(8, 8), 0.5, removed=3))
    check_allocation("uniform", target_of(nn.Linear(8, 8), 0.5, removed=3))

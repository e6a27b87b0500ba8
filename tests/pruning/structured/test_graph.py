"""Coupled groups: known counts, exact removal, MACs, and what must stay."""

from __future__ import annotations

import copy
import sys

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from sparse_transfer import cost
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.structured.graph import ChannelGraph, macs_of, trace
from tests.pruning.structured.shrinking import MODELS, model_of
from tests.pruning.training import small_cnn, tiny_mobilenet


@pytest.mark.parametrize(
    ("name", "kwargs", "groups"),
    [
        ("resnet18_cifar", {"channels": [4, 6, 8, 10]}, 12),  # 4 streams and 8 inner
        ("resnet50_cifar", {"channels": [2, 3, 4, 5]}, 37),  # stem, 4 streams, 32 inner
        ("vgg19_cifar", {"channels": [4, 4, 8, 8, 8]}, 16),
        ("resnet20_cifar", {"channels": [4, 6, 8], "project": True}, 12),
        ("resnet20_cifar", {"channels": [4, 6, 8]}, 9),  # padded shortcuts: inner ones alone
    ],
)
def test_group_counts(name: str, kwargs: dict[str, object], groups: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=3, **kwargs)
    assert len(trace(model, image_size=16).groups) == groups


def test_the_groups_of_torchvisions_resnet18() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=3)
    graph = trace(model, image_size=32)
    inner = {f"layer{k}.{b}.conv1" for k in range(1, 5) for b in range(2)}
    assert len(graph.groups) == 12 and inner < set(graph.groups)
    made = {e.tensor for e in graph.groups["conv1"].ends if e.kind == "output"}
    assert made == {"conv1.weight", "layer1.0.conv2.weight", "layer1.1.conv2.weight"}
    assert graph.whole == {"fc": "it is the output of the network"}
    assert next(model.parameters()).device.type == "meta"


@pytest.mark.parametrize("name", ["small_cnn", "resnet18_cifar", "mobilenetv2_035", "vgg19_cifar"])
def test_groups_partition_all_ends(name: str) -> None:
    model, size = model_of(name)
    graph = trace(model, image_size=size)
    shapes = {n: t.shape for n, t in model.state_dict().items()}
    seen: dict[tuple[str, int], Tensor] = {}
    for group in graph.groups.values():
        for end in group.ends:
            key = (end.tensor, end.dim)
            if key not in seen:
                seen[key] = torch.zeros(shapes[end.tensor][end.dim], dtype=torch.int)
            seen[key].index_add_(0, end.places, torch.ones(len(end.places), dtype=torch.int))
    assert all(bool((count == 1).all()) for count in seen.values())
    head = set(prunable(model)) - set(prunable(model, ["head"]))
    for layer in prunable(model):
        assert ((layer, 0) in seen) == (layer not in head)
    first = next(iter(prunable(model)))
    depthwise = set(prunable(model)) - set(prunable(model, ["depthwise"]))
    reading = {layer for layer, dim in seen if dim == 1}
    assert reading == set(prunable(model)) - {first} - depthwise


def outputs_agree(
    model: nn.Module, graph: ChannelGraph, size: int, dead: dict[str, Tensor]
) -> nn.Module:
    """Removing and zeroing give the same outputs; returns the model without the channels."""
    alive = {n: ~dead.get(n, torch.zeros_like(left)) for n, left in graph.all_alive().items()}
    masked, removed = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    graph.zero(masked, dead)
    graph.plan(alive).apply(removed)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found, whole = masked(images), removed(images), model.eval()(images)
    scale = float(whole.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, scale))
    assert float((found - whole).abs().max()) > 1e-4 * scale  # and the channels did something
    return removed


@pytest.mark.parametrize("name", ["small_cnn", "resnet18_cifar", "mobilenetv2_035", "vgg19_cifar"])
def test_removed_equals_masked_for_every_group(name: str) -> None:
    model, size = model_of(name)
    graph = trace(model, image_size=size)
    generator = torch.Generator().manual_seed(2)
    for group in graph.groups.values():
        dead = torch.rand(group.channels, generator=generator) < 0.4
        dead[0], dead[-1] = True, False
        outputs_agree(model, graph, size, {group.name: dead})


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tiny_mobilenet"])
def test_removed_equals_masked_for_all_groups_together(name: str) -> None:
    model, size = model_of(name)
    graph = trace(model, image_size=size)
    dead = {}
    for group in graph.groups.values():
        dead[group.name] = torch.arange(group.channels) % 3 == 1
    removed = outputs_agree(model, graph, size, dead)
    count = sum(p.numel() for p in removed.parameters())
    assert count < sum(p.numel() for p in model.parameters())
    left = graph.macs({n: ~gone for n, gone in dead.items()})
    assert cost.macs(removed, size).dense == left < graph.macs_dense


def test_macs_in_closed_form() -> None:
    graph = trace(small_cnn(), image_size=8)
    # 8x8 positions, then 3x3; 3x3 kernels; 5 classes from 12 channels of 3x3
    assert graph.macs_dense == 64 * 27 * 8 + 9 * 72 * 12 + 108 * 5 == macs_of(small_cnn(), 8)
    alive = {"0": torch.arange(8) < 5, "3": torch.arange(12) >= 5}
    assert graph.macs(alive) == 64 * 27 * 5 + 9 * (9 * 5) * 7 + 63 * 5


def test_what_is_left_can_be_pruned_again() -> None:
    model, size = model_of("resnet18_cifar")
    graph = trace(model, image_size=size)
    once = {n: torch.arange(a.numel()) != 1 for n, a in graph.all_alive().items()}
    twice = {n: a & (torch.arange(a.numel()) != 3) for n, a in once.items()}
    both, straight = copy.deepcopy(model), copy.deepcopy(model)
    first, second = graph.plan(once), graph.plan(twice, before=once)
    first.apply(both)
    assert list(trace(both, image_size=size).groups) == list(graph.groups)
    second.apply(both)
    graph.plan(twice).apply(straight)
    pairs = zip(both.state_dict().items(), straight.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    assert first.then(second).to_json() == graph.plan(twice).to_json()


def test_layers_kept_dense_keep_their_groups() -> None:
    model, size = model_of("resnet18_cifar")
    graph = trace(model, image_size=size, keep_dense=["first_conv", "head", "layer2.0.conv1"])
    assert len(graph.groups) == 10
    kept = {n for n, why in graph.whole.items() if why == "a layer that makes it is kept dense"}
    assert kept == {"conv1", "layer2.0.conv1"}


def test_depthwise_convolutions_have_no_channels_of_their_own_to_keep() -> None:
    free = trace(tiny_mobilenet(), image_size=16)
    assert set(free.groups) == {"0", "2.0", "2.6", "3.0", "3.6"}
    assert trace(tiny_mobilenet(), image_size=16, keep_dense=["depthwise"]).groups.keys() == (
        free.groups.keys()
    )


def test_transformers_lose_hidden_units_alone() -> None:
    model, size = model_of("test_vit")
    graph = trace(model, image_size=size)
    assert set(graph.groups) == {f"blocks.{k}.mlp.fc1" for k in range(6)}


def test_a_trace_changes_nothing() -> None:
    model = small_cnn().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    graph = trace(model, image_size=8)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    other = small_cnn(seed=5)  # other weights, another device: the same groups
    with torch.device("meta"):
        on_meta = small_cnn()
    for again in (trace(other, image_size=8), trace(on_meta, image_size=8)):
        assert again.plan({"0": torch.arange(8) > 0, "3": torch.arange(12) > 0}) == graph.plan(
            {"0": torch.arange(8) > 0, "3": torch.arange(12) > 0}
        )


class Padded(nn.Module):
    """A network whose width is written into its code."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x).mean((2, 3))
        if features.shape[1] != 6:
            raise ValueError("six or nothing")
        return self.head(features)


class Broken(Padded):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not today")


def test_models_that_cannot_be_pruned_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="No channels can be removed") as refusal:
        trace(Padded(), image_size=8)
    assert "does not compute what it does with a zero" in refusal.value.why
    with pytest.raises(UserError, match="cannot be traced\\.\nValueError: not today"):
        trace(Broken(), image_size=8)
    with pytest.raises(UserError, match="nothing left to prune"):
        trace(small_cnn(), image_size=8, keep_dense=["."])
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UserError) as missing:
        trace(small_cnn(), image_size=8)
    assert missing.value.hint == "pip install 'sparse-transfer[structured]'"

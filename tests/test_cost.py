from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from sparse_transfer import cost, models  # noqa: F401 - registers the small variants
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks


def meta(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "giga_macs"),
    [("resnet50", 4.089184256), ("mobilenetv2_100", 0.300774272)],
)
def test_published_networks_have_their_macs(name, giga_macs):
    found = cost.macs(meta(name), 224)
    assert found.dense == found.sparse == round(giga_macs * 1e9)
    assert sum(layer.dense for layer in found.layers.values()) == found.dense
    assert found.ratio == 1


def test_a_transformer_counts_attention_beside_its_layers():
    """test_vit: 64 wide, 6 blocks, 10 × 10 patches and one class token."""
    found = cost.macs(meta("test_vit"), 160)
    tokens, width, blocks = 101, 64, 6
    attention = blocks * 2 * tokens * tokens * width
    assert found.dense - sum(layer.dense for layer in found.layers.values()) == attention


def test_macs_of_one_convolution_by_hand():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(128, 5))
    masks = Masks({"0.weight": torch.zeros(8, 3, 3, 3, dtype=torch.bool)})
    masks["0.weight"].view(-1)[:54] = True  # a quarter
    found = cost.macs(net, 8, masks)
    assert found.layers["0.weight"] == cost.LayerCost(16 * 8 * 27, 16 * 8 * 27 // 4)
    assert found.layers["2.weight"] == cost.LayerCost(640, 640)
    assert (found.dense, found.sparse) == (3456 + 640, 864 + 640)


def test_counting_leaves_the_model_alone():
    model = timm.create_model("resnet20_cifar", channels=[4, 8, 16])
    model.bn1.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost.macs(model, 32)
    assert model.training and not model.bn1.training and model.layer1.training
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())


def test_skipped_zeros_follow_the_masks():
    model = meta("resnet20_cifar")
    layers = prunable(model, ["first_conv", "head"])
    kept = {name: torch.zeros(weight.shape, dtype=torch.bool) for name, weight in layers.items()}
    kept["layer1.0.conv1.weight"].fill_(True)
    found = cost.macs(model, 32, Masks(kept))
    left = {name for name, layer in found.layers.items() if layer.sparse}
    assert left == {"conv1.weight", "layer1.0.conv1.weight", "fc.weight"}
    assert found.sparse == 32 * 32 * (432 + 16 * 16 * 9) + 640


def test_sizes_count_a_bit_per_weight_and_the_kept_values():
    net = nn.Sequential(nn.Linear(10, 3, bias=False), nn.BatchNorm1d(3))
    kept = torch.zeros(3, 10, dtype=torch.bool)
    kept[0] = True
    rest = 4 * 3 * 4 + 8  # four vectors of the norm, and its 64-bit counter
    assert cost.sizes(net) == cost.Sizes(4 * 30 + rest, 4 * 30 + rest)
    assert cost.sizes(net, Masks({"0.weight": kept})) == cost.Sizes(4 * 30 + rest, 4 + 40 + rest)


@torch.no_grad()
def test_dead_channels_of_plain_and_grouped_layers():
    plain = nn.Conv2d(3, 4, 2)
    plain.weight.fill_(1.0)
    plain.weight[1] = 0
    plain.weight[:, 2] = 0
    assert cost.channels(plain) == (4, 1, 3, 1)
    grouped = nn.Conv2d(4, 4, 1, groups=2)  # group 0: outputs 0, 1 of inputs 0, 1
    grouped.weight.fill_(1.0)
    grouped.weight[0] = 0
    grouped.weight[1, 1] = 0  # now no filter reads input 1
    assert cost.channels(grouped) == (4, 1, 4, 1)
    depthwise = nn.Conv2d(3, 3, 3, groups=3)
    depthwise.weight.fill_(1.0)[0] = 0
    assert cost.channels(depthwise) == (3, 1, 3, 1)
    linear = nn.Linear(3, 2)
    linear.weight.copy_(torch.tensor([[0.0, 1, 0], [0, 0, 0]]))
    assert cost.channels(linear) == (2, 1, 3, 2)


def test_dead_channels_and_their_three_averages():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        net[0].weight[1:] = 0
        net[3].weight.zero_()  # not a convolution
    found = cost.dead_channels(net)
    assert found.layers == {"0.weight": (3, 4, 36), "1.weight": (0, 2, 8)}
    assert found.fraction == 3 / 6
    assert found.layer_mean == 0.75 / 2
    assert found.weighted_mean == 0.75 * 36 / 44


def test_without_convolutions_there_is_no_share_of_dead_channels():
    found = cost.dead_channels(nn.Linear(2, 2))
    assert found.fraction is found.layer_mean is found.weighted_mean is None


def test_layer_facts_name_what_the_mask_covers():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    masks = Masks({name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable(net).items()})
    masks["0.weight"][:3] = False
    masks.apply(net.named_parameters())
    assert cost.layer_facts(net, masks) == [
        {"layer": "0", "weights": 36, "density": 0.25, "dead_channels": 3, "channels": 4},
        {"layer": "2", "weights": 8, "density": 1.0},
    ]
    assert cost.layer_facts(net, None) == []

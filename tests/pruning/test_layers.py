"""Which layers may be pruned, on plain, depthwise, and timm models."""

from __future__ import annotations

import pytest
import timm
from torch import nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.layers import prunable
from tests.pruning.training import small_cnn, tiny_mobilenet


def test_convolutions_and_linear_layers_in_module_order() -> None:
    model = small_cnn()
    layers = prunable(model)
    assert list(layers) == ["0.weight", "3.weight", "7.weight"]
    assert all(layers[name] is model.get_parameter(name) for name in layers)
    assert list(prunable(nn.Conv1d(2, 3, 3))) == ["weight"]


def test_special_entries_on_a_plain_model() -> None:
    assert list(prunable(small_cnn(), ["first_conv"])) == ["3.weight", "7.weight"]
    assert list(prunable(small_cnn(), ["head"])) == ["0.weight", "3.weight"]
    mobile = prunable(tiny_mobilenet(), ["first_conv", "head", "depthwise"])
    assert list(mobile) == ["2.0.weight", "2.6.weight", "3.0.weight", "3.6.weight"]
    assert len(prunable(small_cnn(), ["depthwise"])) == 3  # none there, and that is fine
    assert list(prunable(nn.Conv2d(1, 4, 3), ["depthwise"])) == ["weight"]  # grey images


def test_special_entries_on_timm_models() -> None:
    with_head = prunable(timm.create_model("test_resnet", num_classes=4))
    without = prunable(timm.create_model("test_resnet", num_classes=4), ["first_conv", "head"])
    assert set(with_head) - set(without) == {"conv1.0.weight", "fc.weight"}
    transformer = timm.create_model("test_vit", num_classes=4, img_size=32)
    rest = prunable(transformer, ["first_conv", "head"])
    assert set(prunable(transformer)) - set(rest) == {"patch_embed.proj.weight", "head.weight"}
    assert "blocks.0.attn.qkv.weight" in rest
    distilled = timm.create_model(
        "deit_tiny_distilled_patch16_224", embed_dim=12, depth=1, num_classes=4
    )
    both = set(prunable(distilled)) - set(prunable(distilled, ["head"]))
    assert both == {"head.weight", "head_dist.weight"}


def test_a_timm_model_without_a_classifier_has_no_head() -> None:
    model = timm.create_model("test_resnet", num_classes=0)
    assert list(prunable(model, ["head"])) == list(prunable(model))


def test_expressions_are_searched_for_in_names() -> None:
    model = timm.create_model("test_resnet", num_classes=4)
    rest = prunable(model, [r"^layer[12]\.", "fc"])
    assert rest and not any(name.startswith(("layer1", "layer2", "fc")) for name in rest)


def test_what_cannot_be_meant_is_refused() -> None:
    with pytest.raises(UserError, match="'first-conv' matches no prunable weight"):
        prunable(small_cnn(), ["first-conv"])
    with pytest.raises(UserError, match="not a regular expression"):
        prunable(small_cnn(), ["layer["])
    with pytest.raises(UserError, match="nothing left to prune"):
        prunable(small_cnn(), ["weight"])
    with pytest.raises(UserError, match="0 convolutions"):
        prunable(nn.BatchNorm1d(3))

"""The smaller rival: its family, the nearest by MACs, and when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_transfer import checkpoint, config, models
from sparse_transfer.errors import UserError
from sparse_transfer.trial import smaller

KEPT = ("first_conv", "head", "depthwise")


@pytest.mark.parametrize(
    ("architecture", "inside", "outside"),
    [
        ("resnet50", {"resnet18", "resnet34"}, {"resnet26d", "resnetv2_50", "resnet18_cifar"}),
        ("mobilenetv2_100", {"mobilenetv2_050"}, {"mobilenetv1_100", "mobilenetv2_110d"}),
        ("vit_small_patch16_224", {"vit_tiny_patch16_224"}, {"vit_small_patch32_224"}),
        ("efficientnet_b3", {"efficientnet_b0"}, {"efficientnetv2_s", "efficientnet_b0_g8_gn"}),
        ("mobilenetv3_large_100", {"mobilenetv3_small_100"}, {"mobilenetv3_small_075"}),
    ],
)
def test_a_family_differs_in_size_alone(architecture: str, inside: set[str], outside: set[str]):
    found = set(smaller.relatives(architecture))
    assert inside <= found
    assert not found & (outside | {architecture})


def test_the_nearest_by_the_macs_that_remain():
    spec = config.ModelSpec(name="resnet50", weights="random")
    assert smaller.nearest(spec, 0.9, KEPT, 64).model == config.ModelSpec(
        name="resnet18", label="resnet18", weights="random"
    )
    little = smaller.nearest(spec, 0.2, KEPT, 64).model
    assert little is not None and little.name in ("resnet26", "resnet34")


def test_macs_that_remain_by_hand():
    spec = config.ModelSpec(name="resnet20_cifar", weights="random")
    dense, left = smaller.remaining_macs(smaller.resolve(spec), spec, 0.5, KEPT, 32)
    first, head = 3 * 16 * 9 * 32 * 32, 64 * 10
    assert left == pytest.approx(dense - 0.5 * (dense - first - head), rel=1e-3)


def test_without_weights_it_is_left_out_and_said():
    found = smaller.nearest(config.ModelSpec(name="mobilenetv2_100"), 0.9, KEPT, 64)
    assert found.model is None
    assert "mobilenetv2_050" in found.reason and "random weights" in found.reason


def test_the_smallest_has_no_smaller_one():
    spec = config.ModelSpec(name="resnet20_cifar", weights="random")
    assert "smallest of its family" in smaller.nearest(spec, 0.9, KEPT, 32).reason


def test_a_named_one_must_load():
    with pytest.raises(UserError, match=r"mobilenetv2_050.* could not be loaded"):
        smaller.named("mobilenetv2_050", "pretrained", config.ModelSpec(name="resnet50"), 64)


def test_random_weights_beside_trained_ones_are_refused():
    with pytest.raises(UserError, match="compare trainings"):
        smaller.named("resnet18", "random", config.ModelSpec(name="resnet50"), 64)


def test_a_folder_may_be_named(tmp_path: Path):
    spec = config.ModelSpec(name="resnet20_cifar", weights="random")
    loaded = models.build(spec, num_classes=3, image_size=32, seed=0)
    checkpoint.save(tmp_path / "net", loaded, loaded.model, None, {"model": "net"})
    found = smaller.named(f"local-dir:{tmp_path}/net", "pretrained", spec.model_copy(
        update={"weights": "pretrained"}), 32)  # fmt: skip
    assert found.model is not None and found.model.weights == "pretrained"

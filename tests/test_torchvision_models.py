from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from sparse_transfer import models, torchvision_models
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError
from sparse_transfer.model_source import resolve
from sparse_transfer.pruning.layers import prunable

# one of each family, the smallest
FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_32",
]


def built(name: str, classes: int | None = 10, size: int = 64, **fields) -> models.LoadedModel:
    spec = ModelSpec(name=f"torchvision:{name}", **{"weights": "random", **fields})
    return models.build(spec, num_classes=classes, image_size=size, seed=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_a_head_of_the_asked_width_and_its_input(name):
    size = 224
    spec = ModelSpec(name=f"torchvision:{name}", weights="random")
    loaded = models.skeleton(spec, num_classes=7, image_size=size)
    head = loaded.model.get_classifier()
    assert models.model_classes(loaded.model) == 7 and head.weight.shape[0] == 7
    assert models.head_name(loaded.model) < set(dict(loaded.model.named_parameters()))
    assert list(prunable(loaded.model, ["head"])) == list(prunable(loaded.model))[:-1]
    assert loaded.opens_with == "sparse_transfer"
    features = models.features(loaded.model.eval(), torch.empty(2, 3, size, size, device="meta"))
    assert features.shape == (2, loaded.model.num_features)


def test_every_network_of_torchvision_is_registered_but_the_two_with_auxiliary_outputs():
    everything = set(torchvision.models.list_models(module=torchvision.models))
    left_out = everything - set(torchvision_models.torchvision_names())
    assert left_out == {"googlenet", "inception_v3"}
    assert all(timm.is_model(name) for name in torchvision_models.NAMES)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0"])
def test_the_network_is_torchvisions_own(name, tmp_path: Path):
    torch.manual_seed(3)
    original = torchvision.models.get_model(name, weights=None, num_classes=5).eval()
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    # the number of classes is read from the file
    loaded = built(name, None, weights=str(tmp_path / "w.safetensors"))
    model = loaded.model.eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), original(images))
        maps = model.forward_features(images)
        assert torch.allclose(model.forward_head(maps), original(images), atol=1e-6)
        before = original.features(images) if name == "squeezenet1_0" else None
        pooled = models.features(model, images)
    assert list(model.state_dict()) == list(original.state_dict())
    if before is not None:
        assert torch.allclose(pooled, before.mean((2, 3)), atol=1e-6) and pooled.shape == (2, 512)
    assert loaded.title == f"torchvision_{name} (w.safetensors)"


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0"])
def test_a_new_head_is_dense_and_a_function_of_its_seed(name):
    first, second = built(name, 1000).model, built(name, 1000).model
    models.new_head(first, 4, 1)
    models.new_head(second, 4, 1)
    assert torch.equal(first.get_classifier().weight, second.get_classifier().weight)
    assert (first.get_classifier().weight != 0).all()
    images = torch.randn(2, 3, 64, 64)
    assert first(images).shape == (2, 4) and first.num_classes == 4
    first.reset_classifier(0)
    assert first.eval()(images).shape == (2, 512)


def test_the_transform_is_the_one_that_torchvision_states():
    config = resolve(ModelSpec(name="torchvision:resnet50")).config
    assert config["crop_pct"] == 224 / 232 and config["interpolation"] == "bilinear"
    assert config["tag"] == "imagenet1k_v2" and config["url"].startswith("https://")
    older = resolve(ModelSpec(name="torchvision:resnet50.imagenet1k_v1"))
    assert older.config["crop_pct"] == 224 / 256
    assert older.title == "torchvision:resnet50.imagenet1k_v1"
    large = resolve(ModelSpec(name="torchvision:efficientnet_v2_l")).config
    assert large["mean"] == (0.5, 0.5, 0.5) and large["input_size"] == (3, 480, 480)
    assert large["interpolation"] == "bicubic"


def test_the_names_of_old_weight_files_are_todays():
    new = torchvision_models._legacy_names(
        {"features.denseblock1.denselayer1.norm.1.weight": torch.ones(1)}, torch.nn.Identity()
    )
    assert list(new) == ["features.denseblock1.denselayer1.norm1.weight"]


def test_an_unknown_name_or_set_of_weights_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="torchvision model named 'resnet51'") as error:
        resolve(ModelSpec(name="torchvision:resnet51"))
    assert "resnet50" in error.value.hint
    with pytest.raises(UserError, match="timm has no model named") as error:
        resolve(ModelSpec(name="squeezenet1_0"))
    assert "torchvision:squeezenet1_0" in error.value.hint
    with pytest.raises(UserError, match="set of weights"):
        resolve(ModelSpec(name="torchvision:resnet50.imagenet1k_v9"))


def test_a_network_of_fixed_input_size_is_built_for_the_asked_one():
    spec = ModelSpec(name="torchvision:vit_b_32", weights="random")
    small = models.skeleton(spec, num_classes=3, image_size=64).model
    assert small.get_parameter("encoder.pos_embedding").shape[1] == 1 + 4

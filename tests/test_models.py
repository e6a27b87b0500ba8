from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from sparse_transfer import models, weights
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError
from sparse_transfer.model_source import resolve
from sparse_transfer.pruning.structured.shrink import Cut, ShrinkPlan

TINY = {"channels": [4, 8, 16]}


def built(name: str = "resnet20_cifar", **fields):
    seed, classes = fields.pop("seed", 0), fields.pop("num_classes", 10)
    size = fields.pop("image_size", 32)
    kwargs = fields.pop("kwargs", TINY if name == "resnet20_cifar" else {})
    spec = ModelSpec(name=name, **{"weights": "random", "kwargs": kwargs, **fields})
    return models.build(spec, num_classes=classes, image_size=size, seed=seed)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20_cifar", 268_336),  # 269,722 parameters less 1,376 of batch norms and 10 biases
        ("resnet18_cifar", 11_164_352),
        ("resnet50_cifar", 23_467_712),
        ("vgg19_cifar", 20_024_000),
    ],
)
def test_small_variants_have_the_counts_of_the_literature(name, count):
    spec = ModelSpec(name=name, weights="random")
    model = models.skeleton(spec, num_classes=10, image_size=32).model
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == count
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "channels", "features"),
    [
        ("resnet20_cifar", [3, 6, 12], 12),
        ("resnet18_cifar", [4, 4, 8, 8], 8),
        ("resnet50_cifar", [2, 4, 4, 8], 32),
        ("vgg19_cifar", [4, 4, 8, 8, 8], 8),
    ],
)
def test_small_variants_speak_timm_and_take_widths(name, channels, features):
    model = timm.create_model(name, channels=channels, num_classes=5).eval()
    images = torch.randn(2, 3, 32, 32)
    maps = model.forward_features(images)
    assert model.num_features == features and maps.shape[:2] == (2, features)
    assert torch.equal(model.forward_head(maps), model(images))
    pooled = models.features(model, images)
    assert torch.equal(pooled, maps.mean((2, 3))) and pooled.shape == (2, features)
    assert torch.equal(model.get_classifier()(pooled), model(images))
    model.reset_classifier(3)
    assert model(images).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert torch.equal(model(images), pooled)
    assert model.default_cfg["classifier"] == "fc" and model.default_cfg["input_size"][1] == 32


def test_small_variants_keep_the_resolution_in_the_stem():
    image = torch.randn(1, 3, 32, 32)
    sizes = {"resnet20_cifar": 8, "resnet18_cifar": 4, "resnet50_cifar": 4, "vgg19_cifar": 2}
    for name, size in sizes.items():
        channels = [4] * {"resnet20_cifar": 3, "vgg19_cifar": 5}.get(name, 4)
        maps = timm.create_model(name, channels=channels).forward_features(image)
        assert maps.shape[2:] == (size, size), name


def test_option_a_shortcut_subsamples_and_pads_with_zeros():
    from sparse_transfer.small_models import SubsampleShortcut

    x = torch.randn(1, 2, 4, 4)
    out = SubsampleShortcut(2, 2)(x)
    assert out.shape == (1, 4, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3]].any()


def test_random_weights_are_a_function_of_the_seed_alone():
    one = built(seed=3).model
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = built(seed=3).model
    assert torch.equal(torch.get_rng_state(), before)
    assert same(one, again)
    assert not same(one, built(seed=4).model)


def test_the_title_carries_the_resolved_tag():
    assert built("resnet18", kwargs={"channels": [4, 4, 8, 8]}).title == "resnet18 (random weights)"
    source = resolve(ModelSpec(name="resnet50"))
    assert source.title == "resnet50.a1_in1k"
    assert resolve(ModelSpec(name="resnet50.tv_in1k")).title == "resnet50.tv_in1k"


def test_the_spec_records_what_rebuilds_the_model():
    loaded = built(
        "resnet18",
        kwargs={"channels": [4, 4, 8, 8]},
        pretrained_cfg={"mean": [0.5, 0.5, 0.5], "crop_pct": 1.0},
    )
    assert loaded.opens_with == "timm" and not loaded.declared_sparse
    assert loaded.spec["architecture"] == "resnet18"
    assert loaded.spec["model_args"] == {"channels": [4, 4, 8, 8]}
    config = loaded.spec["pretrained_cfg"]
    assert config["mean"] == [0.5, 0.5, 0.5] and config["crop_pct"] == 1.0
    assert config["input_size"] == [3, 32, 32] and config["num_classes"] == 10
    assert built().opens_with == "sparse_transfer"


def test_with_transform_replaces_statistics_and_refuses_others():
    loaded = built()
    changed = models.with_transform(loaded, mean=(0.1, 0.2, 0.3))
    assert changed.spec["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    assert loaded.spec["pretrained_cfg"]["mean"] != [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="colour"):
        models.with_transform(loaded, colour=1)


def test_a_transformer_is_built_for_the_image_size():
    loaded = built("test_vit", image_size=48)
    assert loaded.spec["model_args"] == {"img_size": 48}
    assert loaded.model(torch.randn(1, 3, 48, 48)).shape == (1, 10)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_local_weights_load_exactly(tmp_path: Path, ending):
    source = built(seed=1, num_classes=7).model
    path = tmp_path / f"w{ending}"
    if ending == ".pth":
        state = {f"module.{name}": t for name, t in source.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(source.state_dict(), path)
    loaded = built(weights=str(path), num_classes=None, seed=2)
    assert same(loaded.model, source)
    assert loaded.title == f"resnet20_cifar (w{ending})"
    assert loaded.spec["pretrained_cfg"]["num_classes"] == 7


def test_a_pretrained_head_stays_unless_the_classes_differ(tmp_path: Path):
    source = built(seed=1, num_classes=7).model
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    assert same(built(weights=path, num_classes=7).model, source)
    other = built(weights=path, num_classes=4, seed=5)
    assert torch.equal(other.model.get_parameter("conv1.weight"), source.conv1.weight)
    assert other.model.get_parameter("fc.weight").shape == (4, 16)
    assert same(other.model, built(weights=path, num_classes=4, seed=5).model)
    assert not same(other.model, built(weights=path, num_classes=4, seed=6).model)


def test_stored_transformer_weights_move_to_another_size(tmp_path: Path):
    source = built("test_vit", image_size=160).model.eval()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 160, 160)
    same_size = built("test_vit", image_size=160, weights=path)
    assert torch.equal(same_size.model.eval()(image), source(image))
    smaller = built("test_vit", image_size=96, weights=path)
    assert smaller.model(image[..., :96, :96]).shape == (1, 10)
    assert smaller.spec["model_args"]["img_size"] == 96


def test_a_pickled_object_is_refused(tmp_path: Path):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UserError, match="never pickled objects"):
        built(weights=str(tmp_path / "w.pth"))
    torch.save([1, 2], tmp_path / "l.pth")
    with pytest.raises(UserError, match="no state dict"):
        built(weights=str(tmp_path / "l.pth"))


def test_a_truncated_file_is_refused(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    save_file(built().model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cut off or damaged"):
        built(weights=str(path))


def test_weights_of_another_shape_say_which(tmp_path: Path):
    state = built().model.state_dict()
    del state["bn1.weight"]
    del state["bn1.num_batches_tracked"]  # forgiven
    state["extra"] = torch.zeros(2)
    state["conv1.weight"] = torch.zeros(5, 3, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as caught:
        built(weights=str(tmp_path / "w.safetensors"))
    assert "1 missing: bn1.weight (4,)" in caught.value.why
    assert "1 unexpected: extra (2,)" in caught.value.why
    assert "conv1.weight (5, 3, 3, 3), expected (4, 3, 3, 3)" in caught.value.why


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "resnet5"}, "Did you mean resnet50"),
        ({"name": "resnet50.a1_in"}, "Did you mean resnet50.a1_in1k"),
        ({"name": "resnet20_cifar"}, "no pretrained weights for resnet20_cifar"),
        ({"name": "resnet18", "weights": "no.pth"}, "no such file"),
        ({"name": "resnet18", "weights": "weights.npz"}, "does not name any weights"),
        ({"name": "local-dir:nowhere"}, "no such folder"),
        ({"name": "resnet18", "pretrained_cfg": {"men": [0.5]}}, "Did you mean mean"),
        ({"name": "resnet18", "weights": "random", "kwargs": {"chanels": [1]}}, "chanels"),
        (
            {"name": "resnet20_cifar", "weights": "random", "kwargs": {"channels": [4, 4]}},
            "3 stages need 3 channels",
        ),
    ],
)
def test_bad_specs_are_explained(spec, message):
    with pytest.raises(UserError, match=message):
        models.build(ModelSpec(**spec), num_classes=10, image_size=32, seed=0)


def test_a_folder_without_prefix_is_recognised(tmp_path: Path):
    with pytest.raises(UserError, match=f"Did you mean local-dir:{tmp_path}"):
        built(str(tmp_path))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The Hub does not answer; an empty cache of its files."""
    import huggingface_hub

    def fail(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "hf-hub:timm/test_resnet.r160_in1k"])
def test_without_network_the_error_says_what_to_do(no_network, name):
    with pytest.raises(UserError) as caught:
        built(name, weights="pretrained")
    assert name in caught.value.what
    assert "Name or service not known" in caught.value.why
    assert "local file" in caught.value.hint


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "hf-hub:timm/test_resnet.r160_in1k"])
def test_without_network_downloaded_weights_still_load(no_network: Path, name):
    source = built("test_resnet", num_classes=1000, seed=8).model
    folder = no_network / "models--timm--test_resnet.r160_in1k"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(source.state_dict(), snapshot / "model.safetensors")
    config = {"num_classes": 1000, "first_conv": "conv1.0", "classifier": "fc"}
    (snapshot / "config.json").write_text(
        json.dumps({"architecture": "test_resnet", "pretrained_cfg": config})
    )
    loaded = built(name, weights="pretrained", num_classes=None)
    assert same(loaded.model, source)
    assert loaded.title == name
    fewer = built(name, weights="pretrained", num_classes=4)
    assert fewer.model.get_parameter("fc.weight").shape[0] == 4


def test_a_local_folder_opens_with_its_arguments(tmp_path: Path):
    source = built("resnet18", kwargs={"channels": [4, 4, 8, 8]}, seed=3).model
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architecture": "resnet18",
                "num_classes": 10,
                "model_args": {"channels": [4, 4, 8, 8]},
                "pretrained_cfg": {"mean": [0.1, 0.1, 0.1], "unheard_of": 1},
            }
        )
    )
    with pytest.raises(UserError, match="holds no weights"):
        built(f"local-dir:{tmp_path}", weights="pretrained")
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = built(f"local-dir:{tmp_path}", weights="pretrained", num_classes=None)
    assert same(loaded.model, source)
    assert loaded.spec["pretrained_cfg"]["mean"] == [0.1, 0.1, 0.1]


def test_content_hash_follows_bytes_not_names(tmp_path: Path):
    one, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file({"x": torch.zeros(2)}, one)
    save_file({"x": torch.zeros(2)}, other)
    digest = models.content_hash(ModelSpec(name="resnet18", weights=str(one)))
    assert digest == models.content_hash(ModelSpec(name="resnet18", weights=str(other)))
    save_file({"x": torch.ones(2)}, other)
    assert digest != models.content_hash(ModelSpec(name="resnet18", weights=str(other)))
    assert models.content_hash(ModelSpec(name="resnet18", weights="random")) is None
    assert models.content_hash(ModelSpec(name="resnet18.a1_in1k")) is None
    (tmp_path / "config.json").write_text("{}")
    folder = ModelSpec(name=f"local-dir:{tmp_path}")
    before = weights.content_hash(folder)
    (tmp_path / "config.json").write_text("{ }")
    assert before is not None and weights.content_hash(folder) != before


@pytest.mark.parametrize(
    "name", ["resnet20_cifar", "test_vit", "test_resnet", "mobilenetv3_small_050"]
)
def test_a_new_head_is_dense_seeded_and_alone(name):
    model = built(name).model
    before = {n: p.clone() for n, p in model.named_parameters()}
    state = torch.get_rng_state()
    models.new_head(model, 6, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    head = models.head_name(model)
    assert len(head) == 2
    for parameter_name, parameter in model.named_parameters():
        if parameter_name not in head:
            assert torch.equal(parameter, before[parameter_name])
    linear = model.get_classifier()
    assert linear.out_features == 6 and bool((linear.weight != 0).all())
    bound = linear.in_features**-0.5  # torch's default for weight and bias
    assert 0.9 * bound < linear.weight.abs().max() <= bound
    first = linear.weight.clone()
    models.new_head(model, 6, seed=1)
    assert torch.equal(model.get_classifier().weight, first)
    models.new_head(model, 6, seed=2)
    assert not torch.equal(model.get_classifier().weight, first)


@pytest.mark.real
@pytest.mark.parametrize(
    ("stride", "right", "tolerance"),
    [(5, 165, 1), pytest.param(1, 862, 3, marks=pytest.mark.slow)],
)
def test_the_real_mobilenet_scores_as_measured(shared: Path, stride, right, tolerance):
    """86.2 % ± 0.3 top-1 on the 1,000 images, centre crop 224 of 256; 165 of every fifth."""
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    loaded = built(
        "mobilenetv2_100",
        weights=str(shared / "data/weights/mobilenetv2_100.tf_in1k_int8dequant.safetensors"),
        kwargs={"pad_type": "same", "bn_eps": 1e-3},
        pretrained_cfg={"mean": [0.5] * 3, "std": [0.5] * 3},
        num_classes=1000,
        image_size=224,
    )
    model = loaded.model.eval().to(memory_format=torch.channels_last)
    config = loaded.spec["pretrained_cfg"]
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    found = 0
    folder = shared / "data/datasets/imagenet1k_sample"
    table = pq.read_table(folder / "test-00000-of-00001.parquet").to_pylist()[::stride]
    for start in range(0, len(table), 8):
        rows = table[start : start + 8]
        images = []
        for row in rows:
            image = Image.open(BytesIO(row["image"]["bytes"])).convert("RGB")
            pixels = np.array(image.crop((16, 16, 240, 240)), dtype=np.float32)
            images.append((torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std)
        batch = torch.stack(images).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            predictions = model(batch).argmax(1).tolist()
        found += sum(p == row["label"] for p, row in zip(predictions, rows, strict=True))
    assert abs(found - right) <= tolerance, f"{found} of {len(table)} right, expected {right}"


def shrunk_folder(folder: Path) -> tuple[nn.Module, ShrinkPlan]:
    """A folder with config, weights and shrink plan; all that `local-dir:` reads."""
    model = built("resnet18", kwargs={"channels": [4, 4, 8, 8]}, seed=3).model
    cut = {0: Cut(4, (1, 3))}
    names = ("weight", "bias", "running_mean", "running_var")
    plan = ShrinkPlan(
        {
            "layer1.0.conv1.weight": cut,
            **{f"layer1.0.bn1.{name}": cut for name in names},
            "layer1.0.conv2.weight": {1: Cut(4, (1, 3))},
        }
    )
    plan.apply(model)
    folder.mkdir(exist_ok=True)
    config = {"architecture": "resnet18", "num_classes": 10}
    config["model_args"] = {"channels": [4, 4, 8, 8]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "shrink.json").write_text(json.dumps(plan.to_json()))
    save_file(model.state_dict(), folder / "model.safetensors")
    return model, plan


def test_a_shrunk_folder_gives_the_small_network(tmp_path: Path):
    source, plan = shrunk_folder(tmp_path)
    spec = ModelSpec(name=f"local-dir:{tmp_path}")
    loaded = models.build(spec, num_classes=None, image_size=64, seed=0)
    assert same(loaded.model, source) and loaded.shrink == plan
    assert loaded.opens_with == "sparse_transfer"
    image = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.model.eval()(image), source.eval()(image))
    outline = models.skeleton(spec, num_classes=3, image_size=64)
    shapes = {n: p.shape for n, p in outline.model.named_parameters() if "fc" not in n}
    assert shapes == {n: p.shape for n, p in source.named_parameters() if "fc" not in n}
    assert {p.device.type for p in outline.model.parameters()} == {"meta"}
    assert outline.shrink == plan


def test_random_weights_keep_the_shapes_of_a_shrunk_folder(tmp_path: Path):
    source, plan = shrunk_folder(tmp_path)
    spec = ModelSpec(name=f"local-dir:{tmp_path}", weights="random")
    loaded = models.build(spec, num_classes=10, image_size=64, seed=0)
    full = built("resnet18", kwargs={"channels": [4, 4, 8, 8]}, seed=0).model
    plan.apply(full)  # the initial weights of the full-size network, cut
    assert same(loaded.model, full) and not same(loaded.model, source)


def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path):
    shrunk_folder(tmp_path)
    spec = ModelSpec(name=f"local-dir:{tmp_path}")
    (tmp_path / "shrink.json").write_text('{"stem.weight": {"0": {"size": 4, "kept": [1]}}}')
    with pytest.raises(UserError, match="does not fit the model.\nThe model has no tensor 'stem"):
        models.build(spec, num_classes=10, image_size=64, seed=0)
    (tmp_path / "shrink.json").write_text("[1]")
    with pytest.raises(UserError, match="shrink.json cannot be used"):
        models.build(spec, num_classes=10, image_size=64, seed=0)

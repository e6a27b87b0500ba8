"""Forward passes by the engine that the rule chooses: agreement, compilation, what is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from sparse_transfer import checkpoint, config, devices, features, inference, models
from sparse_transfer.errors import UserError
from sparse_transfer.imports.checkpoints import convert
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.sparse import library
from sparse_transfer.stages import frozen
from sparse_transfer.stages.context import Context
from tests.test_features import Pictures

needs_kernels = pytest.mark.skipif(
    library.available() is not None, reason=library.available() or "they are here"
)


@pytest.fixture(autouse=True)
def nothing_compiled():
    inference._COMPILED.clear()
    yield
    inference._COMPILED.clear()


def thinned(name: str = "resnet18", density: float = 0.1, **args: Any) -> tuple[nn.Module, Masks]:
    """A network with random masks and distinct statistics of its batch norms."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **args)
    masks = Masks(
        {n: torch.rand(w.shape) < density for n, w in prunable(model, ["first_conv"]).items()}
    )
    masks.apply(model.named_parameters())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").uniform_(-0.5, 0.5)
            module.get_buffer("running_var").uniform_(0.5, 2.0)
    return model, masks


def chosen(
    model: nn.Module, masks: Masks | None, asked: Any = "auto", what: Any = "features", **more: Any
) -> inference.Engine:
    options: dict[str, Any] = {"image_size": 32, "batch_size": 8}
    options["accelerator"] = devices.accelerator()
    return inference.engine(asked, model, masks, what, **options | more)


def table(what: Any, model: nn.Module, count: int, engine: inference.Engine | None) -> np.ndarray:
    return what(
        model, Pictures(count), accelerator=devices.accelerator(), batch_size=8, engine=engine
    )


@needs_kernels
@pytest.mark.parametrize("what", ["features", "logits"])
def test_tables_agree_with_pytorch_and_do_not_depend_on_the_batch(what: Any):
    model, masks = thinned()
    run = features.extract if what == "features" else features.logits
    engine = chosen(model, masks, what=what)
    assert engine.choice.name == "sparse" and "skip their zeros" in engine.choice.reason
    assert "products are left" in engine.choice.reason
    found, expected = table(run, model, 19, engine), table(run, model, 19, None)  # 8 + 8 + 3
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-5 * scale
    assert not np.array_equal(found, expected)  # it was not PyTorch that computed them
    assert np.array_equal(found[:3], table(run, model, 3, engine))


@needs_kernels
def test_the_table_of_another_engine_has_another_key_and_pytorchs_is_the_old_one():
    model, masks = thinned()
    parts: dict[str, Any] = {
        "preprocess": {}, "mean": (0, 0, 0), "std": (1, 1, 1), "split_hash": "x",
        "part": "test", "images": 3, "precision": "fp32",
    }  # fmt: skip
    plain = features.key_parts(model, **parts)
    assert features.key_parts(model, **parts, engine=chosen(model, masks, "dense")) == plain
    sparse = features.key_parts(model, **parts, engine=chosen(model, masks))
    assert sparse == plain | {"engine": f"sparse {library.current().level}"}


@needs_kernels
def test_it_is_compiled_once_for_a_checkpoint_and_shape(monkeypatch):
    from sparse_transfer.sparse import engine

    made = []
    original = engine.compile

    def spy(module, example, **options):
        made.append(tuple(example.shape))
        return original(module, example, **options)

    monkeypatch.setattr(engine, "compile", spy)
    model, masks = thinned()
    again, _ = thinned()
    first = chosen(model, masks, what="maps").run
    assert chosen(again, masks, what="maps").run is first
    models.new_head(again, 7, seed=3)  # what is before the classifier does not see it
    assert chosen(again, masks, what="maps").run is first
    chosen(again, masks, what="features")
    assert made == [(8, 3, 32, 32)]
    chosen(model, masks, batch_size=4)
    next(iter(again.parameters())).data[0, 0, 0, 0] += 1
    assert chosen(again, masks, what="maps").run is not first
    assert len(made) == 3 and len(inference._COMPILED) == inference.KEPT


@needs_kernels
def test_small_and_dense_models_stay_in_pytorch():
    model, masks = thinned(channels=(8, 8, 8, 8))
    small = chosen(model, masks)
    assert small.run is None and "small" in small.choice.reason and small.key() == {}
    assert chosen(thinned()[0], None, "sparse").run is None
    with pytest.raises(UserError, match="bf16"):
        chosen(*thinned(), "sparse", precision="bf16")
    assert chosen(*thinned(), precision="bf16").run is None


@needs_kernels
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_torchvisions_networks_are_cut_before_their_classifier(name: str):
    model, masks = thinned(f"torchvision_{name}")
    engine = chosen(model, masks, "sparse", image_size=64)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = models.features(model.eval(), images)
        assert engine.run is not None
        found = engine.run(images)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@needs_kernels
def test_what_torch_fx_cannot_trace_is_computed_by_pytorch_and_said_so():
    class Branching(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model: Any = model
            self.num_classes = 5

        def get_classifier(self) -> nn.Module:
            return self.model.get_classifier()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images if images.shape[2] > 1 else -images)

    model, masks = thinned()
    named = Masks({f"model.{name}": mask for name, mask in masks.items()})
    found = chosen(Branching(model), named, "auto", "logits")
    assert found.run is None and found.choice.name == "dense"
    assert "cannot trace" in found.choice.reason
    with pytest.raises(UserError, match="annot trace"):
        chosen(Branching(model), named, "sparse", "logits")


@needs_kernels
def test_the_frozen_features_of_a_checkpoint_say_what_computed_them(tmp_path: Path):
    narrow: dict[str, Any] = {"channels": [32, 64, 128, 256]}
    spec = config.ModelSpec(name="resnet18", weights="random", kwargs=narrow)
    loaded = models.build(spec, num_classes=10, image_size=40, seed=0)
    generator = torch.Generator().manual_seed(0)
    masks = Masks(
        {
            name: torch.rand(weight.shape, generator=generator) < 0.1
            for name, weight in prunable(loaded.model, ["first_conv"]).items()
        }
    )
    masks.apply(loaded.model.named_parameters())
    checkpoint.save(tmp_path / "c", loaded, loaded.model, masks, {})
    context = Context(devices.accelerator(), None, tmp_path / "cache")
    ref = config.TaskRef(name="textures", train_images=20)
    size = config.Preprocess(image_size=40, crop="none")

    def of(engine: Any) -> frozen.FrozenFeatures:
        profile = config.LinearProfile(engine=engine)
        return frozen.extract(tmp_path / "c", ref, size, profile, context)

    auto, dense = of("auto"), of("dense")
    assert (auto.engine.name, dense.engine.name) == ("sparse", "dense")
    np.testing.assert_allclose(auto.train, dense.train, atol=1e-5 * np.abs(dense.train).max())
    assert not np.array_equal(auto.test, dense.test)  # neither came from the other's cache
    assert np.array_equal(of("auto").test, auto.test)


@needs_kernels
@pytest.mark.real
def test_probes_on_real_images_are_as_good_by_both_engines(shared: Path, tmp_path: Path):
    file = shared / "data/weights/squeezenet1_0.deepcompression_in1k_sparse67.safetensors"
    found = convert(file, "squeezenet1_0", sparse=0.6658)
    found.save(tmp_path / "c")
    context = Context(devices.accelerator(), shared / "data/datasets", tmp_path / "cache")
    ref = config.TaskRef(name="dtd_first10", train_images=80)
    size = config.Preprocess(image_size=64, resize=64)
    from sparse_transfer import probes

    accuracies = {}
    tables = {}
    for engine in ("dense", "sparse"):
        profile = config.LinearProfile(engine=engine, epochs=10, lbfgs_c=(0.1,))
        made = frozen.extract(tmp_path / "c", ref, size, profile, context)
        assert made.engine.name == engine
        logits = probes.lbfgs(made.train, made.train_labels, made.test, 10, profile).logits
        accuracies[engine] = float((logits.argmax(1) == made.test_labels).mean())
        tables[engine] = made.test
    scale = np.abs(tables["dense"]).max()
    assert np.abs(tables["sparse"] - tables["dense"]).max() < 1e-5 * scale
    assert accuracies["sparse"] == accuracies["dense"] > 0.2

"""Experiments of one row: what the options of `prune` and `transfer` become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_transfer import single
from sparse_transfer.errors import UserError


def pruned(**changes: Any):
    options: dict[str, Any] = {
        "model": "resnet18", "task": "shapes", "method": "gmp", "sparsity": 0.9, "recipe": "demo",
        "weights": "random", "kwargs": (), "pretrained_cfg": (), "options": (), "image_size": 32,
        "crop": "none", "recalibrate_bn": 0, "seed": 0, "overrides": (),
    }  # fmt: skip
    return single.prune_experiment(**options | changes)


def checkpoint(folder: Path, method: str = "gmp", prunable: float | None = 0.75) -> Path:
    folder.mkdir(parents=True)
    facts = {"model": "net", "method": method}
    record = {"title": "T", "facts": facts, "sparsity": {"prunable": prunable}}
    record["weights_digest"] = "0123456789abcdef"
    (folder / "sparsity.json").write_text(json.dumps(record))
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, 48, 48]}}))
    return folder


def transferred(path: Path, **changes: Any):
    options: dict[str, Any] = {
        "checkpoint": path, "dense": None, "tasks": ["digits"], "modes": ["linear"],
        "linear": "paper-linear", "full": "short", "image_size": None, "crop": "none",
        "seeds": "0", "overrides": (),
    }  # fmt: skip
    return single.transfer_experiment(**options | changes)


def test_every_option_of_prune_reaches_the_experiment():
    made = pruned(
        kwargs=["channels=[4, 8, 8, 8]", "drop_rate=1e-1"], pretrained_cfg=["mean=[.5,.5,.5]"],
        options=["updates=7"], recalibrate_bn=50, seed=3, sparsity=0.8, image_size=40,
        crop="center", overrides=["recipe.steps=9"],
    )  # fmt: skip
    (arm,) = made.arms
    (model,) = arm.upstream.models
    assert (model.name, model.weights) == ("resnet18", "random")
    assert model.kwargs == {"channels": [4, 8, 8, 8], "drop_rate": 0.1}
    assert model.pretrained_cfg == {"mean": [0.5, 0.5, 0.5]}
    assert arm.upstream.task is not None and arm.upstream.task.name == "shapes"
    assert (arm.upstream.preprocess.image_size, arm.upstream.preprocess.crop) == (40, "center")
    (method,) = arm.prune.methods
    assert (method.name, method.options) == ("gmp", {"updates": 7})
    assert (arm.prune.sparsities, arm.prune.seeds, arm.prune.dense) == ((0.8,), (3,), True)
    assert arm.prune.recalibrate_bn is not None and arm.prune.recalibrate_bn.images == 50
    assert (arm.recipe.steps, arm.recipe.name) == (9, "demo (changed)")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sparsity": 1.0}, "--sparsity 1 is outside"),
        ({"sparsity": -0.1}, "--sparsity -0.1 is outside"),
        ({"sparsity": 90.0}, "Write --sparsity 0.9 for 90 %"),
        ({"method": "str"}, "--sparsity 0.9 has no effect on str"),
        ({"crop": "middle"}, "crop"),
        ({"recalibrate_bn": -5}, "recalibrate_bn"),
        ({"kwargs": ["channels"]}, "--kwarg"),
        ({"options": ["updates"]}, "--option"),
        ({"pretrained_cfg": ["mean"]}, "--cfg"),
        ({"recipe": "dmeo"}, "demo"),
        ({"recipe": "paper-linear"}, "kind"),
    ],
    ids=str,
)
def test_wrong_options_of_prune_are_said(change: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        pruned(**change)


def test_a_checkpoint_is_transferred_as_it_is(tmp_path: Path):
    sparse = checkpoint(tmp_path / "run" / "checkpoint")
    dense = checkpoint(tmp_path / "dense", "dense", None)
    made = transferred(
        sparse, dense=dense, tasks=["digits", "textures"], modes=["linear", "full"],
        seeds="1, 2", linear="model-linear", full="demo-full", overrides=["title=Mine"],
    )  # fmt: skip
    (arm,) = made.arms
    assert made.title == "Mine" and arm.recipe.steps == 0 and arm.prune.dense
    assert arm.upstream.models[0].name == f"local-dir:{dense}"
    (method,) = arm.prune.methods
    assert method.model is not None and method.model.name == f"local-dir:{sparse}"
    assert (method.name, method.title, arm.prune.sparsities) == ("given", "gmp", (0.75,))
    assert arm.transfer is not None and arm.transfer.full is not None
    assert [task.name for task in arm.transfer.tasks] == ["digits", "textures"]
    assert arm.transfer.seeds == (1, 2) and arm.transfer.preprocess.image_size == 48
    assert (arm.transfer.linear.name, arm.transfer.full.name) == ("model-linear", "demo-full")


def test_the_size_can_be_another_than_the_checkpoints_own(tmp_path: Path):
    made = transferred(checkpoint(tmp_path / "c"), image_size=64)
    assert made.arms[0].transfer.preprocess.image_size == 64
    assert made.arms[0].prune.dense is False


def test_a_size_of_nothing_is_refused_and_not_replaced(tmp_path: Path):
    with pytest.raises(UserError, match="image_size"):
        transferred(checkpoint(tmp_path / "c"), image_size=0)


def test_an_engine_is_for_full_fine_tuning_and_makes_no_other_recipe(tmp_path: Path):
    folder = checkpoint(tmp_path / "c")
    plain = transferred(folder, modes=["full"]).arms[0].transfer
    made = transferred(folder, modes=["full"], engine="sparse").arms[0].transfer
    assert plain is not None and plain.full is not None and plain.full.engine == "auto"
    assert made is not None
    assert made.full == plain.full.model_copy(update={"engine": "sparse"})
    with pytest.raises(UserError, match="--engine dense has no effect"):
        transferred(folder, modes=["linear"], engine="dense")
    with pytest.raises(UserError, match="trains in fp32"):
        overrides = ("transfer.full.precision=bf16",)
        transferred(folder, modes=["full"], engine="sparse", overrides=overrides)


def test_a_dense_checkpoint_can_be_transferred_alone_and_beside_another(tmp_path: Path):
    one, other = (checkpoint(tmp_path / name, "dense", None) for name in "ab")
    assert transferred(one).arms[0].prune.methods[0].title == "dense"
    assert transferred(one, dense=other).arms[0].prune.methods[0].title == "given"


@pytest.mark.parametrize("name", ["Büro Süd", "UPPER", "...", "ünïcode"])
def test_any_folder_name_makes_a_valid_experiment(tmp_path: Path, name: str):
    assert transferred(checkpoint(tmp_path / name / "checkpoint")).name.startswith("transfer-")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": "0,x"}, "--seeds"),
        ({"seeds": "1,1"}, "more than once"),
        ({"modes": ["liner"]}, "modes"),
        ({"tasks": ["digits", "digits"]}, "more than once"),
        ({"full": "demo", "modes": ["full"]}, "kind"),
    ],
    ids=str,
)
def test_wrong_options_of_transfer_are_said(tmp_path: Path, change: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        transferred(checkpoint(tmp_path / "c"), **change)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no sparsity.json"):
        transferred(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        transferred(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "sparsities"),
    [
        ({}, (0.9,)),
        ({"method": "nm"}, (0.5,)),
        ({"method": "nm", "options": ["pattern=1:4"]}, (0.75,)),
        ({"method": "acdc", "options": ["allocation=2:4"]}, (0.5,)),
        ({"method": "structured"}, (0.9,)),
        ({"method": "str"}, ()),
    ],
    ids=str,
)
def test_a_sparsity_that_is_not_given_is_the_only_possible_one_or_nine_tenths(
    change: dict[str, Any], sparsities: tuple[float, ...]
):
    assert pruned(sparsity=None, **change).arms[0].prune.sparsities == sparsities


def test_two_calls_that_differ_in_an_option_have_reports_of_their_own():
    names = {pruned(options=[f"updates={n}"]).name for n in (5, 6)} | {pruned(seed=1).name}
    assert len(names) == 3 and all(name.startswith("prune-resnet18-gmp-0.9-") for name in names)


def test_the_settings_of_bench():
    def of(**changes: Any) -> Any:
        asked = {"backends": ["dense"], "batch_sizes": [16], "repeats": 30, "idle_ms": 0}
        return single.bench_settings(
            Path("nowhere"), **{**asked, "task": None, "image_size": None, **changes}
        )

    settings, images = of(batch_sizes=[1, 64], idle_ms=30)
    assert images is None and settings.regimes == {1: (0, 30), 64: (0,)}
    assert of(idle_ms=30)[0].regimes == {16: (0,), 1: (30,)}
    with pytest.raises(UserError, match="do not go together") as caught:
        of(batch_sizes=[2, 2])
    assert caught.value.why == "`batch_size` has 2 more than once: list each once"
    with pytest.raises(UserError, match="nowhere"):
        of(task="digits")  # the transform is the checkpoint's own

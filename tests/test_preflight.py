"""What `check` finds before anything runs, one test per kind of mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparse_transfer import checkpoint, config, experiment_file, models, plugins, preflight
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks

SHAPE = {"weights": "random", "kwargs": {"channels": [4, 8, 8]}}
NET = {"name": "resnet20_cifar", **SHAPE}


def experiment(**changes: Any) -> config.Experiment:
    study: dict[str, Any] = {
        "name": "made",
        "upstream": {
            "models": [NET],
            "task": {"name": "digits", "train_images": 100},
            "preprocess": {"image_size": 16, "crop": "none"},
        },
        "recipe": {"steps": 100},
        "prune": {"methods": ["gmp"], "sparsities": [0.5]},
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        target = study
        for key in parents:
            target = target.setdefault(key, {})
        target[last] = value
    return experiment_file.build(study)


def problems(tmp_path: Path, **changes: Any) -> list[tuple[str, str]]:
    found = preflight.check(experiment(**changes), None, tmp_path)
    return [(where, str(error)) for where, error in found]


def the_problem(tmp_path: Path, **changes: Any) -> tuple[str, str]:
    (found,) = problems(tmp_path, **changes)
    return found


def test_a_sound_experiment_has_no_problem(tmp_path: Path):
    assert problems(tmp_path) == []
    assert problems(tmp_path, bench__backends=["dense"], prune__methods=["fggp", "acdc"]) == []


def test_a_training_too_short_for_its_schedule(tmp_path: Path):
    where, error = the_problem(tmp_path, recipe={"steps": 1})
    assert "gmp at 0.5" in where and "1 training steps" in error


def test_a_schedule_that_ends_after_training(tmp_path: Path):
    late = [{"name": "gmp", "options": {"end": 1.5}}]
    where, error = the_problem(tmp_path, prune__methods=late)
    assert where.endswith("gmp") and "end" in error and "less than or equal to 1" in error


def test_a_method_that_trains_cannot_go_without_training(tmp_path: Path):
    _, error = the_problem(tmp_path, recipe={"steps": 0})
    assert "0 training steps" in error
    assert problems(tmp_path, recipe={"steps": 0}, prune__methods=["magnitude"]) == []


@pytest.mark.parametrize("sparsity", [1.0, 1.5, -0.1, 90])
def test_a_sparsity_outside_0_to_1(sparsity: float):
    with pytest.raises(UserError, match="sparsities"):
        experiment(prune__sparsities=[sparsity])


def test_a_layer_that_would_empty(tmp_path: Path):
    where, error = the_problem(tmp_path, prune__sparsities=[0.5, 0.9999])
    assert where.endswith("gmp at 0.9999") and "layer" in error


def test_nothing_left_to_prune(tmp_path: Path):
    where, error = the_problem(tmp_path, recipe={"steps": 100, "keep_dense": [".*"]})
    assert "resnet20_cifar" in where and "nothing left to prune" in error


def test_a_keep_dense_entry_that_matches_nothing(tmp_path: Path):
    _, error = the_problem(tmp_path, recipe={"steps": 100, "keep_dense": ["layr1"]})
    assert "layr1" in error


@pytest.mark.parametrize(
    ("change", "close"),
    [
        ({"prune__methods": ["gpm"]}, "gmp"),
        ({"upstream__models": [{"name": "resnet20_cifr", "weights": "random"}]}, "resnet20_cifar"),
        ({"upstream__task": {"name": "digts"}}, "digits"),
        ({"bench__backends": ["dens"]}, "dense"),
        ({"prune__methods": [{"name": "gmp", "options": {"update": 4}}]}, "updates"),
    ],
)
def test_an_unknown_name_gets_its_nearest(tmp_path: Path, change: dict[str, Any], close: str):
    _, error = the_problem(tmp_path, **change)
    assert close in error


@pytest.mark.parametrize("task", ["pets", "cifar10_jpeg"])
def test_missing_data_is_the_one_problem_it_is(tmp_path: Path, task: str):
    """No further problem is made up from a length that is not known."""
    where, error = the_problem(
        tmp_path, upstream__task={"name": task}, recipe={"epochs": 3}, prune__methods=["gmp"]
    )
    assert where == f"main, task {task}" and "not available" in error


def test_a_short_schedule_is_found_without_the_data(tmp_path: Path):
    found = problems(tmp_path, upstream__task={"name": "pets"}, recipe={"steps": 1})
    assert [where for where, _ in found] == ["main, task pets", "main, gmp at 0.5"]


def test_missing_downstream_data(tmp_path: Path):
    transfer = {"tasks": ["digits", "pets"], "modes": ["linear"]}
    where, _ = the_problem(tmp_path, transfer=transfer)
    assert where == "main, task pets"


def test_missing_weights_are_said_once_and_for_dense_too(tmp_path: Path):
    lost = [NET | {"weights": str(tmp_path / "lost.pth")}]
    methods = ["gmp", "magnitude"]
    where, error = the_problem(tmp_path, upstream__models=lost, prune__methods=methods)
    assert "model resnet20_cifar" in where and "lost.pth" in error
    own = [{"name": "dense", "label": "small", "model": NET}]
    assert "lost.pth" in the_problem(tmp_path, upstream__models=lost, prune__methods=own)[1]


def test_the_model_of_a_row_is_checked(tmp_path: Path):
    own = [{"name": "dense", "label": "small", "model": {"name": "resnet19", "weights": "random"}}]
    where, error = the_problem(tmp_path, prune__methods=own)
    assert "resnet19" in where and "resnet18" in error


def test_arguments_that_the_architecture_does_not_take(tmp_path: Path):
    odd = [{"name": "resnet20_cifar", "weights": "random", "kwargs": {"chanels": [4, 8, 8]}}]
    assert "chanels" in the_problem(tmp_path, upstream__models=odd)[1]


def test_more_calibration_images_than_there_are(tmp_path: Path):
    where, error = the_problem(tmp_path, prune__recalibrate_bn={"images": 101})
    assert "recalibrate_bn" in where and "100" in error
    assert problems(tmp_path, prune__recalibrate_bn={"images": 100}) == []


def test_a_backend_that_is_not_installed(tmp_path: Path, monkeypatch):
    class Absent:
        def available(self) -> str:
            return "Install the extra."

    load = plugins.load
    monkeypatch.setattr(
        plugins, "load", lambda kind, name: Absent if kind == "backend" else load(kind, name)
    )
    where, error = the_problem(tmp_path, bench__backends=["onnxruntime"])
    assert where == "main, bench" and "Install the extra" in error


def test_a_backend_that_is_calibrated_needs_images(tmp_path: Path, monkeypatch):
    from sparse_transfer.backends.onnxruntime_int8 import Backend

    monkeypatch.setattr(Backend, "available", lambda self: None)
    integers = {"bench__backends": ["onnxruntime-int8"]}
    assert problems(tmp_path, **integers) == []
    bare = {"upstream": {"models": [NET]}, "recipe": {"steps": 0}, "prune__methods": ["magnitude"]}
    where, error = the_problem(tmp_path, **bare, **integers)
    assert where == "main, bench" and "name a task in `upstream.task`" in error
    assert problems(tmp_path, **bare) == []


def test_all_problems_come_at_once_each_with_its_arm(tmp_path: Path):
    study = {
        "name": "made",
        "upstream": {"models": [NET], "task": {"name": "digits", "train_images": 100}},
        "arms": [
            {"name": "a", "recipe": {"steps": 1}, "prune": {"methods": ["gmp", "gpm"],
                                                            "sparsities": [0.5]}},
            {"name": "b", "recipe": {"steps": 50}, "prune": {"methods": ["gmp"],
                                                             "sparsities": [0.99999]}},
        ],
    }  # fmt: skip
    found = preflight.check(experiment_file.build(study), None, tmp_path)
    assert [where for where, _ in found] == ["a, gmp at 0.5", "a, gpm", "b, gmp at 0.99999"]


def test_the_resolved_model_is_named():
    (line,) = preflight.describe(experiment(upstream__models=[{"name": "resnet50"}]))
    assert "resnet50.a1_in1k" in line


def test_nothing_is_run(tmp_path: Path):
    problems(tmp_path)
    assert not list(tmp_path.glob("**/*.npy")) and not list(tmp_path.glob("**/result.json"))


def test_weights_and_channels_in_one_arm(tmp_path: Path):
    where, error = the_problem(tmp_path, prune__methods=["gmp", "slimming"])
    assert where == "main" and "Put them into two arms" in error


def test_a_warm_up_that_is_too_long(tmp_path: Path):
    recipe = {"steps": 20, "schedule": {"warmup_steps": 24}}
    where, error = the_problem(tmp_path, recipe=recipe, prune__methods=["gmp"])
    assert where == "main, recipe" and "warm-up of 24 steps" in error


def test_a_backend_that_does_not_exist_is_refused_before_anything_runs(tmp_path: Path):
    where, error = the_problem(tmp_path, bench__backends=["dense", "spars"])
    assert where == "main, bench" and "spars" in error and "sparse" in error
    study = experiment(bench__backends=["dense", "spars"])
    assert [found for found, _ in preflight.methods(study, None, tmp_path)] == [where]


def test_an_average_where_zeros_come_and_go(tmp_path: Path):
    recipe = {"steps": 60, "ema": 0.9}
    where, error = the_problem(tmp_path, recipe=recipe, prune__methods=["l1"])
    assert where == "main, l1" and "`ema`" in error
    assert preflight.methods(experiment(recipe=recipe, prune__methods=["imp"]), None, tmp_path)


def test_learned_sparsity_without_training(tmp_path: Path):
    where, error = the_problem(
        tmp_path, recipe="one-shot", prune__methods=["str"], prune__sparsities=[]
    )
    assert where == "main, str" and "no training" in error


def test_a_checkpoint_that_is_sparse_already(tmp_path: Path):
    made = models.build(ModelSpec(**NET), num_classes=10, image_size=32, seed=0)
    layers = prunable(made.model, ["first_conv", "head"])
    masks = remove(Masks.ones(layers), [Stage(magnitude(layers))], 0.7, "global")
    masks.apply(made.model.named_parameters())
    folder = tmp_path / "sparse"
    checkpoint.save(folder, made, made.model, masks, {})
    sparse = {"name": f"local-dir:{folder}"}
    told = {
        method: the_problem(tmp_path, upstream__models=[sparse], prune__methods=[method],
                            prune__sparsities=[sparsity], prune__dense=False)[1]
        for method, sparsity in (("gmp", 0.5), ("structured", 0.5), ("str", 0.5))
    }  # fmt: skip
    assert "already 0.7001 sparse" in told["gmp"]
    assert "that has a mask" in told["structured"]
    assert "sparse already" in told["str"]


@pytest.mark.parametrize("classes", [10, 7])
def test_a_teacher_must_know_the_task(tmp_path: Path, classes: int):
    made = models.build(ModelSpec(**NET), num_classes=classes, image_size=32, seed=0)
    checkpoint.save(tmp_path / "dense", made, made.model, None, {})
    changes: dict[str, Any] = {
        "upstream__models": [{"name": f"local-dir:{tmp_path / 'dense'}"}],
        "recipe": {"steps": 50, "distillation": {}}, "prune__dense": False,
    }  # fmt: skip
    if classes == 10:
        assert not problems(tmp_path, **changes)
    else:
        _, error = the_problem(tmp_path, **changes)
        assert "cannot be the teacher" in error and "tells 7 classes apart" in error


def test_a_warm_up_that_is_too_long_for_fine_tuning(tmp_path: Path):
    transfer = {"tasks": ["digits"], "modes": ["full"],
                "full": {"steps": 5, "schedule": {"warmup_steps": 6}}}  # fmt: skip
    where, error = the_problem(tmp_path, transfer=transfer)
    assert where == "main, full on digits" and "warm-up of 6 steps" in error


def test_random_weights_have_nothing_to_teach(tmp_path: Path):
    told = problems(tmp_path, recipe={"steps": 50, "distillation": {}})
    assert [where for where, _ in told] == ["main, dense", "main, gmp"]
    assert all("Its weights are random" in error for _, error in told)


def test_a_problem_of_several_arms_is_named_once():
    error = UserError("No such folder.")
    found = preflight._merged(
        {"a": [("a, task dtd", error), ("a, model x", error)], "b": [("b, task dtd", error)]}
    )
    assert [where for where, _ in found] == ["every arm, task dtd", "a, model x"]
    three = preflight._merged({"a": [("a, t", error)], "b": [("b, t", error)], "c": []})
    assert [where for where, _ in three] == ["a, b, t"]
    assert [where for where, _ in preflight._merged({"a": [("a", error)]})] == ["a"]

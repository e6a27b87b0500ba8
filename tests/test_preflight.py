"""What `check` finds before anything runs, one test per kind of mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparse_transfer import config, experiment_file, plugins, preflight
from sparse_transfer.errors import UserError

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

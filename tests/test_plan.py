"""Plans: what a run's hash follows and what it does not, and which runs an experiment has."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from sparse_transfer import config, expansion, experiment_file, identity, plan
from sparse_transfer.errors import UserError

NET = {"name": "resnet20_cifar", "label": "net", "weights": "random"}


def raw(**changes: Any) -> dict[str, Any]:
    """A small study with everything in it; `changes` are dotted with two underscores."""
    study: dict[str, Any] = {
        "name": "made",
        "upstream": {"models": [NET], "task": {"name": "shapes"}, "preprocess": {"image_size": 32}},
        "recipe": {"steps": 12},
        "prune": {"methods": [{"name": "gmp"}], "sparsities": [0.5]},
        "transfer": {
            "tasks": [{"name": "digits"}],
            "linear": {},
            "full": {"steps": 5, "lr_grid": [0.1, 0.2], "validation": 0.2},
            "preprocess": {"image_size": 32},
        },
        "bench": {},
    }
    study = copy.deepcopy(study)
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        target: Any = study
        for key in parents:
            target = target[int(key) if key.isdigit() else key]
        target[last] = value
    return study


def split_hash(ref: config.TaskRef) -> str:
    """Stands for the data: another subset has another hash."""
    if ref.name == "missing":
        raise UserError("The data of task `missing` is not available.")
    return f"{Path(ref.name).stem} {ref.train_images} {ref.validation}"


def made(study: dict[str, Any] | None = None, **changes: Any) -> plan.Plan:
    return expansion.make(experiment_file.build(study or raw(**changes)), split_hash)


def ids(of: plan.Plan) -> dict[str, set[str]]:
    return {stage: {run.id for run in of.runs if run.stage == stage} for stage in plan.STAGES}


def reversed_fields(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_fields(value[key]) for key in reversed(value)}
    return [reversed_fields(item) for item in value] if isinstance(value, list) else value


def test_the_runs_of_a_study():
    stages = [run.stage for run in made().runs]
    assert stages == ["prune"] * 2 + ["tune"] + ["linear"] * 2 + ["full"] * 2 + ["bench"] * 2


def test_parents_come_before_their_children():
    done: set[plan.Run] = set()
    for run in made(prune__seeds=[0, 1], transfer__seeds=[0, 1]).runs:
        assert set(run.parents.values()) <= done
        done.add(run)


def test_the_order_of_fields_does_not_matter():
    assert ids(made(reversed_fields(raw()))) == ids(made())


@pytest.mark.parametrize(
    "change",
    [
        {"upstream__models__0__label": "another"},
        {"prune__methods__0__label": "mine"},
        {"name": "another"},
        {"title": "T"},
        {"notes": "N"},
        {"recipe__name": "another"},
        {"recipe__source": "arXiv"},
        {"recipe__deviations": "none"},
        {"transfer__full__name": "another"},
        {"transfer__linear__source": "arXiv"},
    ],
    ids=str,
)
def test_names_for_people_and_paths_are_no_part_of_a_hash(change: dict[str, Any]):
    assert ids(made(**change)) == ids(made())


def test_a_card_counts_by_what_it_says_not_by_where_it_lies(tmp_path: Path):
    def of(folder: str, text: str) -> set[str]:
        card = tmp_path / folder / "mine.yaml"
        card.parent.mkdir(exist_ok=True)
        card.write_text(f"name: mine\nfolder: photos\n{text}")
        return ids(made(transfer__tasks=[{"name": str(card)}]))["full"]

    before = of("a", "")
    assert of("b", "title: Something for people\n") == before
    for said in ("hflip: false\n", "metric: mean_per_class\n",
                 "mean: [0.5, 0.5, 0.5]\nstd: [0.2, 0.2, 0.2]\n"):  # fmt: skip
        assert not of("b", said) & before


# Another value than the default of every field that defines a number.
OTHER: dict[str, dict[str, Any]] = {
    "Recipe": {
        "version": 2, "steps": 13, "batch_size": 64, "label_smoothing": 0.1, "clip_norm": 1.0,
        "accumulation": 2, "ema": 0.9, "precision": "bf16", "augment": "flip",
        "keep_dense": ["head"], "optimizer": {"lr": 0.2}, "schedule": {"warmup_steps": 1},
        "distillation": {"hardness": 0.3}, "lr_restarts": "prune",
    },
    "FullProfile": {
        "version": 2, "steps": 13, "batch_size": 64, "label_smoothing": 0.1, "clip_norm": 1.0,
        "accumulation": 2, "ema": 0.9, "precision": "bf16", "augment": "flip", "card_lr": True,
        "lr_grid": [0.1, 0.3], "validation": 0.3, "bn": "frozen", "engine": "sparse",
        "normalise": "imagenet",
        "interpolation": "bicubic", "optimizer": {"lr": 0.2}, "schedule": {"warmup_steps": 1},
    },
    "LinearProfile": {
        "version": 2, "epochs": 9, "batch_size": 32, "lr": 0.2, "momentum": 0.8,
        "weight_decay": 0.0, "milestones": [3], "gamma": 0.5, "lbfgs_c": [1.0],
        "lbfgs_validation": 0.3, "normalise": "imagenet", "interpolation": "bicubic",
    },
    "Preprocess": {
        "image_size": 40, "crop": "none", "resize": 50, "interpolation": "bicubic",
        "normalise": "imagenet",
    },
    "Optimizer": {
        "name": "adam", "lr": 0.2, "momentum": 0.8, "nesterov": False, "weight_decay": 0.0,
        "decay_norm_and_bias": True,
    },
    "LrSchedule": {
        "name": "step", "warmup_steps": 1, "milestones": [1], "gamma": 0.5, "floor": 0.1,
    },
    "ModelSpec": {
        "name": "resnet18_cifar", "weights": "pretrained", "kwargs": {"channels": [4, 8, 8]},
        "pretrained_cfg": {"mean": [0.4, 0.5, 0.5]},
    },
    "TaskRef": {"name": "textures", "train_images": 50, "validation": 0.1},
    "MethodSpec": {"name": "magnitude", "options": {"updates": 7}, "model": NET | {"kwargs": {
        "channels": [4, 8, 8]}}},
    "Bench": {"backends": ["onnxruntime"], "batch_size": 2, "repeats": 7, "idle_ms": 30},
    "RecalibrateBn": {"images": 7},
}  # fmt: skip
# Where each stands in the study, and the stages whose numbers it defines.
ALL = ("prune", "tune", "linear", "full", "bench")
PLACES: list[tuple[str, type[config.Frozen], tuple[str, ...]]] = [
    ("recipe", config.Recipe, ALL),
    ("recipe__optimizer", config.Optimizer, ALL),
    ("recipe__schedule", config.LrSchedule, ALL),
    ("upstream__models__0", config.ModelSpec, ALL),
    ("upstream__task", config.TaskRef, ALL),
    ("upstream__preprocess", config.Preprocess, ALL),
    ("prune__recalibrate_bn", config.RecalibrateBn, ("prune", "linear", "full", "bench")),
    ("prune__methods__0", config.MethodSpec, ("prune", "linear", "full", "bench")),
    ("transfer__tasks__0", config.TaskRef, ("tune", "linear", "full")),
    ("transfer__preprocess", config.Preprocess, ("tune", "linear", "full")),
    ("transfer__linear", config.LinearProfile, ("linear",)),
    ("transfer__full", config.FullProfile, ("tune", "full")),
    ("transfer__full__optimizer", config.Optimizer, ("tune", "full")),
    ("transfer__full__schedule", config.LrSchedule, ("tune", "full")),
    ("bench", config.Bench, ("bench",)),
]
FOR_PEOPLE = {"kind", "name", "label", "source", "deviations"}
NAMED = (config.ModelSpec, config.TaskRef, config.MethodSpec, config.Optimizer, config.LrSchedule)
CASES = [
    (place, cls, field, stages)
    for place, cls, stages in PLACES
    for field in cls.model_fields
    if field != "epochs" or cls is config.LinearProfile
    if field not in FOR_PEOPLE or (field == "name" and cls in NAMED)
]


def base(place: str) -> dict[str, Any]:
    """The study with an (empty) mapping at `place`."""
    study = raw(prune__recalibrate_bn={"images": 5})
    target: Any = study
    for key in place.split("__"):
        index = int(key) if key.isdigit() else key
        if isinstance(target, dict):
            target.setdefault(index, {})
        target = target[index]
    return study


def changed(study: dict[str, Any], place: str, **fields: Any) -> dict[str, Any]:
    study = copy.deepcopy(study)
    target: Any = study
    for key in place.split("__"):
        target = target[int(key) if key.isdigit() else key]
    target |= fields
    return study


@pytest.mark.parametrize(
    ("place", "cls", "field", "stages"), CASES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_every_field_that_defines_a_number_changes_the_hash(place, cls, field, stages):
    before = base(place)
    after = changed(before, place, **{field: OTHER[cls.__name__][field]})
    old, new = ids(made(before)), ids(made(after))
    touched = {stage for stage in plan.STAGES if old[stage] != new[stage]}
    expected = set(stages)
    if place == "transfer__preprocess" and field == "image_size":
        expected.add("bench")  # measured at the size that is transferred
    assert touched == expected


@pytest.mark.parametrize(
    ("place", "cls"), [(place, cls) for place, cls, _ in PLACES], ids=lambda v: str(v)
)
def test_spelling_out_a_default_keeps_the_hash(place: str, cls: type[config.Frozen]):
    study = base(place)
    target: Any = study
    for key in place.split("__"):
        target = target[int(key) if key.isdigit() else key]
    spelled = {
        name: field.get_default(call_default_factory=True)
        for name, field in cls.model_fields.items()
        if not field.is_required() and name not in target
    }
    spelled = json.loads(json.dumps(spelled, default=lambda model: model.model_dump(mode="json")))
    if cls is config.RecalibrateBn:
        spelled, study = {"images": 1000}, changed(study, "prune", recalibrate_bn={})
    assert spelled
    assert ids(made(changed(study, place, **spelled))) == ids(made(study))


def test_spelling_out_a_default_option_of_a_method_keeps_the_hash():
    assert ids(made(prune__methods__0__options={"updates": 50})) == ids(made())


@pytest.mark.parametrize(
    "change",
    [{"prune__seeds": [1]}, {"prune__sparsities": [0.6]}, {"transfer__seeds": [1]}],
    ids=str,
)
def test_seeds_and_sparsities_change_the_hash(change: dict[str, Any]):
    before, after = ids(made(prune__dense=False)), ids(made(prune__dense=False, **change))
    assert not before["full"] & after["full"]


def test_versions_of_method_and_program_change_the_hash(monkeypatch):
    before = ids(made())
    from sparse_transfer.pruning.methods import gmp

    monkeypatch.setattr(gmp.Method, "version", 99)
    assert len(ids(made())["prune"] & before["prune"]) == 1, "dense stays"
    monkeypatch.setattr(identity, "RESULTS_VERSION", 99)
    assert not ids(made())["prune"] & before["prune"]


def test_the_process_count_changes_every_hash(monkeypatch):
    before = ids(made())
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert ids(made()) == before
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert all(not ids(made())[stage] & before[stage] for stage in plan.STAGES)
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UserError, match="WORLD_SIZE"):
        made()


def test_weights_count_by_content_not_by_path(tmp_path: Path):
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    one.write_bytes(b"weights")
    other.write_bytes(b"weights")
    before = ids(made(upstream__models__0__weights=str(one)))
    assert ids(made(upstream__models__0__weights=str(other))) == before
    other.write_bytes(b"other weights")
    assert not ids(made(upstream__models__0__weights=str(other)))["prune"] & before["prune"]


@pytest.mark.parametrize("weights", ["pretrained", "random", "w.safetensors"])
def test_a_model_folder_counts_by_content_not_by_path(tmp_path: Path, weights: str):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text('{"architecture": "resnet18"}')
        (folder / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "w.safetensors").write_bytes(b"w")
    stated = str(tmp_path / weights) if weights.startswith("w") else weights

    def of(folder: Path) -> dict[str, set[str]]:
        return ids(made(upstream__models=[{"name": f"local-dir:{folder}", "weights": stated}]))

    before = of(folders[0])
    assert of(folders[1]) == before
    (folders[1] / "config.json").write_text('{"architecture": "resnet34"}')
    assert not of(folders[1])["prune"] & before["prune"]


def test_weights_that_differ_only_in_what_they_are_called_do_not_collide(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    name = f"local-dir:{tmp_path}"
    both = [{"name": name, "weights": w, "label": w} for w in ("random", "pretrained")]
    assert len(ids(made(upstream__models=both))["prune"]) == 4


def arms(*changes: dict[str, Any]) -> dict[str, Any]:
    study = raw()
    shared = {key: study.pop(key) for key in list(study) if key != "name"}
    return study | {"arms": [shared | {"name": f"arm{i}"} | c for i, c in enumerate(changes)]}


def test_a_dense_model_that_two_arms_share_is_one_run():
    of = made(arms({}, {"prune": {"methods": [{"name": "gmp"}], "sparsities": [0.8]}}))
    dense = [[r for r in runs if r.subject.method == "dense"] for runs in of.arms.values()]
    assert len(dense[0]) == len(dense[1]) > 0
    assert [run.id for run in dense[0]] == [run.id for run in dense[1]]
    assert sum(r.subject.method == "dense" and r.stage == "prune" for r in of.runs) == 1
    assert len(of.runs) == len({run.id for run in of.runs})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"upstream": {"models": [NET], "task": {"name": "missing"}}}, "task missing"),
        ({"upstream": {"models": [NET | {"weights": "no.pth"}], "task": {"name": "shapes"}}},
         "model net"),
    ],
)  # fmt: skip
def test_what_one_arm_lacks_leaves_the_others(change: dict[str, Any], what: str):
    of = made(arms(change, {}))
    assert of.arms["arm0"] == () and {run.id for run in of.arms["arm1"]} == {r.id for r in of.runs}
    assert [(item.arm, item.what) for item in of.unavailable] == [("arm0", what)]
    assert of.runs


def test_a_missing_downstream_task_leaves_the_other_tasks():
    of = made(transfer__tasks=[{"name": "missing"}, {"name": "digits"}])
    assert ids(of) == ids(made())
    assert [item.what for item in of.unavailable] == ["task missing"]


def test_the_learning_rate_is_searched_once_on_dense_and_shared():
    of = made(prune__seeds=[0, 1], transfer__seeds=[0, 1])
    (tune,) = [run for run in of.runs if run.stage == "tune"]
    assert (tune.subject.method, tune.subject.seed) == ("dense", 0)
    full = [run for run in of.runs if run.stage == "full"]
    assert len(full) == 8 and all(run.parents["tune"] is tune for run in full)


def test_a_smaller_dense_model_stands_beside_the_dense_one():
    small = {"name": "dense", "label": "small", "model": NET | {"kwargs": {"channels": [4, 8, 8]}}}
    of = made(prune__methods=[{"name": "gmp"}, small])
    pruned = [run.subject for run in of.runs if run.stage == "prune"]
    assert [(s.method, s.sparsity) for s in pruned] == [("dense", 0), ("gmp", 0.5), ("small", 0)]
    assert {s.model for s in pruned} == {"net"}


@pytest.mark.parametrize("listed", [False, True])
def test_dense_may_be_asked_for_as_a_method(listed: bool):
    of = made(prune__dense=listed, prune__methods=["dense"])
    assert [run.subject.method for run in of.runs if run.stage == "prune"] == ["dense"]
    assert [run.stage for run in of.runs if run.subject.method == "dense"].count("full") == 1


def test_an_arm_without_dense_is_timed_beside_nothing():
    (bench,) = [run for run in made(prune__dense=False).runs if run.stage == "bench"]
    assert set(bench.parents) == {"checkpoint"}


def test_without_a_transfer_section_nothing_is_transferred():
    study = raw()
    del study["transfer"], study["bench"]
    assert [run.stage for run in made(study).runs] == ["prune", "prune"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prune__methods": ["gmp", {"name": "gmp", "options": {"updates": 3}}]}, "label"),
        ({"prune__methods": [{"name": "gmp", "label": "dense"}]}, "label"),
        ({"upstream__models": [NET, NET | {"weights": "pretrained"}]}, "label"),
        ({"prune__sparsities": [0.5, 0.5]}, "once"),
        ({"prune__seeds": [1, 1]}, "once"),
        ({"transfer__seeds": [1, 1]}, "once"),
        ({"transfer__tasks": ["digits", "digits"]}, "once"),
        ({"bench__backends": ["dense", "dense"]}, "once"),
    ],
    ids=str,
)
def test_rows_that_a_table_could_not_tell_apart_are_refused(change: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        made(**change)


def test_wrong_options_name_the_method_and_its_options():
    with pytest.raises(UserError, match="gmp") as caught:
        made(prune__methods__0__options={"upates": 3})
    assert "upates" in str(caught.value) and "updates" in caught.value.hint


def test_no_numbers_are_left_to_a_run_of_another_arm():
    """Two arms that differ in the recipe share no run."""
    of = made(arms({}, {"recipe": {"steps": 13}}))
    first, second = ({run.id for run in runs} for runs in of.arms.values())
    assert not first & second


def test_a_method_without_a_target_runs_once_per_seed():
    runs = made(prune__methods=["str", "gmp"], prune__sparsities=[0.5, 0.9]).runs
    pruned = [run.subject for run in runs if run.stage == "prune"]
    assert [(s.method, s.sparsity) for s in pruned] == [
        ("dense", 0.0), ("str", 0.0), ("gmp", 0.5), ("gmp", 0.9),
    ]  # fmt: skip
    assert made(prune__methods=["str"], prune__sparsities=[]).runs
    with pytest.raises(UserError, match="gmp needs a target"):
        made(prune__methods=["str", "gmp"], prune__sparsities=[])


def test_weights_and_channels_are_not_compared_at_one_sparsity():
    with pytest.raises(UserError, match="(?s)compares progressive with gmp.*two arms"):
        made(prune__methods=["gmp", "progressive"])


ONLINE = {"epochs": 2}


def test_every_mode_has_runs_of_its_own():
    of = made(
        transfer__modes=["linear", "linear-online", "full"],
        transfer__online=ONLINE,
        transfer__few_shot={},
        transfer__seeds=[0, 1],
    )
    counts = {stage: sum(run.stage == stage for run in of.runs) for stage in plan.STAGES}
    assert counts["linear"] == counts["few_shot"] == 2  # one per checkpoint
    assert counts["online"] == counts["full"] == 4  # and per transfer seed


def test_curves_over_shots_and_the_on_line_mode_leave_the_other_runs_as_they_are():
    more = made(
        transfer__modes=["linear", "linear-online", "full"],
        transfer__online=ONLINE,
        transfer__few_shot={},
    )
    before, after = ids(made()), ids(more)
    assert all(before[stage] == after[stage] for stage in ("prune", "tune", "linear", "full"))


def test_a_temperature_is_part_of_what_is_asked_of_a_run():
    before, after = ids(made()), ids(made(transfer__calibrate=True))
    assert before["tune"] == after["tune"]
    assert not before["linear"] & after["linear"] and not before["full"] & after["full"]


@pytest.mark.parametrize(
    "changes", [{"transfer__few_shot": {"c": 1.0}}, {"transfer__linear": {"normalise": "imagenet"}}]
)
def test_what_defines_a_curve_over_shots(changes):
    def curve(**fields: Any) -> set[str]:
        return ids(made(**{"transfer__few_shot": {}, **fields}))["few_shot"]

    assert curve() == curve(transfer__linear={"epochs": 7})  # of the profile, the transform alone
    assert not curve() & curve(**changes)


def test_the_on_line_mode_needs_a_profile():
    with pytest.raises(UserError, match="paper-linear-online"):
        made(transfer__modes=["linear-online"])


def test_a_bench_that_needs_images_depends_on_the_task_and_others_do_not():
    def benches(**changes: Any) -> list[plan.Run]:
        return [run for run in made(**changes).runs if run.stage == "bench"]

    (plain, *_), (calibrated, *_) = (
        benches(),
        benches(bench__backends=["dense", "onnxruntime-int8"]),
    )
    assert isinstance(plain.spec, plan.BenchSpec) and isinstance(calibrated.spec, plan.BenchSpec)
    assert plain.spec.task is None and "task" not in plain.identity
    assert calibrated.spec.task is not None and calibrated.identity["task"]["split_hash"]
    assert calibrated.spec.preprocess is not None
    assert calibrated.spec.preprocess.image_size == calibrated.spec.image_size
    one = benches(bench__batch_size=16)  # the default spelt out
    assert one[0].id == plain.id != benches(bench__batch_size=[16, 1])[0].id

"""Strict YAML, arms, recipes by name, --set, and errors that say where and what."""

from pathlib import Path

import pytest

from sparse_transfer import config, experiment_file
from sparse_transfer.errors import UserError

MINIMAL = """
# A test.
name: test
upstream:
  models: [{name: resnet18, weights: random}]
  task: {name: shapes}
recipe: demo
prune: {methods: [gmp], sparsities: [0.5]}
"""


def write(folder: Path, text: str) -> str:
    path = folder / "test.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        experiment_file.load(write(folder, text), overrides)
    return str(caught.value)


def test_one_arm_without_an_arms_list(tmp_path):
    loaded = experiment_file.load(write(tmp_path, MINIMAL))
    (arm,) = loaded.arms
    assert arm.name == "main" and arm.prune.methods[0].name == "gmp"
    assert arm.recipe.name == "demo" and arm.recipe.steps is not None


def test_a_pattern_is_a_word_and_not_a_number_to_base_sixty():
    value, _ = experiment_file.parse_yaml("{a: 2:4, b: 1:10, c: 1_000, d: 0x1f, e: -3}", "x")
    assert value == {"a": "2:4", "b": "1:10", "c": 1000, "d": 31, "e": -3}


def test_numbers_and_words_mean_what_they_look_like():
    value, _ = experiment_file.parse_yaml("{a: 1e-3, b: no, c: true, d: 007, e: 1.5, f: null}", "x")
    assert value == {"a": 0.001, "b": "no", "c": True, "d": 7, "e": 1.5, "f": None}


def test_a_key_given_twice_is_refused_with_both_lines(tmp_path):
    text = message(tmp_path, MINIMAL + "recipe: one-shot\n")
    assert "test.yaml:9" in text and "`recipe` is given twice" in text and "line 7" in text


def test_all_mistakes_at_once_with_line_and_nearest_names(tmp_path):
    wrong = MINIMAL.replace("sparsities: [0.5]", "sparsity: [0.5], seeds: [-1]")
    text = message(tmp_path, wrong.replace("{name: shapes}", "{nam: shapes}"))
    assert "test.yaml:8: prune.sparsity: unknown field; did you mean sparsities" in text
    assert "prune.seeds.0" in text and "(found -1)" in text
    assert "test.yaml:6: upstream.task.name: is missing" in text


def test_a_shared_field_reaches_every_arm_and_an_arm_overrides_it(tmp_path):
    text = MINIMAL + "arms:\n  - {name: a}\n  - {name: b, prune: {sparsities: [0.9], seeds: [1]}}\n"
    first, second = experiment_file.load(write(tmp_path, text)).arms
    assert first.prune.sparsities == (0.5,) and second.prune.sparsities == (0.9,)
    assert second.prune.seeds == (1,) and second.prune.methods == first.prune.methods


def test_arms_of_one_name_are_refused(tmp_path):
    assert "more than once" in message(tmp_path, MINIMAL + "arms: [{name: a}, {name: a}]\n")


def test_set_changes_one_field_even_inside_a_named_recipe(tmp_path):
    loaded = experiment_file.load(
        write(tmp_path, MINIMAL), ["recipe.steps=7", "prune.sparsities=[0.25]"]
    )
    assert loaded.arms[0].recipe.steps == 7
    assert loaded.arms[0].recipe.name == "demo (changed)"
    assert loaded.arms[0].prune.sparsities == (0.25,)


def test_epochs_replace_the_steps_of_a_named_recipe(tmp_path):
    arm = experiment_file.load(write(tmp_path, MINIMAL), ["recipe.epochs=2"]).arms[0]
    assert arm.recipe.epochs == 2 and arm.recipe.steps is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("recipe.stepz=7", "did you mean steps"),
        ("recipe", "Write --set"),
        ("upstream.models.4.name=x", "0 to 0"),
        ("prune.sparsities=[1.0]", "less than 1"),
        ("prune.methods.0.options.start=.2", "names no field"),
        ("recipe=no-such", "no recipe named 'no-such'"),
        ("recipe=paper-linear", "kind `linear`"),
        ("transfer={tasks: [digits], modes: [full]}", "needs a profile"),
        ("recipe.steps=7=8", "valid integer"),
    ],
)
def test_a_wrong_override_is_explained(tmp_path, override, expected):
    assert expected in message(tmp_path, MINIMAL, override)


def test_unknown_experiment_gives_the_nearest():
    with pytest.raises(UserError, match="quickstart"):
        experiment_file.load("quickstat")


@pytest.mark.parametrize("name", experiment_file.config_names())
def test_every_shipped_experiment_is_valid(name):
    assert experiment_file.load(name, data_root=Path("images")).name == name


def test_a_file_that_needs_the_data_root_says_so():
    with pytest.raises(UserError, match="--data-root"):
        experiment_file.load("small-study")
    study = experiment_file.load("small-study", data_root=Path("images"))
    assert study.arms[2].upstream.models[0].weights.startswith("images/../weights/")


def test_set_reaches_a_field_that_an_arm_states_itself(tmp_path):
    text = MINIMAL + "arms:\n  - {name: a}\n  - {name: b, prune: {seeds: [1, 2]}}\n"
    everywhere = experiment_file.load(write(tmp_path, text), ["prune.seeds=[7]"])
    assert [arm.prune.seeds for arm in everywhere.arms] == [(7,), (7,)]
    one = experiment_file.load(write(tmp_path, text), ["arms.1.prune.seeds=[7]"])
    assert [arm.prune.seeds for arm in one.arms] == [(0,), (7,)]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("sparsities: [0.5]", 'sparsities: ["0.5"]', "valid number"),
        ("sparsities: [0.5]", "sparsities: [true]", "valid number"),
        ("sparsities: [0.5]", "sparsities: [1e400]", "not a finite number"),
        ("recipe: demo", "recipe: {base: 5}", "name of a recipe"),
        ("recipe: demo", "recipe: &x [*x]", "contains itself"),
        ("recipe: demo", "recipe: de\0mo", "not valid YAML"),
        ("recipe: demo", "recipe: nodemo", "no recipe named 'nodemo'"),
    ],
)
def test_wrong_types_are_not_guessed_at(tmp_path, old, new, expected):
    text = message(tmp_path, MINIMAL.replace(old, new))
    assert expected in text and len(text) < 500


def test_an_unknown_recipe_does_not_hide_other_mistakes(tmp_path):
    text = message(tmp_path, MINIMAL.replace("demo", "nodemo").replace("gmp", "{nam: gmp}"))
    assert "no recipe named 'nodemo'" in text and "did you mean name" in text


@pytest.mark.parametrize("name", experiment_file.recipe_names())
def test_every_shipped_recipe_is_valid_and_states_source_and_deviations(name):
    recipe = experiment_file.load_recipe(name)
    assert recipe.name == name and recipe.source and recipe.deviations


def test_defaults_are_pinned():
    """A default is part of what a hash stands for: changing one needs a higher version."""
    training = {
        "epochs": None, "steps": 1, "batch_size": 128, "label_smoothing": 0.0, "clip_norm": None,
        "accumulation": 1, "ema": None, "precision": "fp32", "augment": "none",
        "optimizer": {
            "name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4,
            "decay_norm_and_bias": False,
        },
        "schedule": {
            "name": "cosine", "warmup_steps": 0, "milestones": (), "gamma": 0.1, "floor": 0.0,
        },
    }  # fmt: skip
    described = {"name": "custom", "version": 1, "source": "", "deviations": ""}
    assert config.Recipe(steps=1).model_dump() == {
        **training, **described, "kind": "prune", "keep_dense": ("first_conv", "head", "depthwise"),
        "distillation": None, "lr_restarts": "never",
    }  # fmt: skip
    assert config.FullProfile(steps=1).model_dump() == {
        **training, **described, "kind": "full", "lr_grid": (), "card_lr": False,
        "validation": 0.0, "bn": "train", "engine": "auto", "normalise": None,
        "interpolation": None,
    }  # fmt: skip
    assert config.LinearProfile().model_dump() == {
        **described, "kind": "linear", "epochs": 150, "batch_size": 64, "lr": 0.01,
        "momentum": 0.9, "weight_decay": 5e-4, "milestones": (51, 101), "gamma": 0.1,
        "lbfgs_c": (1e-3, 1e-2, 1e-1, 1.0, 10.0), "lbfgs_validation": 0.2,
        "normalise": None, "interpolation": None,
    }  # fmt: skip
    assert config.Preprocess().model_dump() == {
        "image_size": 224, "crop": "center", "resize": None, "interpolation": "model",
        "normalise": "model",
    }  # fmt: skip


def test_the_paper_profiles_are_the_protocol():
    linear = experiment_file.load_recipe("paper-linear")
    full = experiment_file.load_recipe("paper-full")
    assert isinstance(linear, config.LinearProfile) and isinstance(full, config.FullProfile)
    assert (linear.lr, linear.momentum, linear.weight_decay) == (0.01, 0.9, 5e-4)
    assert (linear.epochs, linear.batch_size, linear.milestones) == (150, 64, (51, 101))
    assert (full.epochs, full.batch_size, full.optimizer.lr) == (150, 64, 0.001)
    assert full.optimizer.decay_norm_and_bias and not full.optimizer.nesterov
    assert full.schedule.milestones == (51, 101) and full.schedule.gamma == 0.1
    assert full.card_lr and full.normalise == "dataset" and full.augment == "random_resized_crop"
    assert linear.normalise == "imagenet" and not full.lr_grid and not full.validation

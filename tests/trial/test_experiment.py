"""The experiment behind `try`: its rows, one recipe, its variants, and budgets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparse_transfer import config, expansion, plan
from sparse_transfer.errors import UserError
from sparse_transfer.trial import experiment
from sparse_transfer.trial.experiment import FIRST, ONE_SHOT, SECOND, VARIANTS

SMALLER = config.ModelSpec(name="resnet18_cifar", label="resnet18_cifar", weights="random")
REQUEST = experiment.Request(
    model=config.ModelSpec(name="resnet20_cifar", weights="random"),
    sparsity=0.9,
    task="shapes",
    validation=0.25,
    folder="photos",
    train=300,
    image_size=224,
    smaller=SMALLER,
)


def planned(request: experiment.Request = REQUEST) -> plan.Plan:
    made = experiment.build(request, VARIANTS[0])
    return expansion.make(made, lambda ref: f"{ref.validation}")


def test_the_rows_are_those_of_the_issue():
    answer = experiment.build(REQUEST, VARIANTS[0]).answer
    assert answer is not None
    assert [row.title for row in answer.rows] == [
        "dense before 2nd fine-tune",
        "dense continued",
        "gmp",
        "fggp",
        "one-shot, then fine-tuned",
        "one-shot, not fine-tuned",
        "linear only",
        "resnet18_cifar",
    ]
    assert answer.reference == "dense continued"
    assert "not transfer" in answer.headline


def test_every_row_of_the_answer_has_a_run():
    made = planned()
    assert made.experiment.answer is not None and not made.unavailable
    for row in made.experiment.answer.rows:
        stage = "prune" if row.mode == "upstream" else "linear"
        runs = [r for r in made.arms[row.arm] if (r.stage, r.subject.method) == (stage, row.method)]
        assert len(runs) == 1, row


def test_pruned_rows_and_their_control_begin_alike_and_train_alike():
    made = planned()
    first = next(r for r in made.arms[FIRST] if r.subject.method == "dense")
    second = [run for run in made.arms[SECOND] if run.stage == "prune"]
    starts = {run.subject.method: run.parents["model"] for run in second}
    assert starts["dense"] == starts["gmp"] == starts["fggp"] == first
    held = starts["one-shot, then fine-tuned"]
    assert held in made.arms[ONE_SHOT] and held.parents["model"] == first
    assert isinstance(held.spec, plan.PruneSpec)
    assert held.spec.recalibrate_bn == config.RecalibrateBn(images=300)
    assert starts["resnet18_cifar"] in made.arms[FIRST]
    specs = [run.spec for run in (*second, *made.arms[FIRST])]
    recipes = [spec.recipe for spec in specs if isinstance(spec, plan.PruneSpec)]
    assert all(recipe == recipes[0] for recipe in recipes)


def test_all_rows_see_the_same_images():
    specs = [r.spec for r in planned().runs if not isinstance(r.spec, plan.BenchSpec)]
    expected = config.TaskRef(name="shapes", validation=0.25)
    assert all(spec.task == expected for spec in specs if spec.task)
    assert len([spec for spec in specs if spec.task]) == len(specs) - 1


def test_without_a_smaller_model_the_reason_is_said():
    asked = replace(REQUEST, smaller=None, no_smaller="no weights")
    answer = experiment.build(asked, VARIANTS[0]).answer
    assert answer is not None
    assert answer.left_out == ("a smaller dense model: no weights",)
    assert len(answer.rows) == 7


def test_variants_grow_in_pixels_and_length():
    sizes = [experiment.pixels(REQUEST, variant) for variant in VARIANTS]
    epochs = [variant.epochs_of(300, 32) for variant in VARIANTS]
    assert sizes == sorted(set(sizes)) and epochs == sorted(set(epochs))


def test_few_images_are_seen_more_often():
    quick = VARIANTS[0]
    assert quick.epochs_of(40, 32) == 30  # two batches an epoch, at least 60 steps
    assert quick.epochs_of(100_000, 32) == quick.epochs


def test_no_variant_is_larger_than_the_model_was_trained_on():
    small = replace(REQUEST, image_size=64)
    assert {experiment.pixels(small, variant) for variant in VARIANTS} == {64}
    assert len(experiment.distinct(small)) == 3


def test_another_question_has_a_report_of_its_own():
    names = {
        experiment.build(asked, variant).name
        for variant in VARIANTS
        for asked in (REQUEST, replace(REQUEST, sparsity=0.8), replace(REQUEST, seed=1))
    }
    assert len(names) == 9


def test_overrides_are_what_the_notes_say():
    asked = replace(REQUEST, overrides=("recipe.epochs=2",))
    made = experiment.build(asked, VARIANTS[0])
    assert "2 epochs and 2 epochs" in made.notes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), (" 5min ", 300)],
)
def test_budgets_are_read(text: str, seconds: float):
    assert experiment.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "0m", "-5m", "half an hour"])
def test_other_budgets_are_refused(text: str):
    with pytest.raises(UserError, match="cannot be read"):
        experiment.seconds_of(text)


TIMES = {"quick": 240.0, "short": 900.0, "full": 7000.0}


@pytest.mark.parametrize(
    ("budget", "name"),
    [(None, "short"), (240, "quick"), (899, "quick"), (1800, "short"), (7000, "full")],
)
def test_the_longest_variant_that_fits_is_taken(budget: float | None, name: str):
    assert experiment.longest(TIMES, budget) == name


def test_a_budget_too_small_is_refused_with_the_shortest_time():
    with pytest.raises(UserError, match="quick, takes about 4 min") as caught:
        experiment.longest(TIMES, 60)
    assert "--budget 5m" in caught.value.hint


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (42, "42 s"), (600, "10 min"), (7500, "2 h 05 min")]
)
def test_durations_as_people_say_them(seconds: float, text: str):
    assert experiment.duration(seconds) == text

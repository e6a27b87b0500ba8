"""Find out everything about a trial before it runs: the data, the model, its rival, the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparse_transfer import (
    config,
    data,
    estimate,
    expansion,
    experiment_file,
    models,
    plan,
    plugins,
    store,
)
from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.model_source import resolve
from sparse_transfer.statistics.intervals import wilson_interval
from sparse_transfer.trial import experiment, folder, smaller

NO_SMALLER = "none"
WIDE = 0.1  # half-width of an interval of an error share that is worth a note


@dataclass(frozen=True)
class Forecast:
    """One variant with its plan and its time on this machine, in seconds by run id."""

    variant: experiment.Variant
    experiment: config.Experiment
    plan: plan.Plan
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        """Seconds of all runs."""
        return sum(self.seconds.values())

    def rows(self) -> dict[str, float]:
        """Seconds by row, in the order of the answer."""
        arms = self.plan.arms
        runs = [
            (arm, run.subject.method, self.seconds[run.id])
            for arm, runs in arms.items()
            for run in runs
        ]
        answer = self.experiment.answer
        return experiment.times_by_row(runs, [row.title for row in answer.rows] if answer else ())


@dataclass(frozen=True)
class Choice:
    """The variant to run.

    Attributes:
        forecast: of it.
        notes: what to know of the choice, one sentence each.
        memory: the file that remembers it once it runs; None if nothing is to be remembered.
    """

    forecast: Forecast
    notes: tuple[str, ...] = ()
    memory: Path | None = None

    def remember(self) -> None:
        """Keep to this variant from now on, whatever the machine's speed is then."""
        if self.memory is not None:
            store.write_json(self.memory, {"variant": self.forecast.variant.name})


def request(
    *,
    model: config.ModelSpec,
    given: str,
    sparsity: float,
    image_size: int | None,
    rival: str,
    rival_weights: str,
    seed: int,
    overrides: Sequence[str],
    data_root: Path | None,
    runs: Path,
    cache: Path,
) -> experiment.Request:
    """Look at the folder, load the model once, choose a smaller one.

    Args:
        given: the folder or card, as the user wrote it.
        rival: a smaller model's name, `none`, or "" for the nearest of the family.

    Raises:
        UserError: anything of it cannot be used.
    """
    if not 0 < sparsity < 1:
        percent = f"Write --sparsity {sparsity / 100:g} for {sparsity:g} %."
        raise UserError(
            f"--sparsity {sparsity:g} is outside (0, 1).",
            "It is a share: 0.9 prunes nine of ten.",
            percent if 1 < sparsity < 100 else "",
        )
    found = folder.look(given, runs / "try")
    ref = config.TaskRef(name=found.task, validation=found.validation)
    task = data.open_task(ref, data_root=data_root, cache=cache)
    source = resolve(model)
    natural = (source.config | source.overrides)["input_size"][-1]
    own = image_size if image_size is not None else natural
    # weights that cannot be had are said now, not after the first minutes
    models.build(model, num_classes=None, image_size=own, seed=seed)
    return experiment.Request(
        model=model,
        sparsity=sparsity,
        task=found.task,
        validation=found.validation,
        folder=given if found.task == given else Path(given).expanduser().resolve().name,
        train=len(task.train),
        image_size=own,
        fixed_size=image_size is not None or bool(source.config.get("fixed_input_size")),
        seed=seed,
        notes=(*_counts(task), *found.notes),
        overrides=tuple(overrides),
        backends=_backends(),
        **_smaller(model, rival, rival_weights, sparsity, own),
    )


def forecasts(
    asked: experiment.Request, data_root: Path | None, cache: Path
) -> dict[str, Forecast]:
    """Every variant that differs, shortest first, timed on this machine for some seconds."""
    found: dict[str, Forecast] = {}
    speeds: dict[str, Any] = {}
    for variant in experiment.distinct(asked):
        made = experiment.build(asked, variant)
        planned = expansion.make(made, lambda ref: data.split_hash(ref, data_root, cache))
        seconds, _ = estimate.estimate(planned, data_root, cache, speeds)
        found[variant.name] = Forecast(variant, made, planned, seconds)
    return found


def choose(
    asked: experiment.Request,
    made: dict[str, Forecast],
    *,
    budget: float | None,
    wanted: str | None,
    runs: Path,
) -> Choice:
    """The variant to run: the one asked for, else the longest that fits the budget.

    A variant that this question began with in `runs` is gone on with, though it may exceed the
    budget by today's speed; a note says so then. Nothing is written before `Choice.remember`.

    Raises:
        UserError: no such variant, or none fits.
    """
    if wanted is not None:
        if wanted not in made:
            raise unknown_name("variant", wanted, made)
        return Choice(made[wanted])
    told = asdict(asked) | {"model": asked.model.model_dump(mode="json"), "budget": budget}
    told["smaller"] = asked.smaller and asked.smaller.model_dump(mode="json")
    file = runs / "try" / f"{store.digest({**told, 'notes': None})[:16]}.json"
    if file.is_file() and (name := store.read_json(file)["variant"]) in made:
        return Choice(made[name], _excess(made[name], budget))
    name = experiment.longest({key: one.total for key, one in made.items()}, budget)
    return Choice(made[name], memory=file)


def _excess(begun: Forecast, budget: float | None) -> tuple[str, ...]:
    if budget is None or begun.total <= budget:
        return ()
    name = begun.variant.name
    return (
        f"`{name}` was begun under this budget of {experiment.duration(budget)} and is gone on "
        f"with. From the start it takes more now, about {experiment.duration(begun.total)}; "
        "--variant chooses another one.",
    )


def _counts(task: data.Task) -> tuple[str, ...]:
    parts = {"training": task.train, "validation": task.validation, "test": task.test}
    counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
    said = (f"{len(task.classes)} classes; images: {counts}.",)
    return (*said, *_few(len(task.test)))


def _few(images: int) -> tuple[str, ...]:
    """A note where test images are so few that an answer may say nothing."""
    share = wilson_interval(images // 2, images)  # half of them wrong: the widest
    half = (share.high - share.low) / 2
    if half <= WIDE:
        return ()
    only = f"Only {images} test image{'s' * (images != 1)}"
    return (f"{only}: the interval of an error will be about ± {100 * half:.0f} points.",)


def _smaller(
    model: config.ModelSpec, rival: str, weights: str, sparsity: float, image_size: int
) -> dict[str, Any]:
    if rival == NO_SMALLER:
        return {"smaller": None, "no_smaller": "not wanted"}
    recipe = experiment_file.load_recipe("try")
    assert isinstance(recipe, config.Recipe)
    choice = (
        smaller.named(rival, weights, model, image_size)
        if rival
        else smaller.nearest(model, sparsity, recipe.keep_dense, image_size)
    )
    return {"smaller": choice.model, "no_smaller": choice.reason}


def _backends() -> tuple[str, ...]:
    names = experiment.BACKENDS
    return tuple(name for name in names if plugins.load("backend", name)().available() is None)

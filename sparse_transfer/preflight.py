"""Everything that can be known to be wrong with an experiment before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sparse_transfer import (
    checkpoint,
    config,
    data,
    lineage,
    loop,
    method_options,
    models,
    plugins,
    weights,
)
from sparse_transfer.backends import needs_images
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.driver import averages, events_of
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.method import AbstractMethod
from sparse_transfer.pruning.structured.driver import check_structured, check_unmasked
from sparse_transfer.pruning.structured.graph import ChannelGraph, trace
from sparse_transfer.pruning.structured.method import AbstractStructuredMethod
from sparse_transfer.stages.evaluate import check_head

Problem = tuple[str, UserError]


def check(experiment: config.Experiment, data_root: Path | None, cache: Path) -> list[Problem]:
    """Every problem with where it is: data, models, methods, schedules, backends. Runs nothing."""
    try:
        experiment = _followed(experiment)
    except UserError as error:
        return [("arms", error)]
    arms = {arm.name: list(_arm(arm, data_root, cache)) for arm in experiment.arms}
    return _merged(arms)


def _merged(arms: dict[str, list[Problem]]) -> list[Problem]:
    """Each problem once, however many arms have it."""
    names: dict[tuple[str, str], list[str]] = {}
    errors: dict[tuple[str, str], UserError] = {}
    for arm, problems in arms.items():
        for where, error in problems:
            key = (where.removeprefix(arm), str(error))
            errors.setdefault(key, error)
            if arm not in names.setdefault(key, []):
                names[key].append(arm)
    return [
        (("every arm" if 1 < len(arms) == len(names[key]) else ", ".join(names[key])) + key[0], one)
        for key, one in errors.items()
    ]


def methods(experiment: config.Experiment, data_root: Path | None, cache: Path) -> list[Problem]:
    """What `check` finds in names of backends, and in methods, recipes and targets where models and
    upstream data are here.

    What is not here is left out of a run and reported; these are errors of the experiment.
    """
    found: list[Problem] = []
    try:
        experiment = _followed(experiment)
    except UserError as error:
        return [("arms", error)]
    for arm in experiment.arms:
        found += _misnamed(arm)
        upstream = None
        if arm.upstream.task is not None:
            try:
                upstream = data.open_task(arm.upstream.task, data_root=data_root, cache=cache)
            except UserError:
                continue
        for spec in arm.upstream.models:
            found += _methods(arm, spec, upstream, with_models=False)
    return list({(where, str(error)): (where, error) for where, error in found}.values())


def describe(experiment: config.Experiment) -> Iterator[str]:
    """What the names of an experiment stand for here: the resolved models, where each task is."""
    for arm in lineage.with_origins(experiment).arms:
        for spec in arm.upstream.models:
            try:
                size = arm.upstream.preprocess.image_size
                loaded = models.skeleton(spec, num_classes=None, image_size=size)
            except UserError:
                continue
            yield f"{arm.name}: model {spec.name} is {loaded.title}"


def _followed(experiment: config.Experiment) -> config.Experiment:
    """Checkpoints of earlier arms as the models that they began as, whose shapes they have.

    An arm that begins with one may learn from it: its classifier was trained on the task before.
    """
    arms = [
        arm.model_copy(update={"recipe": arm.recipe.model_copy(update={"distillation": None})})
        if any(lineage.is_made_here(model) for model in arm.upstream.models)
        else arm
        for arm in experiment.arms
    ]
    return lineage.with_origins(experiment.model_copy(update={"arms": tuple(arms)}))


def _arm(arm: config.Arm, data_root: Path | None, cache: Path) -> Iterator[Problem]:
    refs = [arm.upstream.task] if arm.upstream.task else []
    opened: dict[config.TaskRef, data.Task] = {}
    downstream = arm.transfer.tasks if arm.transfer else ()
    for ref in dict.fromkeys([*refs, *arm.upstream.evaluate, *downstream]):
        try:
            opened[ref] = data.open_task(ref, data_root=data_root, cache=cache)
        except UserError as error:
            yield f"{arm.name}, task {ref.name}", error
    upstream = opened.get(arm.upstream.task) if arm.upstream.task else None
    if arm.prune.recalibrate_bn and upstream:
        wanted, there = arm.prune.recalibrate_bn.images, len(upstream.train)
        if wanted > there:
            yield (
                f"{arm.name}, recalibrate_bn",
                UserError(f"{wanted} images were asked for.", f"The training part has {there}."),
            )
    if all(method.name in plugins.names("pruner") for method in arm.prune.methods):
        try:
            method_options.check_targets(arm)
        except UserError as error:
            yield arm.name, error
    for spec in arm.upstream.models:
        yield from _methods(arm, spec, upstream)
        yield from _heads(arm, spec, upstream, opened)
    downstream = [ref for ref in (arm.transfer.tasks if arm.transfer else ()) if ref in opened]
    for mode, profile in _trainings(arm.transfer) if arm.transfer else ():
        for ref in downstream:
            try:
                loop.check_schedule(profile, loop.total_steps(len(opened[ref].train), profile))
            except UserError as error:
                yield f"{arm.name}, {mode} on {ref.name}", error
    yield from _misnamed(arm)
    known = set(plugins.names("backend"))
    for name in (n for n in (arm.bench.backends if arm.bench else ()) if n in known):
        backend = plugins.load("backend", name)
        reason = backend().available()
        has_images = arm.upstream.task is not None
        if reason is None and not has_images and needs_images(backend):
            reason = "It is calibrated on training images: name a task in `upstream.task`."
        if reason is not None:
            yield f"{arm.name}, bench", UserError(f"Backend {name} is not available.", reason)


def _misnamed(arm: config.Arm) -> Iterator[Problem]:
    """Backends that do not exist."""
    for name in arm.bench.backends if arm.bench else ():
        try:
            plugins.path("backend", name)
        except UserError as error:
            yield f"{arm.name}, bench", error


def _heads(
    arm: config.Arm,
    spec: config.ModelSpec,
    upstream: data.Task | None,
    opened: Mapping[config.TaskRef, data.Task],
) -> Iterator[Problem]:
    """Whether the models that are scored on further test sets will have their classes."""
    trains = bool(arm.recipe.steps or arm.recipe.epochs)
    for model in (spec, *(method.model for method in arm.prune.methods if method.model)):
        if model.weights not in ("pretrained", "random"):
            continue  # the head is the file's own; the run itself says if it does not fit
        takes_classes = upstream is not None and (trains or model.weights == "random")
        classes = len(upstream.classes) if upstream is not None and takes_classes else None
        try:
            loaded = models.skeleton(model, num_classes=classes, image_size=None)
        except UserError:
            continue  # said where the model itself is checked
        for ref in arm.upstream.evaluate:
            try:
                if ref in opened:
                    outputs = models.model_classes(loaded.model)
                    check_head(outputs, ref.name, len(opened[ref].classes))
            except UserError as error:
                yield f"{arm.name}, evaluate {model.title}", error


def _trainings(transfer: config.Transfer) -> Iterator[tuple[str, config.Training]]:
    """The modes that train by steps, with their profiles."""
    if transfer.online and "linear-online" in transfer.modes:
        yield "linear-online", transfer.online
    if transfer.full and "full" in transfer.modes:
        yield "full", transfer.full


def _methods(
    arm: config.Arm, spec: config.ModelSpec, upstream: data.Task | None, with_models: bool = True
) -> Iterator[Problem]:
    classes = len(upstream.classes) if upstream else None
    images = len(upstream.train) if upstream else 0
    # without its images the length of a training in epochs is not known
    knows_steps = upstream is not None or arm.upstream.task is None or arm.recipe.steps is not None
    steps = loop.total_steps(images, arm.recipe) if knows_steps else 0
    size = arm.upstream.preprocess.image_size
    try:
        loop.check_schedule(arm.recipe, steps)
    except UserError as error:
        yield f"{arm.name}, recipe", error
    dense = config.MethodSpec(name="dense")
    found: dict[str, _Skeleton] = {}
    for method in (*([dense] if arm.prune.dense else []), *arm.prune.methods):
        model, where = method.model or spec, f"{arm.name}, {method.title}"
        key = model.model_dump_json()
        try:
            options = method_options.options_of(method)
        except UserError as error:
            yield where, error
            continue
        try:
            weights.content_hash(model)
            if key not in found:
                loaded = models.skeleton(model, num_classes=classes, image_size=size)
                if method.name != "given":  # verified against its checkpoint when it is opened
                    prunable(loaded.model, arm.recipe.keep_dense)
                found[key] = _Skeleton(loaded.model, arm.recipe.keep_dense, size, model)
        except UserError as error:
            if with_models:
                yield f"{arm.name}, model {model.title}", error
            continue
        if method.name == "given" or not knows_steps:
            continue
        has_images = arm.upstream.task is not None
        loaded_method = plugins.load("pruner", method.name)(options)
        try:
            if arm.recipe.distillation is not None and classes is not None:
                models.check_teacher(model, classes)
        except UserError as error:
            yield where, error
        for sparsity in arm.prune.sparsities if loaded_method.has_target else (0.0,):
            try:
                found[key].check(loaded_method, sparsity, steps, has_images, arm.recipe)
            except UserError as error:
                yield f"{where} at {sparsity:g}" if loaded_method.has_target else where, error


class _Skeleton:
    """A model without weights, and what methods ask of it."""

    def __init__(
        self, model: nn.Module, keep_dense: tuple[str, ...], size: int, spec: config.ModelSpec
    ) -> None:
        self._model, self._keep_dense, self._size = model, keep_dense, size
        self._kept = checkpoint.kept_weights(spec)  # by layer; None for a dense model
        self._graph: ChannelGraph | None = None

    def check(
        self,
        method: AbstractMethod[Any] | AbstractStructuredMethod[Any],
        sparsity: float,
        steps: int,
        has_images: bool,
        recipe: config.Recipe,
    ) -> None:
        """Raise what is wrong with a method at a sparsity."""
        if isinstance(method, AbstractStructuredMethod):
            check_unmasked(method.name, self._kept is not None)
            check_structured(
                method,
                sparsity=sparsity,
                model=self._model,
                keep_dense=self._keep_dense,
                image_size=self._size,
                total_steps=steps,
                has_images=has_images,
                traced=self._trace,
            )
            return
        names = prunable(self._model, self._keep_dense) if self._kept is None else self._kept
        events = events_of(
            method,
            sparsity=sparsity,
            shapes={name: tuple(self._model.get_parameter(name).shape) for name in names},
            total_steps=steps,
            has_images=has_images,
            active=None if self._kept is None else sum(self._kept.values()),
        )
        loop.check_average(recipe, averages(method, events))

    def _trace(self) -> ChannelGraph:
        if self._graph is None:
            self._graph = trace(self._model, image_size=self._size, keep_dense=self._keep_dense)
        return self._graph

"""Everything that can be known to be wrong with an experiment before it runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sparse_transfer import config, data, loop, models, plan, plugins, weights
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.driver import events_of
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.structured.driver import check_structured

Problem = tuple[str, UserError]


def check(experiment: config.Experiment, data_root: Path | None, cache: Path) -> list[Problem]:
    """Every problem with where it is: data, models, methods, schedules, backends. Runs nothing."""
    found = [problem for arm in experiment.arms for problem in _arm(arm, data_root, cache)]
    return list({(where, str(error)): (where, error) for where, error in found}.values())


def describe(experiment: config.Experiment) -> Iterator[str]:
    """What the names of an experiment stand for here: the resolved models, where each task is."""
    for arm in experiment.arms:
        for spec in arm.upstream.models:
            try:
                size = arm.upstream.preprocess.image_size
                loaded = models.skeleton(spec, num_classes=None, image_size=size)
            except UserError:
                continue
            yield f"{arm.name}: model {spec.name} is {loaded.title}"


def _arm(arm: config.Arm, data_root: Path | None, cache: Path) -> Iterator[Problem]:
    refs = [arm.upstream.task] if arm.upstream.task else []
    opened: dict[config.TaskRef, data.Task] = {}
    for ref in dict.fromkeys([*refs, *(arm.transfer.tasks if arm.transfer else ())]):
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
    for spec in arm.upstream.models:
        yield from _methods(arm, spec, upstream)
    for name in arm.bench.backends if arm.bench else ():
        try:
            reason = plugins.load("backend", name)().available()
        except UserError as error:
            yield f"{arm.name}, bench", error
            continue
        if reason is not None:
            yield f"{arm.name}, bench", UserError(f"Backend {name} is not available.", reason)


def _methods(
    arm: config.Arm, spec: config.ModelSpec, upstream: data.Task | None
) -> Iterator[Problem]:
    classes = len(upstream.classes) if upstream else None
    images = len(upstream.train) if upstream else 0
    # without its images the length of a training in epochs is not known
    knows_steps = upstream is not None or arm.upstream.task is None or arm.recipe.steps is not None
    steps = loop.total_steps(images, arm.recipe) if knows_steps else 0
    dense = config.MethodSpec(name="dense")
    for method in (*([dense] if arm.prune.dense else []), *arm.prune.methods):
        model, where = method.model or spec, f"{arm.name}, {method.title}"
        try:
            options = plan.options_of(method)
        except UserError as error:
            yield where, error
            continue
        try:
            weights.content_hash(model)
            loaded = models.skeleton(
                model, num_classes=classes, image_size=arm.upstream.preprocess.image_size
            )
            if method.name == "given":
                continue  # verified against its checkpoint when it is opened
            layers = prunable(loaded.model, arm.recipe.keep_dense)
        except UserError as error:
            yield f"{arm.name}, model {model.title}", error
            continue
        plugin = plugins.load("pruner", method.name)
        for sparsity in arm.prune.sparsities if plugin.has_target and knows_steps else ():
            try:
                if plugin.removes_channels:
                    check_structured(
                        plugin(options),
                        sparsity=sparsity,
                        model=loaded.model,
                        keep_dense=arm.recipe.keep_dense,
                        image_size=arm.upstream.preprocess.image_size,
                        total_steps=steps,
                        has_images=arm.upstream.task is not None,
                    )
                    continue
                events = events_of(
                    plugin(options),
                    sparsity=sparsity,
                    shapes={name: tuple(layer.shape) for name, layer in layers.items()},
                    total_steps=steps,
                    has_images=arm.upstream.task is not None,
                )
                rewinds = {t: e.rewinds_to for t, e in events.items() if e.rewinds_to is not None}
                loop.check_average(arm.recipe, rewinds)
            except UserError as error:
                yield f"{where} at {sparsity:g}", error

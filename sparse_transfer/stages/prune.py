"""Prune: train an upstream model while a method prunes it, score it, keep the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from sparse_transfer import (
    batchnorm,
    checkpoint,
    config,
    cost,
    data,
    inputs,
    loop,
    method_options,
    models,
    plan,
    plugins,
)
from sparse_transfer.distillation import Distillation
from sparse_transfer.errors import UserError
from sparse_transfer.images import Images
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.structured.driver import StructuredPruner
from sparse_transfer.pruning.structured.shrink import ShrinkPlan
from sparse_transfer.seeds import derive
from sparse_transfer.stages import keeper, scoring
from sparse_transfer.stages.context import Context
from sparse_transfer.weights import LOCAL_DIR

log = logging.getLogger(__name__)


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Make one upstream checkpoint; see `PruneSpec`. Returns what `result.json` holds."""
    spec = run.spec
    assert isinstance(spec, plan.PruneSpec)
    if "model" in parents:  # the checkpoint of an earlier arm
        made = spec.model.model_copy(update={"name": f"{LOCAL_DIR}{parents['model']}/checkpoint"})
        spec = replace(spec, model=made)
    task = (
        data.open_task(spec.task, data_root=context.data_root, cache=context.cache)
        if spec.task
        else None
    )
    trains = bool(spec.recipe.steps or spec.recipe.epochs)
    # A trained or random head takes the task's classes; one that is only pruned keeps its own.
    takes_classes = task is not None and (trains or spec.model.weights == "random")
    loaded, given, removed = _load(spec, len(task.classes) if task and takes_classes else None)
    model = loaded.model.to(context.accelerator.device)
    transform = inputs.transform(spec.preprocess, loaded, task, context.cache)
    pruned = _prune(spec, model, given, task, transform, out, context)
    facts: dict[str, Any] = {"rows": []}
    if task is not None:
        facts = _scores(spec, model, task, transform, out, context)
    # a checkpoint that is taken as it is stands where its pruning left it
    measured = pruned.summary["measured_sparsity"] or removed
    summary = pruned.summary | {"measured_sparsity": measured}
    bytes_ = cost.sizes(model, pruned.masks)
    for row in facts["rows"]:
        row |= {"measured_sparsity": measured, "bytes": bytes_.dense, "packed": bytes_.packed}
    size = spec.preprocess.image_size
    loaded = models.with_transform(
        loaded,
        mean=transform.mean,
        std=transform.std,
        interpolation=transform.interpolation,
        input_size=(3, size, size),
        crop_pct=_crop_share(spec.preprocess),
        crop_mode="center" if spec.preprocess.crop == "center" else "squash",
    )
    known = loaded.trained_on  # of the checkpoint that this one is made from
    if task is not None and trains:
        known = models.trained_on(task.card.name, task.classes)
    record = {
        "model": run.subject.model,
        "method": run.subject.method,
        "sparsity": spec.sparsity,
        "upstream_seed": spec.seed,
        "recipe": spec.recipe.name,
        "run": run.id,
        "summary": summary,
        **({"trained_on": dict(known)} if known else {}),
        **checkpoint.imported(spec.model),
    }
    if context.accelerator.is_main_process:
        checkpoint.save(
            out / "checkpoint", loaded, model, pruned.masks, record, shrink=pruned.shrinking
        )
    macs = cost.macs(model, size, pruned.masks)
    return {
        **facts,
        "measured_sparsity": measured,
        "summary": summary,
        "macs": macs.sparse,
        "macs_dense": pruned.summary.get("macs_dense", macs.dense),
        "layers": cost.layer_facts(model, pruned.masks),
        "training": pruned.training,
        "manifest": {
            "model_title": loaded.title,
            "mask_hash": pruned.summary["digest"],
            "dtype": spec.recipe.precision,
            "seeds": {"upstream": spec.seed},
            "transform": transform.facts(),
            "split_hash": task.split_hash if task else None,
        },
    }


def _scores(
    spec: plan.PruneSpec,
    model: nn.Module,
    task: data.Task,
    transform: inputs.Transform,
    out: Path,
    context: Context,
) -> dict[str, Any]:
    """Recalibrate batch norm if asked for, and score: test rows, and facts beside them."""
    facts: dict[str, Any] = {}
    precision = spec.recipe.precision

    def score(images: Images, name: str, mode: str) -> dict[str, Any]:
        return scoring.score(
            model, images, task, out, name, mode=mode, precision=precision, context=context
        )

    images = transform.images(task.test, context.cache)
    comparable = models.model_classes(model) == len(task.classes)
    if not comparable:
        log.warning(
            "    not scored upstream: the model tells %d classes apart, task %s has %d",
            models.model_classes(model),
            task.card.name,
            len(task.classes),
        )
    if spec.recalibrate_bn is not None and batchnorm.has_statistics(model):
        if comparable:
            raw = score(images, "upstream-raw", "raw")
            facts["raw"] = f"{raw['metrics'][raw['metric']]['value']:.4f}"
            facts["raw_metrics"] = raw["metrics"]
        batchnorm.recalibrate(
            model,
            transform.images(task.train, context.cache),
            count=spec.recalibrate_bn.images,
            seed=derive(spec.seed, "calibration"),
            accelerator=context.accelerator,
        )
    if not comparable:
        return {**facts, "rows": [], "skipped": {task.card.name: dict(task.skipped)}}
    facts["rows"] = [score(images, "upstream", "upstream")]
    if len(task.validation):
        part = transform.images(task.validation, context.cache)
        held_out = score(part, "validation", "validation")
        facts["validation_metrics"] = held_out["metrics"]
        facts["rows"][0]["validation_top1"] = held_out["metrics"]["top1"]["value"]
    facts["skipped"] = {task.card.name: dict(task.skipped)}
    return facts


def _crop_share(preprocess: config.Preprocess) -> float:
    """timm's crop_pct: the crop's side over the shorter side that it is cut from."""
    if preprocess.crop == "none":
        return 1.0
    return preprocess.image_size / preprocess.shorter_side


@dataclass(frozen=True)
class _Pruned:
    """What pruning left: masks, the method's summary, facts of the training, removed channels."""

    masks: Masks | None
    summary: dict[str, Any]
    training: dict[str, Any]
    shrinking: ShrinkPlan | None


def _load(
    spec: plan.PruneSpec, num_classes: int | None
) -> tuple[models.LoadedModel, Masks | None, float]:
    """The model, the mask of a checkpoint of ours that it is loaded from, and what it lost before.

    The last is the share of MACs that a structured method removed from the checkpoint.
    """
    loaded = models.build(
        spec.model,
        num_classes=num_classes,
        image_size=spec.preprocess.image_size,
        seed=spec.seed,
    )
    log.info("    model: %s", loaded.title)
    folder = Path(spec.model.name.removeprefix(LOCAL_DIR))
    ours = spec.model.name.startswith(LOCAL_DIR) and (folder / checkpoint.RECORD).is_file()
    opened = checkpoint.open_checkpoint(folder) if ours else None
    given = opened.masks if opened is not None else None
    if opened is not None and spec.model.weights == "pretrained":
        loaded = replace(loaded, trained_on=opened.loaded.trained_on)
    removed = 0.0
    if opened is not None and opened.loaded.shrink is not None and given is None:
        removed = float(opened.facts.get("summary", {}).get("measured_sparsity") or 0.0)
    if given is not None and spec.method.name == "dense":
        raise UserError(
            f"{folder} is not a dense model.",
            f"Its mask leaves out {given.sparsity():.4f} of its prunable weights: it cannot be the "
            "dense reference.",
            "Give the dense checkpoint, or set prune.dense=false.",
        )
    return loaded, given, removed


def _prune(
    spec: plan.PruneSpec,
    model: nn.Module,
    given: Masks | None,
    task: data.Task | None,
    transform: inputs.Transform,
    out: Path,
    context: Context,
) -> _Pruned:
    """Train under the recipe while the method prunes; without training, prune at once."""
    recipe, world = spec.recipe, context.accelerator.num_processes
    method = plugins.load("pruner", spec.method.name)(method_options.options_of(spec.method))
    trains = task is not None and bool(recipe.steps or recipe.epochs)
    images, total, per_epoch = None, 0, 0
    if task is not None and (trains or method.needs_images):
        usable = transform.images(task.train, context.cache, recipe.augment)
        images = inputs.AugmentedImages(usable, spec.seed)
    if images is not None and trains:
        smallest = loop.smallest_batch(model, world)
        total = loop.total_steps(len(images), recipe, smallest)
        per_epoch = loop.steps_per_epoch(len(images), recipe, smallest)
    teacher = _teacher(spec, model)  # before anything is put around its weights
    pruner = keeper.make(method, spec, model, given, images, total, per_epoch, context)
    training: dict[str, Any] = {}
    if images is not None and trains:
        trained = loop.train(
            model,
            images,
            recipe,
            keeper=pruner,
            seed=spec.seed,
            accelerator=context.accelerator,
            resume=out,
            progress=lambda done, total: context.progress.update("steps", done, total),
            distillation=teacher,
            restart_on_prune=recipe.lr_restarts == "prune",
        )
        training = {
            "losses": list(trained.losses),
            "warnings": list(trained.warnings),
            "steps": total,
        }
    else:
        pruner.start()
        pruner.finish()
    model.eval()
    shrinking = pruner.shrinking if isinstance(pruner, StructuredPruner) else None
    return _Pruned(pruner.masks, pruner.summary(), training, shrinking)


def _teacher(spec: plan.PruneSpec, model: nn.Module) -> Distillation | None:
    """The model as it was loaded, for recipes that distil; the dense row learns from it too."""
    settings = spec.recipe.distillation
    if settings is None:
        return None
    models.check_teacher(spec.model, models.model_classes(model))
    return Distillation(model, settings)

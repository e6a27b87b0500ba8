"""Prune: train an upstream model while a method prunes it, score it, keep the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparse_transfer import (
    batchnorm,
    checkpoint,
    config,
    cost,
    data,
    evaluation,
    features,
    inputs,
    loop,
    models,
    plan,
    plugins,
)
from sparse_transfer.images import Images
from sparse_transfer.pruning.driver import Pruner
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.seeds import derive
from sparse_transfer.stages.context import Context

log = logging.getLogger(__name__)

_EVALUATION_BATCH = 128


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Make one upstream checkpoint; see `PruneSpec`. Returns what `result.json` holds."""
    spec = run.spec
    assert isinstance(spec, plan.PruneSpec)
    task = (
        data.open_task(spec.task, data_root=context.data_root, cache=context.cache)
        if spec.task
        else None
    )
    loaded, given = _load(spec, len(task.classes) if task else None)
    model = loaded.model.to(context.accelerator.device)
    transform = inputs.transform(spec.preprocess, loaded, task, context.cache)
    masks = _prune(spec, loaded, model, given, task, transform, run, out, context)
    pruner_summary = masks.summary
    rows, facts = [], {}
    if task is not None:
        images = transform.images(task.test, context.cache)
        raw = None
        if spec.recalibrate_bn is not None and batchnorm.has_statistics(model):
            raw = _score(model, images, task, out, "upstream-raw", "raw", spec, context)
            calibration = transform.images(task.train, context.cache)
            batchnorm.recalibrate(
                model,
                calibration,
                count=spec.recalibrate_bn.images,
                seed=derive(spec.seed, "calibration"),
                accelerator=context.accelerator,
            )
        row = _score(model, images, task, out, "upstream", "upstream", spec, context)
        rows.append(row)
        if raw is not None:
            value = raw["metrics"][raw["metric"]]["value"]
            facts["raw"] = f"{value:.4f}"
            facts["raw_metrics"] = raw["metrics"]
        if len(task.validation):
            part = transform.images(task.validation, context.cache)
            held_out = _score(model, part, task, out, "validation", "validation", spec, context)
            facts["validation_metrics"] = held_out["metrics"]
        facts["skipped"] = {task.card.name: dict(task.skipped)}
    macs = cost.macs(model, spec.preprocess.image_size, masks.masks)
    measured = pruner_summary["measured_sparsity"]
    for row in rows:
        row["measured_sparsity"] = measured
    record = {
        "model": run.subject.model,
        "method": run.subject.method,
        "sparsity": spec.sparsity,
        "upstream_seed": spec.seed,
        "image_size": spec.preprocess.image_size,
        "recipe": spec.recipe.name,
        "run": run.id,
        "summary": pruner_summary,
    }
    loaded = models.with_transform(
        loaded,
        mean=transform.mean,
        std=transform.std,
        interpolation=transform.interpolation,
        input_size=(3, spec.preprocess.image_size, spec.preprocess.image_size),
        crop_pct=_crop_share(spec.preprocess),
        crop_mode="center" if spec.preprocess.crop == "center" else "squash",
    )
    if context.accelerator.is_main_process:
        checkpoint.save(out / "checkpoint", loaded, model, masks.masks, record)
    return {
        "rows": rows,
        "measured_sparsity": measured,
        "summary": pruner_summary,
        "macs": macs.sparse,
        "macs_dense": macs.dense,
        "layers": cost.layer_facts(model, masks.masks),
        "training": masks.training,
        **facts,
        "manifest": {
            "model_title": loaded.title,
            "mask_hash": pruner_summary["digest"],
            "dtype": spec.recipe.precision,
            "seeds": {"upstream": spec.seed},
            "transform": transform.facts(),
            "split_hash": task.split_hash if task else None,
        },
    }


def _crop_share(preprocess: config.Preprocess) -> float:
    """timm's crop_pct: the crop's side over the shorter side that it is cut from."""
    if preprocess.crop == "none":
        return 1.0
    return preprocess.image_size / preprocess.shorter_side


class _Pruned:
    """What pruning left: masks, the method's summary, facts of the training."""

    def __init__(
        self, masks: Masks | None, summary: dict[str, Any], training: dict[str, Any]
    ) -> None:
        self.masks, self.summary, self.training = masks, summary, training


def _load(spec: plan.PruneSpec, num_classes: int | None) -> tuple[models.LoadedModel, Masks | None]:
    """The model, and the mask of a checkpoint of ours that it is loaded from."""
    loaded = models.build(
        spec.model,
        num_classes=num_classes,
        image_size=spec.preprocess.image_size,
        seed=spec.seed,
    )
    log.info("    model: %s", loaded.title)
    given = None
    if loaded.declared_sparse:
        given = checkpoint.open_checkpoint(spec.model.name.removeprefix("local-dir:")).masks
    return loaded, given


def _prune(
    spec: plan.PruneSpec,
    loaded: models.LoadedModel,
    model: nn.Module,
    given: Masks | None,
    task: data.Task | None,
    transform: inputs.Transform,
    run: plan.Run,
    out: Path,
    context: Context,
) -> _Pruned:
    if given is None:
        layers = prunable(model, spec.recipe.keep_dense)
    else:
        layers = {name: model.get_parameter(name) for name in given}
    method = plugins.load("pruner", spec.method.name)(plan.options_of(spec.method))
    training: config.Training = spec.recipe
    trains = bool(training.steps or training.epochs)
    n = len(task.train) if task is not None else 0
    smallest = loop.smallest_batch(model, context.accelerator.num_processes)
    total = loop.total_steps(n, training, smallest) if trains else 0
    pruner = Pruner(
        model,
        method=method,
        sparsity=spec.sparsity,
        layers=layers,
        total_steps=total,
        steps_per_epoch=loop.steps_per_epoch(n, training, smallest) if trains else 0,
        seed=spec.seed,
        masks=given,
    )
    facts: dict[str, Any] = {}
    if trains and task is not None:
        trained = loop.train(
            model,
            inputs.AugmentedImages(
                transform.images(task.train, context.cache, training.augment), spec.seed
            ),
            training,
            keeper=pruner,
            seed=spec.seed,
            accelerator=context.accelerator,
            resume=out,
            progress=lambda done, total: context.progress.update("steps", done, total),
        )
        facts = {"losses": list(trained.losses), "warnings": list(trained.warnings), "steps": total}
    else:
        pruner.start()
        pruner.finish()
    model.eval()
    return _Pruned(pruner.masks, pruner.summary(), facts)


def _score(
    model: nn.Module,
    images: Images,
    task: data.Task,
    out: Path,
    name: str,
    mode: str,
    spec: plan.PruneSpec,
    context: Context,
) -> dict[str, Any]:
    logits = features.logits(
        model,
        images,
        accelerator=context.accelerator,
        batch_size=_EVALUATION_BATCH,
        precision=spec.recipe.precision if torch.cuda.is_available() else "fp32",
    )
    return evaluation.row(
        out,
        name,
        ids=images.ids,
        labels=np.asarray(images.labels),
        logits=logits,
        classes=len(task.classes),
        write=context.accelerator.is_main_process,
        task=task.card.name,
        metric=task.card.metric,
        mode=mode,
        transfer_seed=None,
        profile="",
        image_size=spec.preprocess.image_size,
        split_hash=task.split_hash,
    )

"""Full: fine-tune a checkpoint on one task with its mask held fixed and a new dense classifier.

Source of the profile `paper-full`: arXiv 2111.13445, sections 2 and 7 of its protocol as the
study's code runs it.
"""

from __future__ import annotations

import json
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
    data,
    engines,
    evaluation,
    features,
    inputs,
    loop,
    models,
    plan,
    resume,
)
from sparse_transfer.calibration import Temperature, fit_temperature
from sparse_transfer.errors import UserError
from sparse_transfer.images import Images
from sparse_transfer.pruning.driver import FixedMask
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.seeds import derive
from sparse_transfer.sparse.training import TrainingModel, convert_for_training
from sparse_transfer.stages.context import Context
from sparse_transfer.store import read_json

_EVALUATION_BATCH = 128


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Fine-tune on the whole training part and score the last epoch on test; see `FullSpec`."""
    spec = run.spec
    assert isinstance(spec, plan.FullSpec)
    task = data.open_task(spec.task, data_root=context.data_root, cache=context.cache)
    lr = _learning_rate(spec.profile, task, parents)
    held_out = task.validation if spec.calibrate and len(task.validation) else None
    folder = parents["checkpoint"] / "checkpoint"
    tuned = fine_tune(
        folder, task, task.train, task.test, spec, lr, out, context, held_out=held_out
    )
    row = evaluation.row(
        out,
        "full",
        ids=tuned["ids"],
        labels=tuned["labels"],
        logits=tuned["logits"],
        classes=len(task.classes),
        write=context.accelerator.is_main_process,
        temperature=held_out_temperature(tuned["held_out"]) if spec.calibrate else None,
        task=task.card.name,
        metric=task.card.metric,
        mode="full",
        transfer_seed=spec.seed,
        profile=spec.profile.name,
        image_size=spec.preprocess.image_size,
        split_hash=task.split_hash,
        measured_sparsity=tuned["measured_sparsity"],
        engine=tuned["training"]["engine"]["name"],
    )
    return {
        "rows": [row],
        "class_names": {task.card.name: list(task.classes)},
        "lr": lr,
        "training": tuned["training"],
        "skipped": {task.card.name: dict(task.skipped)},
        "manifest": {
            "dtype": spec.profile.precision,
            "seeds": {"upstream": run.subject.seed, "transfer": spec.seed},
            "transform": tuned["transform"],
            "split_hash": task.split_hash,
            "mask_hash": tuned["mask"]["digest"],
        },
    }


def fine_tune(
    folder: Path,
    task: data.Task,
    train: data.Split,
    scored: data.Split,
    spec: plan.FullSpec,
    lr: float,
    out: Path | None,
    context: Context,
    *,
    held_out: data.Split | None = None,
) -> dict[str, Any]:
    """Fine-tune the checkpoint in `folder` on `train` and give logits on `scored`.

    Args:
        out: folder of the resume file; None trains without one.
        held_out: images to give logits on, too.

    Returns:
        logits (n, classes), labels, ids; held_out (its logits and labels, or None); and facts of
        mask, transform and training, with the engine that was used and why.

    Raises:
        UserError: the engine that is asked for cannot train this model here.
    """
    profile, accelerator = spec.profile, context.accelerator
    opened = checkpoint.open_checkpoint(folder)
    model = opened.model
    models.new_head(model, len(task.classes), derive(spec.seed, "transfer"))
    model = model.to(accelerator.device)
    transform = inputs.transform(
        spec.preprocess, opened.loaded, task, context.cache, profile, opened.layout
    )
    if profile.bn == "recalibrated" and batchnorm.has_statistics(model):
        still = transform.images(train, context.cache)
        batchnorm.recalibrate(
            model,
            still,
            count=len(still),
            seed=derive(spec.seed, "calibration"),
            accelerator=accelerator,
        )
    masks = _without_head(opened.masks, model)
    keeper = FixedMask(model, masks)
    choice = _engine(model, masks, spec, out, context)
    if choice.name == "sparse":
        model = _converted(model, masks, spec)
        keeper = FixedMask(model, None)  # there is nothing but non-zeros
    trained = loop.train(
        model,
        inputs.AugmentedImages(
            transform.images(train, context.cache, profile.augment), derive(spec.seed, "full")
        ),
        profile,
        keeper=keeper,
        seed=derive(spec.seed, "full"),
        accelerator=accelerator,
        resume=out,
        facts={"engine": json.dumps(choice.facts())},
        progress=lambda done, total: context.progress.update("steps", done, total),
        freeze_bn=profile.bn != "train",
        lr=lr,
    )
    if isinstance(model, TrainingModel):
        model = model.to_dense()
        keeper = FixedMask(model, masks)
        keeper.finish()
    images = transform.images(scored, context.cache)
    held_images = transform.images(held_out, context.cache) if held_out is not None else None
    return {
        "logits": logits_of(model, images, context),
        "labels": np.asarray(images.labels),
        "ids": np.asarray(images.ids),
        "held_out": (logits_of(model, held_images, context), np.asarray(held_images.labels))
        if held_images is not None
        else None,
        "mask": keeper.summary(),
        "measured_sparsity": _measured(opened, keeper),
        "transform": transform.facts(),
        "training": {
            "losses": list(trained.losses),
            "warnings": list(trained.warnings),
            "engine": choice.facts(),
        },
    }


def _engine(
    model: nn.Module,
    masks: Masks | None,
    spec: plan.FullSpec,
    out: Path | None,
    context: Context,
) -> engines.Choice:
    """The engine of this run: of its first start where it goes on, so that its numbers do, too."""
    rule = {
        "image_size": spec.preprocess.image_size,
        "precision": spec.profile.precision,
        "processes": context.accelerator.num_processes,
    }
    device = context.accelerator.device
    began = resume.facts_of(out) if out is not None else None
    if began is None:
        return engines.chosen(spec.profile.engine, model, masks, device, "training", **rule)
    if "engine" not in began:  # saved before there was a choice
        return engines.Choice("dense", "the run began with it")
    assert out is not None
    facts = json.loads(began["engine"])
    choice = engines.Choice(facts["name"], facts["reason"])
    if choice.name == "sparse":
        try:
            engines.chosen("sparse", model, masks, device, "training", **rule)
        except UserError as error:
            raise resume.without_engine(out, error) from error
    return choice


def _converted(model: nn.Module, masks: Masks | None, spec: plan.FullSpec) -> TrainingModel:
    """The model for the sparse engine, its pruned weights exactly zero."""
    assert masks is not None
    masks.apply(model.named_parameters())
    size, channels = spec.preprocess.image_size, getattr(model, "in_chans", 3)
    example = torch.zeros(spec.profile.batch_size, channels, size, size)
    return convert_for_training(model, masks, example)


def logits_of(model: nn.Module, images: Images, context: Context) -> np.ndarray:
    """Logits of a trained model: (n, classes) float32."""
    return features.logits(
        model, images, accelerator=context.accelerator, batch_size=_EVALUATION_BATCH
    )


def held_out_temperature(held_out: tuple[np.ndarray, np.ndarray] | None) -> Temperature | str:
    """The temperature of held-out logits and labels, or why there is none."""
    if held_out is None:
        return "The task holds out no part of its training images (`validation` of the task)."
    return fit_temperature(*held_out)


def _measured(opened: checkpoint.Checkpoint, keeper: FixedMask) -> float:
    """Of the mask that was held; what lost channels and has no mask stands at what it lost."""
    if keeper.masks is None and opened.loaded.shrink is not None:
        return float(opened.facts.get("summary", {}).get("measured_sparsity") or 0.0)
    return keeper.summary()["measured_sparsity"]


def _without_head(masks: Masks | None, model: nn.Module) -> Masks | None:
    """The mask of the backbone: the new classifier is dense, whatever the old one was."""
    if masks is None:
        return None
    head = models.head_name(model)
    kept = {name: mask for name, mask in masks.items() if name not in head}
    return Masks(kept) if kept else None


def _learning_rate(
    profile: config.FullProfile, task: data.Task, parents: Mapping[str, Path]
) -> float:
    if "tune" in parents:
        return float(read_json(parents["tune"] / "result.json")["lr"])
    if profile.card_lr and task.card.paper is not None:
        return task.card.paper.full_lr
    return profile.optimizer.lr

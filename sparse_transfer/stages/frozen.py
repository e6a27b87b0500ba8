"""The frozen features of a checkpoint on a task, extracted once and cached, for the probes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from sparse_transfer import checkpoint, config, data, engines, features, inference, inputs
from sparse_transfer.images import Images
from sparse_transfer.stages.context import Context

_EXTRACTION_BATCH = 128


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of both parts of a task, without augmentation.

    Attributes:
        opened: the checkpoint.
        train, test: (n, d) float32; train_labels, test_labels: (n,) int.
        test_ids: (n,) str.
        seconds: wall time of the extraction, next to nothing where the tables were cached.
        engine: what computes (or computed) them, and why.
    """

    opened: checkpoint.Checkpoint
    task: data.Task
    transform: inputs.Transform
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    test_ids: np.ndarray
    seconds: float
    engine: engines.Choice


def extract(
    folder: Path,
    ref: config.TaskRef,
    preprocess: config.Preprocess,
    profile: config.LinearProfile,
    context: Context,
) -> FrozenFeatures:
    """Open the checkpoint in `folder` and give its features; collective, like `features.cached`.

    Raises:
        UserError: the engine that the profile asks for cannot be used.
    """
    opened = checkpoint.open_checkpoint(folder)
    task = data.open_task(ref, data_root=context.data_root, cache=context.cache)
    transform = inputs.transform(
        preprocess, opened.loaded, task, context.cache, profile, opened.layout
    )
    model = opened.model.to(context.accelerator.device)
    started = time.perf_counter()
    engine = inference.engine(
        profile.engine,
        model,
        opened.masks,
        "features",
        image_size=preprocess.image_size,
        batch_size=_EXTRACTION_BATCH,
        accelerator=context.accelerator,
    )
    train = transform.images(task.train, context.cache)
    train_table = _table(model, train, "train", transform, engine, context)
    test = transform.images(task.test, context.cache)
    test_table = _table(model, test, "test", transform, engine, context)
    return FrozenFeatures(
        opened=opened,
        task=task,
        transform=transform,
        train=train_table,
        train_labels=np.asarray(train.labels),
        test=test_table,
        test_labels=np.asarray(test.labels),
        test_ids=test.ids,
        seconds=time.perf_counter() - started,
        engine=engine.choice,
    )


def _table(
    model: nn.Module,
    images: Images,
    part: str,
    transform: inputs.Transform,
    engine: inference.Engine,
    context: Context,
) -> np.ndarray:
    key = features.key_parts(
        model,
        preprocess=transform.preprocess.model_dump(mode="json")
        | {"interpolation": transform.interpolation},
        mean=transform.mean,
        std=transform.std,
        split_hash=images.key,  # of the very pixels, which a split hash does not see
        part=part,
        images=len(images),
        precision="fp32",
        engine=engine,
    )
    return features.cached(
        key,
        context.cache / "features",
        lambda: features.extract(
            model,
            images,
            accelerator=context.accelerator,
            batch_size=_EXTRACTION_BATCH,
            engine=engine,
        ),
    )

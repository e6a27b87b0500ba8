"""Score a whole model, head and all, on a test part: what `prune` and `evaluate` do alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sparse_transfer import data, evaluation, features, label_lists
from sparse_transfer.devices import Precision
from sparse_transfer.images import Images
from sparse_transfer.inference import Engine
from sparse_transfer.stages.context import Context

BATCH = 128


def score(
    model: nn.Module,
    images: Images,
    task: data.Task,
    out: Path,
    name: str,
    *,
    mode: str,
    precision: Precision,
    context: Context,
    profile: str = "",
    engine: Engine | None = None,
) -> dict[str, Any]:
    """One row of `result.json`; the predictions are stored as `name`.

    Where the task has lists of right classes, the right ones are interchangeable: see
    `label_lists.merged`. `engine` is one for "logits", None for PyTorch.
    """
    logits = features.logits(
        model,
        images,
        accelerator=context.accelerator,
        batch_size=BATCH,
        precision=precision,
        engine=engine,
    )
    labels = np.asarray(images.labels)
    if images.split.accepted is not None:
        lists = [images.split.accepted[str(example)] for example in images.ids]
        labels, logits = label_lists.merged(logits, lists)
    return evaluation.row(
        out,
        name,
        ids=images.ids,
        labels=labels,
        logits=logits,
        classes=len(task.classes),
        write=context.accelerator.is_main_process,
        task=task.card.name,
        metric=task.card.metric,
        mode=mode,
        transfer_seed=None,
        profile=profile,
        image_size=images.preprocess.image_size,
        split_hash=task.split_hash,
    )

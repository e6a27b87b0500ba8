"""Tune: choose the learning rate of full fine-tuning on the dense model; all methods share it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparse_transfer import data, plan
from sparse_transfer.errors import TrainingDiverged
from sparse_transfer.stages.context import Context
from sparse_transfer.stages.full import fine_tune


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Fine-tune once per learning rate without the validation part, and score on that part.

    The test part is not looked at. Ties go to the smaller learning rate; a learning rate that
    diverges scores 0.
    """
    spec = run.spec
    assert isinstance(spec, plan.FullSpec)
    ref = spec.task.model_copy(update={"validation": spec.profile.validation})
    task = data.open_task(ref, data_root=context.data_root, cache=context.cache)
    folder = parents["checkpoint"] / "checkpoint"
    scores: dict[float, float] = {}
    engine = None
    for lr in sorted(spec.profile.lr_grid):
        try:
            tuned = fine_tune(folder, task, task.train, task.validation, spec, lr, None, context)
        except TrainingDiverged:
            scores[lr] = 0.0
            continue
        engine = tuned["training"]["engine"]
        hits = tuned["logits"].argmax(axis=1) == tuned["labels"]
        scores[lr] = float(np.mean(hits)) if np.isfinite(tuned["logits"]).all() else 0.0
    best = max(scores, key=lambda lr: (scores[lr], -lr))
    return {
        "lr": best,
        "validation_top1": {f"{lr:g}": score for lr, score in scores.items()},
        "validation_images": len(task.validation),
        "engine": engine,
        "manifest": {"split_hash": task.split_hash, "seeds": {"transfer": spec.seed}},
    }

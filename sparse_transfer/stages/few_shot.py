"""Few-shot: accuracy by training images per class, from a logistic regression on frozen features.

Nested and class-balanced draws, the same for every model of a task. Deviation from Kornblith et al.
2019 (arXiv 1805.08974) and CLIP (arXiv 2103.00020): C is fixed, because one image of a class leaves
none to choose it with, and a rule that changes along the curve would bend it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparse_transfer import evaluation, plan, probes, signals
from sparse_transfer.errors import UserError
from sparse_transfer.predictions import Predictions
from sparse_transfer.seeds import derive
from sparse_transfer.stages import frozen
from sparse_transfer.stages.context import Context


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Extract (or reuse) the features and fit one classifier per draw and shots; see `FewShot`."""
    spec = run.spec
    assert isinstance(spec, plan.FewShotSpec)
    wanted = spec.few_shot
    found = frozen.extract(
        parents["checkpoint"] / "checkpoint", spec.task, spec.preprocess, spec.profile, context
    )
    task = found.task
    largest = int(np.bincount(found.train_labels).max())
    shots = [k for k in sorted(wanted.shots) if k <= largest]
    if not shots:
        raise UserError(
            f"Task {task.card.name} has no class with {min(wanted.shots)} training images.",
            f"The largest has {largest}.",
            "Lower `few_shot.shots`, or take more training images of the task.",
        )
    profile = spec.profile.model_copy(update={"lbfgs_c": (wanted.c,)})
    started = time.perf_counter()
    points = []
    for k in shots:
        for draw in range(wanted.draws):
            signals.raise_if_stopped()
            rows = drawn(found.train_labels, k, draw)
            probe = probes.lbfgs(
                found.train[rows], found.train_labels[rows], found.test, len(task.classes), profile
            )
            predictions = Predictions.from_logits(found.test_ids, found.test_labels, probe.logits)
            metrics = evaluation.measure(predictions, len(task.classes))
            points.append(
                {
                    "shots": k,
                    "draw": draw,
                    "images": len(rows),
                    "value": metrics[task.card.metric]["value"],
                    "notes": list(probe.notes),
                }
            )
            context.progress.update("fits", len(points), len(shots) * wanted.draws)
    return {
        "few_shot": points,
        "task": task.card.name,
        "metric": task.card.metric,
        "n_test": len(found.test_labels),
        "split_hash": task.split_hash,
        "image_size": spec.preprocess.image_size,
        "c": wanted.c,
        "short_classes": {
            str(k): names
            for k in shots
            if (names := short_of(found.train_labels, k, list(task.classes)))
        },
        "left_out": [k for k in sorted(wanted.shots) if k > largest],
        "skipped": {task.card.name: dict(task.skipped)},
        "engine": found.engine.facts(),
        "seconds": {"extraction": found.seconds, "fits": time.perf_counter() - started},
        "manifest": {
            "dtype": "fp32",
            "seeds": {"upstream": run.subject.seed, "draws": list(range(wanted.draws))},
            "transform": found.transform.facts(),
            "split_hash": task.split_hash,
            "mask_hash": found.opened.facts["summary"]["digest"],
        },
    }


def drawn(labels: np.ndarray, shots: int, draw: int) -> np.ndarray:
    """The rows of a draw, ascending: its first `shots` of every class; all of a smaller class.

    The order is a function of `draw` and the number of rows alone, so the rows of k shots are among
    those of any more, and are the same for every model.

    Args:
        labels: (n,) int, the classes of the training rows.
    """
    generator = torch.Generator().manual_seed(derive(draw, "few-shot"))
    order = torch.randperm(len(labels), generator=generator).numpy()
    return np.sort(np.concatenate([order[labels[order] == k][:shots] for k in np.unique(labels)]))


def short_of(labels: np.ndarray, shots: int, classes: list[str]) -> list[str]:
    """The names of the classes with fewer than `shots` training rows."""
    counts = np.bincount(labels, minlength=len(classes))
    return [name for name, count in zip(classes, counts, strict=True) if count < shots]

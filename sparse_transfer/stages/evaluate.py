"""Evaluate: score an upstream checkpoint, as it is, on a further test set such as ImageNet-V2.

A run of its own, so that a test set added later needs no pruning again. The model sees images as
it did upstream: the statistics and the interpolation are the checkpoint's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_transfer import checkpoint, data, inference, inputs, models, plan
from sparse_transfer.errors import UserError
from sparse_transfer.stages import scoring
from sparse_transfer.stages.context import Context


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """One row of mode `upstream` under the task's own name; see `EvaluateSpec`.

    Raises:
        UserError: the checkpoint's classifier does not tell the task's classes apart.
    """
    spec = run.spec
    assert isinstance(spec, plan.EvaluateSpec)
    opened = checkpoint.open_checkpoint(parents["checkpoint"] / "checkpoint")
    task = data.open_task(spec.task, data_root=context.data_root, cache=context.cache)
    check_head(models.model_classes(opened.model), task.card.name, len(task.classes))
    model = opened.model.to(context.accelerator.device)
    transform = inputs.transform(spec.preprocess, opened.loaded, None, context.cache)
    engine = inference.engine(
        spec.engine,
        model,
        opened.masks,
        "logits",
        image_size=spec.preprocess.image_size,
        batch_size=scoring.BATCH,
        accelerator=context.accelerator,
        precision=spec.precision,
    )
    row = scoring.score(
        model,
        transform.images(task.test, context.cache),
        task,
        out,
        task.card.name,
        mode="upstream",
        # a group of its own: means over tasks must not mix test sets of one upstream task
        profile=task.card.name,
        precision=spec.precision,
        context=context,
        engine=engine,
    )
    summary = opened.facts["summary"]
    return {
        "rows": [
            {
                **row,
                "measured_sparsity": summary["measured_sparsity"],
                "engine": engine.choice.name,
            }
        ],
        "engine": engine.choice.facts(),
        "skipped": {task.card.name: dict(task.skipped)},
        "manifest": {
            "dtype": spec.precision,
            "seeds": {"upstream": run.subject.seed},
            "transform": transform.facts(),
            "split_hash": task.split_hash,
            "mask_hash": summary["digest"],
        },
    }


def check_head(outputs: int, task: str, classes: int) -> None:
    """Refuse to score a classifier of other classes.

    Raises:
        UserError: the numbers differ.
    """
    if outputs != classes:
        raise UserError(
            f"The model cannot be scored on {task}.",
            f"Its classifier tells {outputs:,} classes apart; {task} has {classes:,}.",
            "Score it on a test set of the task that it was trained on.",
        )

"""Linear: probe the frozen features of a checkpoint on one task, by SGD and by logistic regression.

Source of the SGD probe: arXiv 2111.13445 (profile `paper-linear`); the logistic regression is the
check on it, and both are always run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparse_transfer import (
    checkpoint,
    cost,
    data,
    evaluation,
    features,
    inputs,
    models,
    plan,
    probes,
)
from sparse_transfer.images import Images
from sparse_transfer.stages.context import Context

_EXTRACTION_BATCH = 128


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Extract (or reuse) the features and train both probes; see `LinearSpec`."""
    spec = run.spec
    assert isinstance(spec, plan.LinearSpec)
    opened = checkpoint.open_checkpoint(parents["checkpoint"] / "checkpoint")
    task = data.open_task(spec.task, data_root=context.data_root, cache=context.cache)
    transform = inputs.transform(spec.preprocess, opened.loaded, task, context.cache, spec.profile)
    model = opened.model.to(context.accelerator.device)
    started = time.perf_counter()
    tables, labels, test = {}, {}, None
    for part in ("train", "test"):
        split = task.train if part == "train" else task.test
        images = transform.images(split, context.cache)
        tables[part] = _features(model, images, part, task, spec, transform, context)
        labels[part] = np.asarray(images.labels)
        test = images
    assert test is not None
    extraction = time.perf_counter() - started
    classes = len(task.classes)
    sgd = probes.sgd(
        tables["train"],
        labels["train"],
        tables["test"],
        classes,
        spec.profile,
        spec.seeds,
        device=context.accelerator.device,
    )
    lbfgs = probes.lbfgs(tables["train"], labels["train"], tables["test"], classes, spec.profile)
    models.new_head(model, classes, seed=0)  # of the size that the probes have
    bytes_ = cost.sizes(model, opened.masks)
    rows = []
    for probe, seed, logits in [
        *(("sgd", seed, logits) for seed, logits in zip(spec.seeds, sgd.logits, strict=True)),
        ("lbfgs", None, lbfgs.logits),
    ]:
        rows.append(
            evaluation.row(
                out,
                probe if seed is None else f"{probe}-t{seed}",
                ids=test.ids,
                labels=labels["test"],
                logits=logits,
                classes=classes,
                write=context.accelerator.is_main_process,
                task=task.card.name,
                metric=task.card.metric,
                mode=f"linear-{probe}",
                transfer_seed=seed,
                profile=spec.profile.name,
                image_size=spec.preprocess.image_size,
                split_hash=task.split_hash,
                measured_sparsity=opened.facts["summary"]["measured_sparsity"],
                bytes=bytes_.dense,
                packed=bytes_.packed,
            )
        )
    return {
        "rows": rows,
        "skipped": {task.card.name: dict(task.skipped)},
        "lbfgs": {
            "c": lbfgs.c,
            "validation": {f"{c:g}": value for c, value in lbfgs.validation.items()},
            "notes": list(lbfgs.notes),
        },
        "seconds": {"extraction": extraction, "sgd": sgd.seconds, "lbfgs": lbfgs.seconds},
        "manifest": {
            "dtype": "fp32",
            "seeds": {"upstream": run.subject.seed, "transfer": list(spec.seeds)},
            "transform": transform.facts(),
            "split_hash": task.split_hash,
            "mask_hash": opened.facts["summary"]["digest"],
        },
    }


def _features(
    model: Any,
    images: Images,
    part: str,
    task: data.Task,
    spec: plan.LinearSpec,
    transform: inputs.Transform,
    context: Context,
) -> np.ndarray:
    key = features.key_parts(
        model,
        preprocess=spec.preprocess.model_dump(mode="json")
        | {"interpolation": transform.interpolation},
        mean=transform.mean,
        std=transform.std,
        split_hash=images.key,  # of the very pixels, which a split hash does not see
        part=part,
        images=len(images),
        precision="fp32",
    )
    return features.cached(
        key,
        context.cache / "features",
        lambda: features.extract(
            model,
            images,
            accelerator=context.accelerator,
            batch_size=_EXTRACTION_BATCH,
        ),
    )

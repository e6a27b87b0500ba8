"""Linear: probe the frozen features of a checkpoint on one task, by SGD and by logistic regression.

Source of the SGD probe: arXiv 2111.13445 (profile `paper-linear`); the logistic regression is the
check on it, and both are always run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_transfer import cost, evaluation, models, plan, probes
from sparse_transfer.calibration import Temperature, fit_temperature
from sparse_transfer.config import LinearProfile
from sparse_transfer.errors import UserError
from sparse_transfer.stages import frozen
from sparse_transfer.stages.context import Context
from sparse_transfer.stages.frozen import FrozenFeatures


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Extract (or reuse) the features and train both probes; see `LinearSpec`."""
    spec = run.spec
    assert isinstance(spec, plan.LinearSpec)
    found = frozen.extract(
        parents["checkpoint"] / "checkpoint", spec.task, spec.preprocess, spec.profile, context
    )
    task, classes = found.task, len(found.task.classes)
    examples = (found.train, found.train_labels, found.test, classes, spec.profile)
    sgd = probes.sgd(*examples, spec.seeds, device=context.accelerator.device)
    lbfgs = probes.lbfgs(*examples)
    temperatures = _temperatures(found, spec, lbfgs.c, context) if spec.calibrate else {}
    models.new_head(found.opened.model, classes, seed=0)  # of the size that the probes have
    bytes_ = cost.sizes(found.opened.model, found.opened.masks)
    rows = []
    for probe, seed, logits in [
        *(("sgd", seed, logits) for seed, logits in zip(spec.seeds, sgd.logits, strict=True)),
        ("lbfgs", None, lbfgs.logits),
    ]:
        rows.append(
            evaluation.row(
                out,
                probe if seed is None else f"{probe}-t{seed}",
                ids=found.test_ids,
                labels=found.test_labels,
                logits=logits,
                classes=classes,
                write=context.accelerator.is_main_process,
                temperature=temperatures.get(seed),
                task=task.card.name,
                metric=task.card.metric,
                mode=f"linear-{probe}",
                transfer_seed=seed,
                profile=spec.profile.name,
                image_size=spec.preprocess.image_size,
                split_hash=task.split_hash,
                measured_sparsity=found.opened.facts["summary"]["measured_sparsity"],
                bytes=bytes_.dense,
                packed=bytes_.packed,
                engine=found.engine.name,
            )
        )
    return {
        "rows": rows,
        "class_names": {task.card.name: list(task.classes)},
        "skipped": {task.card.name: dict(task.skipped)},
        "lbfgs": {
            "c": lbfgs.c,
            "validation": {f"{c:g}": value for c, value in lbfgs.validation.items()},
            "notes": list(lbfgs.notes),
        },
        "engine": found.engine.facts(),
        "seconds": {"extraction": found.seconds, "sgd": sgd.seconds, "lbfgs": lbfgs.seconds},
        "manifest": {
            "dtype": "fp32",
            "seeds": {"upstream": run.subject.seed, "transfer": list(spec.seeds)},
            "transform": found.transform.facts(),
            "split_hash": task.split_hash,
            "mask_hash": found.opened.facts["summary"]["digest"],
        },
    }


def _temperatures(
    found: FrozenFeatures, spec: plan.LinearSpec, c: float, context: Context
) -> dict[int | None, Temperature | str]:
    """A temperature for the SGD probe of each seed, and for the logistic regression (None).

    The scored heads saw every training image, so each has a twin that is trained without the
    stratified share `lbfgs_validation` of them, and its temperature is the twin's on that share.
    The logistic regression's twin keeps the C that was chosen.
    """
    labels, profile = found.train_labels, spec.profile
    try:
        is_held = probes.held_out(labels, profile.lbfgs_validation, seed=0)
        kept = (found.train[~is_held], labels[~is_held], found.train[is_held])
        given = _with_c(profile, c)
        by_regression = probes.lbfgs(*kept, len(found.task.classes), given).logits
    except UserError as error:
        reason = " ".join(part for part in (error.what, error.why) if part)
        return dict.fromkeys((*spec.seeds, None), reason)
    by_seed = probes.sgd(
        *kept, len(found.task.classes), profile, spec.seeds, device=context.accelerator.device
    ).logits
    return {
        **{
            seed: fit_temperature(logits, labels[is_held])
            for seed, logits in zip(spec.seeds, by_seed, strict=True)
        },
        None: fit_temperature(by_regression, labels[is_held]),
    }


def _with_c(profile: LinearProfile, c: float) -> LinearProfile:
    return profile.model_copy(update={"lbfgs_c": (c,)})

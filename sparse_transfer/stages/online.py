"""On line: train a new head while the frozen backbone is recomputed each step, and time the steps.

Source: the linear mode of arXiv 2111.13445 whose training time its speedup claims are about
(profile `paper-linear-online`). Augmented images have other features in every epoch, so none can be
cached; a backbone with a faster forward pass shortens this training. The study ran it in
DeepSparse; here the package's own sparse engine runs it where the rule of `engines.py` says so,
and PyTorch, which does not use unstructured zeros, elsewhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparse_transfer import (
    checkpoint,
    data,
    evaluation,
    inference,
    inputs,
    loop,
    models,
    plan,
    resume,
)
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.driver import FixedMask
from sparse_transfer.seeds import derive
from sparse_transfer.stages.context import Context
from sparse_transfer.stages.full import held_out_temperature, logits_of

_PARTS = ("forward", "backward", "update")  # of a step; loading is not, as in the study


class FrozenBackbone(nn.Module):
    """A model of which only the classifier trains; the rest is in eval mode and has no gradient.

    Args:
        model: with the classifier to train.
        maps: images → what `forward_features` gives; the model's own if None.
    """

    def __init__(self, model: nn.Module, maps: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.model, self._maps = model, maps
        head = models.head_name(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in head)

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Batch norm keeps its upstream statistics and dropout is off, whatever the mode."""
        self.training = mode
        self.model.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) → (n, classes)."""
        with torch.no_grad():
            if self._maps is not None:
                maps = self._maps(images).clone()  # made in inference mode: not for a gradient
            else:
                maps = self.model.forward_features(images)  # pyright: ignore[reportCallIssue]
        return self.model.forward_head(maps)  # pyright: ignore[reportCallIssue]


class StepTimes:
    """Seconds of the parts of each training step, kept by `loop.train`'s laps."""

    def __init__(self, device: torch.device) -> None:
        self._synchronise = device.type == "cuda"
        self._last = 0.0
        self._steps: list[dict[str, float]] = []

    def lap(self, part: str) -> None:
        """Everything since the last call was `part`; "between" opens a new step."""
        if self._synchronise:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if part == "between":
            self._steps.append({})
        else:
            step = self._steps[-1]
            step[part] = step.get(part, 0.0) + now - self._last
        self._last = now

    def medians(self) -> dict[str, float]:
        """`steps` measured, and the median over them of each part, of the step and of loading."""
        if not self._steps:
            return {"steps": 0}
        table = {part: [step[part] for step in self._steps] for part in ("loading", *_PARTS)}
        table["step"] = [sum(step[part] for part in _PARTS) for step in self._steps]
        medians = {part: float(np.median(values)) for part, values in table.items()}
        return {"steps": len(self._steps), **medians}


def _engine(
    opened: checkpoint.Checkpoint, spec: plan.OnlineSpec, out: Path, context: Context
) -> inference.Engine:
    """The engine of this run: of its first start where it goes on, so that its numbers do, too."""
    asked, began = spec.profile.engine, resume.facts_of(out)
    if began is not None:
        asked = json.loads(began["engine"])["name"] if "engine" in began else "dense"
    try:
        return inference.engine(
            asked,
            opened.model,
            opened.masks,
            "maps",
            image_size=spec.preprocess.image_size,
            batch_size=spec.profile.batch_size,
            accelerator=context.accelerator,
            precision=spec.profile.precision,
        )
    except UserError as error:
        if began is None:
            raise
        raise resume.without_engine(out, error) from error


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Train the head on the whole training part and score the last epoch; see `OnlineSpec`."""
    spec = run.spec
    assert isinstance(spec, plan.OnlineSpec)
    profile, accelerator = spec.profile, context.accelerator
    opened = checkpoint.open_checkpoint(parents["checkpoint"] / "checkpoint")
    task = data.open_task(spec.task, data_root=context.data_root, cache=context.cache)
    transform = inputs.transform(
        spec.preprocess, opened.loaded, task, context.cache, profile, opened.layout
    )
    models.new_head(opened.model, len(task.classes), derive(spec.seed, "transfer"))
    engine = _engine(opened, spec, out, context)
    model = FrozenBackbone(opened.model, engine.run).to(accelerator.device)
    times = StepTimes(accelerator.device)
    seed = derive(spec.seed, "online")
    trained = loop.train(
        model,
        inputs.AugmentedImages(transform.images(task.train, context.cache, profile.augment), seed),
        profile,
        keeper=FixedMask(model, None),  # nothing that is masked is trained
        seed=seed,
        accelerator=accelerator,
        resume=out,
        facts={"engine": json.dumps(engine.choice.facts())},
        progress=lambda done, total: context.progress.update("steps", done, total),
        freeze_bn=True,
        lap=times.lap,
    )
    images = transform.images(task.test, context.cache)
    held_out = None
    if spec.calibrate and len(task.validation):
        held_images = transform.images(task.validation, context.cache)
        held_out = logits_of(model, held_images, context), np.asarray(held_images.labels)
    seconds = times.medians()
    timed = int(seconds.pop("steps"))
    per_epoch = loop.steps_per_epoch(len(task.train), profile)
    row = evaluation.row(
        out,
        "online",
        ids=np.asarray(images.ids),
        labels=np.asarray(images.labels),
        logits=logits_of(model, images, context),
        classes=len(task.classes),
        write=accelerator.is_main_process,
        temperature=held_out_temperature(held_out) if spec.calibrate else None,
        task=task.card.name,
        metric=task.card.metric,
        mode="linear-online",
        transfer_seed=spec.seed,
        profile=profile.name,
        image_size=spec.preprocess.image_size,
        split_hash=task.split_hash,
        measured_sparsity=opened.facts["summary"]["measured_sparsity"],
        engine=engine.choice.name,
        timed_steps=timed,
        **{f"{part}_s": value for part, value in seconds.items()},
        **({"epoch_s": (seconds["step"] + seconds["loading"]) * per_epoch} if timed else {}),
    )
    return {
        "rows": [row],
        "class_names": {task.card.name: list(task.classes)},
        "training": {
            "losses": list(trained.losses),
            "warnings": list(trained.warnings),
            "regime": "backbone recomputed each step",
        },
        "engine": engine.choice.facts(),
        "skipped": {task.card.name: dict(task.skipped)},
        "manifest": {
            "dtype": profile.precision,
            "seeds": {"upstream": run.subject.seed, "transfer": spec.seed},
            "transform": transform.facts(),
            "split_hash": task.split_hash,
            "mask_hash": opened.facts["summary"]["digest"],
        },
    }

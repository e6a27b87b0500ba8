"""A rough forecast of time and disk: the work of every run times the speed of this machine."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from sparse_transfer import config, cost, data, loop, models, plan
from sparse_transfer.backends.dense import WORTH
from sparse_transfer.errors import UserError

_BACKWARD = 3.0  # a training step costs about three forward passes
_CALIBRATION_BATCH = 32
_CALIBRATION_SECONDS = 1.0
_PROBES_SECONDS = 2.0  # heads of a linear run, whatever the model
_PREPARE_SECONDS = 4.0  # exporting and checking one model for a backend that compiles it
_COMPILE_SECONDS = 20.0  # torch.compile of one model, where `dense` tries it
_FIT_SECONDS = 0.3  # one logistic regression on a few images per class


def estimate(
    made: plan.Plan,
    data_root: Path | None,
    cache: Path,
    speeds: dict[str, _Speed] | None = None,
) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds and bytes by run id. Forecasts, good to a factor of about two.

    Every model is timed for about a second in a forward pass on this machine; a training step is
    taken for three of them. Decoding images and starting up are not in it. What was measured is
    kept in `speeds`, for the forecast of another plan of the same models.
    """
    seconds: dict[str, float] = {}
    size: dict[str, int] = {}
    speeds = {} if speeds is None else speeds
    sizes: dict[config.TaskRef, tuple[int, int, int]] = {}
    for run in made.runs:
        spec, model = run.spec, plan.origin(run)
        pixels = spec.image_size if isinstance(spec, plan.BenchSpec) else spec.preprocess.image_size
        key = f"{model!r} {pixels}"
        if key not in speeds:
            speeds[key] = _Speed(model, pixels)
        speed = speeds[key]
        if isinstance(spec, plan.BenchSpec):
            seconds[run.id] = _bench_seconds(spec.bench, speed.seconds)
            size[run.id] = 4_000
            continue
        if spec.task is not None and spec.task not in sizes:
            task = data.open_task(spec.task, data_root=data_root, cache=cache)
            sizes[spec.task] = len(task.train), len(task.test), len(task.classes)
        train, test, classes = sizes[spec.task] if spec.task else (0, 0, 0)
        seconds[run.id] = _seconds(spec, train, test, speed.seconds, run.stage)
        predictions = test * (60 + 2 * min(classes, 128))
        size[run.id] = 20_000 + predictions + (speed.bytes if run.stage == "prune" else 0)
    return seconds, size


def _bench_seconds(bench: config.Bench, forward: float) -> float:
    """Preparing and timing two models, the sparse and the dense one."""
    total = 0.0
    for batch_size, idles in bench.regimes.items():
        call = batch_size * forward
        exported = sum(name != "dense" for name in bench.backends)
        compiled = "dense" in bench.backends and call >= WORTH
        total += 2 * (exported * _PREPARE_SECONDS + compiled * _COMPILE_SECONDS)
        once = len(idles) * call + sum(idles) / 1000
        total += 2 * (bench.repeats + 4) * len(bench.backends) * once
    return total


def _seconds(
    spec: plan.PruneSpec
    | plan.EvaluateSpec
    | plan.LinearSpec
    | plan.FewShotSpec
    | plan.OnlineSpec
    | plan.FullSpec,
    train: int,
    test: int,
    forward: float,
    stage: str,
) -> float:
    if isinstance(spec, plan.EvaluateSpec):
        return test * forward
    if isinstance(spec, plan.LinearSpec):
        return (train + test) * forward + _PROBES_SECONDS * (1 + spec.calibrate)
    if isinstance(spec, plan.FewShotSpec):
        fits = len(spec.few_shot.shots) * spec.few_shot.draws
        return (train + test) * forward + fits * _FIT_SECONDS
    training = spec.recipe if isinstance(spec, plan.PruneSpec) else spec.profile
    steps = loop.total_steps(train, training) if train else 0
    once = (
        steps
        * training.accumulation
        * min(training.batch_size, max(train, 1))
        * forward
        * (1.0 if isinstance(spec, plan.OnlineSpec) else _BACKWARD)
    )
    if stage == "tune":
        assert isinstance(spec, plan.FullSpec)
        return once * len(spec.profile.lr_grid)
    return once + test * forward


class _Speed:
    """Seconds per image of a forward pass here, and bytes of the weights."""

    def __init__(self, spec: config.ModelSpec, image_size: int) -> None:
        try:
            # Time needs no real weights: a random model of the same shape will do.
            shape = (
                spec
                if spec.name.startswith("local-dir:")
                else spec.model_copy(update={"weights": "random"})
            )
            model = models.build(
                shape, num_classes=None, image_size=image_size, seed=0
            ).model.eval()
        except UserError:
            self.seconds, self.bytes = 0.0, 0
            return
        self.bytes = cost.sizes(model).dense
        images = torch.zeros(_CALIBRATION_BATCH, 3, image_size, image_size)
        with torch.inference_mode():
            model(images)
            started, calls = time.perf_counter(), 0
            while calls < 1 or time.perf_counter() - started < _CALIBRATION_SECONDS:
                model(images)
                calls += 1
        self.seconds = (time.perf_counter() - started) / (calls * _CALIBRATION_BATCH)

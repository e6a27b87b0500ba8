"""Bench: latency of a checkpoint beside the dense model, interleaved, agreement checked first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_transfer import checkpoint, config, latency, plan, plugins, signals
from sparse_transfer.backends import needs_images, tolerance, uses_zeros
from sparse_transfer.errors import UserError
from sparse_transfer.fusion import fold_batch_norms
from sparse_transfer.latency import Latency, Prepared
from sparse_transfer.seeds import derive
from sparse_transfer.stages.context import Context
from sparse_transfer.stages.samples import Samples, open_samples

SMALLER = "smaller network, without zeros"  # what stands for a backend's own words
OVER = ("over_median_s", "over_p10_s", "over_p90_s", "over_p99_s")  # times of the dense model
NO_IMAGES = "it is calibrated on training images, and there are none: name its task (--task NAME)"


@dataclass(frozen=True)
class Source:
    """Where images lie for the backends that need them; see `open_samples`."""

    task: config.TaskRef
    preprocess: config.Preprocess
    data_root: Path | None
    cache: Path


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Measure every backend; see `BenchSpec`."""
    spec = run.spec
    assert isinstance(spec, plan.BenchSpec)
    source = None
    if spec.task is not None and spec.preprocess is not None:
        source = Source(spec.task, spec.preprocess, context.data_root, context.cache)
    rows, reasons = measure_checkpoints(
        parents["checkpoint"] / "checkpoint",
        parents["dense"] / "checkpoint" if "dense" in parents else None,
        spec.bench,
        spec.image_size,
        source,
        device=context.accelerator.device,
    )
    return {"bench": rows, "unavailable": reasons}


def measure_checkpoints(
    folder: Path,
    dense_folder: Path | None,
    bench: config.Bench,
    image_size: int | None = None,
    source: Source | None = None,
    device: torch.device | str = "cpu",
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per batch size, pause and backend: latency of the checkpoint, speedup over dense.

    What is measured at one batch size runs in the same rounds, so the ratios are free of drift. The
    dense model runs on the same backend; a backend that uses zeros is compared with the fastest
    dense model of all backends here that are at least as exact, named in `over`, as nobody would
    run the dense model on a slower one. A backend that is not available here, or cannot run the
    model, has no row; its reason is returned beside the rows.

    Args:
        folder: the checkpoint.
        dense_folder: the dense model's checkpoint; None times the checkpoint alone.
        bench: backends, batch sizes, pauses and rounds.
        image_size: pixels; None takes the checkpoint's own.
        source: images for the backends that need them.

    Raises:
        UserError: no backend is available, or one disagrees with PyTorch.
    """
    sparse = checkpoint.open_checkpoint(folder)
    dense = checkpoint.open_checkpoint(dense_folder) if dense_folder else None
    size = image_size if image_size is not None else _own_size(sparse)
    models = {"sparse": sparse.model, **({"dense": dense.model} if dense else {})}
    for model in models.values():
        model.to(device).eval()
    used, reasons = _available(bench.backends, has_images=source is not None)
    samples = None
    if source is not None and any(needs_images(backend) for backend in used.values()):
        samples = open_samples(
            sparse, source.task, source.preprocess, source.data_root, source.cache
        )
    # what lost channels and has no mask has no zeros either: any engine computes less
    is_smaller = sparse.loaded.shrink is not None and sparse.masks is None
    found = _dependence(sparse.model, size)
    facts: dict[str, Any] = {"dependence": found, "is_constant": not found > latency.CONSTANT}
    facts["zero_layers"] = _zero(sparse.model)
    rows: list[dict[str, Any]] = []
    scores: dict[str, dict[str, Any]] = {}
    for batch_size, idles in bench.regimes.items():
        generator = torch.Generator().manual_seed(derive(0, "bench"))
        example = torch.randn(batch_size, 3, size, size, generator=generator).to(device)
        prepared = _prepare(used, models, example, samples, reasons)
        if not prepared:
            continue
        for name, runs in prepared.items():
            if samples is not None and needs_images(used[name]) and name not in scores:
                scores[name] = samples.score(runs["sparse"], sparse.model, batch_size, device)
        for idle_ms in idles:
            timed = _time(used, prepared, models, example, bench.repeats, idle_ms)
            for name, runs in prepared.items():
                rows.append(
                    {
                        "backend": name,
                        "uses_zeros": SMALLER if is_smaller else used[name].uses_zeros,
                        "note": runs["sparse"].note,
                        "device": str(example.device),
                        "threads": torch.get_num_threads(),
                        "batch_size": batch_size,
                        "idle_ms": idle_ms,
                        "image_size": size,
                        "repeats": bench.repeats,
                        **_times(timed, name, batch_size),
                        **_over_dense(timed, name, used, is_smaller),
                        **facts,
                        **scores.get(name, {}),
                    }
                )
    if not rows:
        raise UserError("No backend could be measured.", "\n".join(dict.fromkeys(reasons)))
    return rows, list(dict.fromkeys(reasons))


def _dependence(model: nn.Module, size: int) -> float:
    """See `latency.dependence`; a size that the model cannot take is the user's."""
    try:
        return latency.dependence(model, size)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"The checkpoint cannot be run on images of {size} pixels.",
            str(error).strip().partition("\n")[0],
            "Choose another --image-size.",
        ) from error


def _zero(model: nn.Module) -> int:
    """Layers whose every output is a constant: no weight left, or a batch norm of scale zero."""
    folded, _ = fold_batch_norms(model)
    layers = (m for m in folded.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return sum(not layer.weight.any() for layer in layers)


def _own_size(opened: checkpoint.Checkpoint) -> int:
    return opened.loaded.spec["pretrained_cfg"]["input_size"][-1]


def _available(names: tuple[str, ...], *, has_images: bool) -> tuple[dict[str, Any], list[str]]:
    used, reasons = {}, []
    for name in names:
        backend = plugins.load("backend", name)()
        reason = backend.available()
        if reason is None and needs_images(backend) and not has_images:
            reason = NO_IMAGES
        if reason is None:
            used[name] = backend
        else:
            reasons.append(f"{name}: {reason}")
    return used, reasons


def _prepare(
    used: Mapping[str, Any],
    models: Mapping[str, nn.Module],
    example: Tensor,
    samples: Samples | None,
    reasons: list[str],
) -> dict[str, dict[str, Prepared]]:
    """Callables by backend and model; a backend that cannot run one of them is a reason more."""
    prepared = {}
    for name, backend in used.items():
        signals.raise_if_stopped()
        images = [samples.calibration()] if samples and needs_images(backend) else []
        try:
            prepared[name] = {
                key: backend.prepare(model, example, *images) for key, model in models.items()
            }
        except UserError as error:
            reasons.append(f"{name}: {error.what} {error.why}")
    return prepared


def _time(
    used: Mapping[str, Any],
    prepared: Mapping[str, Mapping[str, Prepared]],
    models: Mapping[str, nn.Module],
    example: Tensor,
    repeats: int,
    idle_ms: int,
) -> dict[str, Latency]:
    """What `latency.measure` returns, by backend and model in one word, as in "dense sparse"."""
    signals.raise_if_stopped()
    with torch.inference_mode():
        right = {key: model(example) for key, model in models.items()}
    keys = [(name, key) for name, runs in prepared.items() for key in runs]
    return latency.measure(
        {f"{name} {key}": prepared[name][key] for name, key in keys},
        example,
        reference=f"{next(iter(prepared))} {'dense' if 'dense' in models else 'sparse'}",
        repeats=repeats,
        expected={f"{name} {key}": right[key] for name, key in keys},
        tolerances={f"{name} {key}": tolerance(used[name]) for name, key in keys},
        idle=idle_ms / 1000,
    )


def _times(timed: Mapping[str, Latency], name: str, batch_size: int) -> dict[str, Any]:
    own = timed[f"{name} sparse"]
    return {
        "median_s": own.median,
        "p10_s": own.p10,
        "p90_s": own.p90,
        "p99_s": own.p99,
        "images_per_s": batch_size / own.median,
        "relative_error": own.relative_error,
    }


def _over_dense(
    timed: Mapping[str, Latency], name: str, used: Mapping[str, Any], is_smaller: bool
) -> dict[str, Any]:
    """The paired ratio over the dense model of one backend, and which; None without a model."""
    if f"{name} dense" not in timed:
        return dict.fromkeys(("speedup", "speedup_low", "speedup_high", "over", *OVER))
    over = name
    if uses_zeros(used[name].uses_zeros) and not is_smaller:
        rivals = [
            other
            for other, backend in used.items()
            if f"{other} dense" in timed and tolerance(backend) <= tolerance(used[name])
        ]
        over = min(rivals, key=lambda other: timed[f"{other} dense"].median)
    dense = timed[f"{over} dense"]
    ratio = latency.speedup(dense, timed[f"{name} sparse"])
    return {
        "speedup": ratio.median,
        "speedup_low": ratio.low,
        "speedup_high": ratio.high,
        "over": over,
        **dict(zip(OVER, (dense.median, dense.p10, dense.p90, dense.p99), strict=True)),
    }

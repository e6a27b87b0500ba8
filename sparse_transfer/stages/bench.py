"""Bench: latency of a checkpoint beside the dense model, interleaved, agreement checked first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparse_transfer import checkpoint, latency, plan, plugins, signals
from sparse_transfer.backends import tolerance, uses_zeros
from sparse_transfer.errors import UserError
from sparse_transfer.seeds import derive
from sparse_transfer.stages.context import Context

SMALLER = "smaller network, without zeros"  # what stands for a backend's own words


def run(run: plan.Run, parents: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Measure every backend; see `BenchSpec`."""
    spec = run.spec
    assert isinstance(spec, plan.BenchSpec)
    bench = spec.bench
    rows, reasons = measure_checkpoints(
        parents["checkpoint"] / "checkpoint",
        parents["dense"] / "checkpoint" if "dense" in parents else None,
        bench.backends,
        bench.batch_size,
        spec.image_size,
        bench.repeats,
        device=context.accelerator.device,
    )
    return {"bench": rows, "unavailable": reasons}


def measure_checkpoints(
    folder: Path,
    dense_folder: Path | None,
    backends: tuple[str, ...],
    batch_size: int,
    image_size: int | None,
    repeats: int,
    device: torch.device | str = "cpu",
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row per backend: latency of the checkpoint, and its speedup over the dense model.

    Everything runs in the same rounds, so the ratios are free of drift. The dense model runs on
    the same backend; a backend that uses zeros is compared with the fastest dense model of all
    backends here, named in `over`, as nobody would run the dense model on a slower one. A backend
    that is not available here has no row; its reason is returned beside the rows.

    Args:
        folder: the checkpoint.
        dense_folder: the dense model's checkpoint; None times the checkpoint alone.
        backends: names of backend plugins.
        batch_size: images per call.
        image_size: pixels; None takes the checkpoint's own.
        repeats: timed rounds.

    Raises:
        UserError: no backend is available, or one disagrees with PyTorch.
    """
    sparse = checkpoint.open_checkpoint(folder)
    dense = checkpoint.open_checkpoint(dense_folder) if dense_folder else None
    own = sparse.loaded.spec["pretrained_cfg"]["input_size"][-1]
    size = image_size if image_size is not None else own
    generator = torch.Generator().manual_seed(derive(0, "bench"))
    example = torch.randn(batch_size, 3, size, size, generator=generator).to(device)
    # what lost channels and has no mask has no zeros either: any engine computes less
    is_smaller = sparse.loaded.shrink is not None and sparse.masks is None
    models = {"sparse": sparse.model, **({"dense": dense.model} if dense else {})}
    with torch.inference_mode():
        expected = {name: model.to(device).eval()(example) for name, model in models.items()}
    used, prepared, reasons = {}, {}, []
    for name in backends:
        signals.raise_if_stopped()
        backend = plugins.load("backend", name)()
        reason = backend.available()
        if reason is not None:
            reasons.append(f"{name}: {reason}")
            continue
        used[name] = backend
        prepared |= {(name, key): backend.prepare(model, example) for key, model in models.items()}
    if not used:
        raise UserError("No backend could be measured.", "\n".join(reasons))
    signals.raise_if_stopped()
    timed = latency.measure(
        {" ".join(key): run for key, run in prepared.items()},
        example,
        reference=f"{next(iter(used))} {'dense' if dense else 'sparse'}",
        repeats=repeats,
        expected={f"{name} {key}": expected[key] for name, key in prepared},
        tolerances={f"{name} {key}": tolerance(used[name]) for name, key in prepared},
    )
    fastest = min(used, key=lambda name: timed[f"{name} dense"].median) if dense else ""
    rows = []
    for name, backend in used.items():
        over = fastest if uses_zeros(backend.uses_zeros) and not is_smaller else name
        own = timed[f"{name} sparse"]
        ratio = latency.speedup(timed[f"{over} dense"], own) if dense else None
        rows.append(
            {
                "backend": name,
                "uses_zeros": SMALLER if is_smaller else backend.uses_zeros,
                "note": prepared[name, "sparse"].note,
                "device": str(example.device),
                "threads": torch.get_num_threads(),
                "batch_size": batch_size,
                "image_size": size,
                "repeats": repeats,
                "median_s": own.median,
                "p10_s": own.p10,
                "p90_s": own.p90,
                "p99_s": own.p99,
                "relative_error": own.relative_error,
                "speedup": ratio.median if ratio else None,
                "speedup_low": ratio.low if ratio else None,
                "speedup_high": ratio.high if ratio else None,
                "over": over if ratio else None,
            }
        )
    return rows, reasons

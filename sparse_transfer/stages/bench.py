"""Bench: latency of a checkpoint beside the dense model, interleaved, agreement checked first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparse_transfer import checkpoint, latency, plan, plugins, signals
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

    Both models run on the same backend in the same rounds, so the ratio is free of drift. A
    backend that is not available here has no row; its reason is returned beside the rows.

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
    rows, reasons = [], []
    for name in backends:
        signals.raise_if_stopped()
        backend = plugins.load("backend", name)()
        reason = backend.available()
        if reason is not None:
            reasons.append(f"{name}: {reason}")
            continue
        prepared = {key: backend.prepare(model, example) for key, model in models.items()}
        timed = latency.measure(
            prepared,
            example,
            reference="dense" if dense else "sparse",
            repeats=repeats,
            expected=expected,
        )
        own = timed["sparse"]
        rows.append(
            {
                "backend": name,
                "uses_zeros": SMALLER if is_smaller else backend.uses_zeros,
                "note": prepared["sparse"].note,
                "device": str(example.device),
                "threads": torch.get_num_threads(),
                "batch_size": batch_size,
                "image_size": size,
                "repeats": repeats,
                "median_s": own.median,
                "p10_s": own.p10,
                "p90_s": own.p90,
                "speedup": own.speedup if dense else None,
                "speedup_low": own.low if dense else None,
                "speedup_high": own.high if dense else None,
            }
        )
    if not rows:
        raise UserError("No backend could be measured.", "\n".join(reasons))
    return rows, reasons

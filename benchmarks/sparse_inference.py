"""Inference of whole networks: the sparse engine against the best dense engine, and its goals.

    OMP_NUM_THREADS=2 python benchmarks/sparse_inference.py [--rows resnet50] [--json out.json]

Masks are random and uniform per layer (or ERK); first convolution, depthwise convolutions and
classifier stay dense. Every row is one process's interleaved rounds: each engine once per round,
in rotating order; the figure is the median over rounds of best dense time / sparse time in the same
round, in brackets its 95 % interval. "Best dense" is the dense engine of the smallest median:
PyTorch eager channels-last with folded batch norms, torch.compile with freezing, ONNX Runtime, and
OpenVINO where installed. All outputs are compared with PyTorch's before anything is timed. Tuning
is done before, and its time printed. PASS and MISS refer to the goals
in `ROWS`; the last two rows are compared with our own dense path: never slower.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from sparse_transfer import models, plugins  # noqa: F401 - registers the small variants
from sparse_transfer.cost import macs
from sparse_transfer.latency import Latency, Prepared, measure, median_interval
from sparse_transfer.pruning.criteria import Stage, random, remove
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.sparse import library
from sparse_transfer.sparse.engine import compile

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
NEVER_SLOWER = 0.97


@dataclass(frozen=True)
class Row:
    """One line of the table; goals by sparsity, a number that the speedup must reach."""

    label: str
    model: str
    pixels: int
    batch: int
    goals: dict[float, float]
    allocation: str = "uniform"
    own: bool = False  # compared with our own dense path (PyTorch eager), not with the best of all


def row(label: str, model: str, pixels: int, batch: int, *goals: float) -> Row:
    return Row(label, model, pixels, batch, dict(zip(SPARSITIES, goals, strict=True)))


FLOOR = dict.fromkeys((0.0, 0.5, 0.9), NEVER_SLOWER)
ROWS = {
    "resnet50": row("ResNet-50 224 px, batch 16", "resnet50", 224, 16, 2.0, 3.0, 4.5, 6.0),
    "cifar": row("ResNet-18 32 px, batch 64", "resnet18_cifar", 32, 64, 2.0, 3.5, 5.5, 10.0),
    "batch1": row("ResNet-50 224 px, batch 1", "resnet50", 224, 1, 1.7, 2.6, 3.7, 5.0),
    "erk": Row("ResNet-50 224 px, batch 16, ERK", "resnet50", 224, 16,
               dict.fromkeys(SPARSITIES, NEVER_SLOWER), "erk"),
    "resnet18": Row("ResNet-18 224 px, batch 16", "resnet18", 224, 16,
                    dict.fromkeys(SPARSITIES, NEVER_SLOWER)),
    "mobilenetv2": Row("MobileNetV2 224 px, batch 16", "mobilenetv2_100", 224, 16, FLOOR, own=True),
    "floor": Row("ResNet-18 32 px, batch 16", "resnet18_cifar", 32, 16, FLOOR, own=True),
}  # fmt: skip


def sparsified(name: str, sparsity: float, allocation: str) -> tuple[nn.Module, Masks]:
    """A network with random zeros whose activations keep a sane scale."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    layers = prunable(model, ["first_conv", "depthwise", "head"])
    masks = Masks.ones(layers)
    if sparsity:
        masks = remove(masks, [Stage(random(layers, generator))], sparsity, allocation)
    with torch.no_grad():
        for name_, weight in layers.items():
            kept = masks[name_]
            weight.mul_(kept * float(kept.float().mean().clamp_min(1e-6)) ** -0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
    return model, masks


def dense_engines(model: nn.Module, example: Tensor, names: list[str]) -> dict[str, Prepared]:
    """Those that are installed, of the names asked for."""
    made = {}
    for name in names:
        try:
            if name == "inductor":
                made[name] = _inductor(model, example)
            elif name == "openvino":
                made[name] = _openvino(model, example)
            else:
                backend = plugins.load("backend", name)()
                if backend.available() is None:
                    made[name] = backend.prepare(model, example)
        except Exception as error:  # a peer that cannot be used is left out, and said so
            print(f"# {name} left out: {str(error).strip().splitlines()[0]}", flush=True)
    return made


def _inductor(model: nn.Module, example: Tensor) -> Prepared:
    import torch._inductor.config as config

    config.freezing = True
    compiled = torch.compile(model)

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return compiled(images)

    run(example)
    return Prepared(run)


def _openvino(model: nn.Module, example: Tensor) -> Prepared:
    if importlib.util.find_spec("openvino") is None:
        raise ImportError("openvino is not installed")
    import openvino  # pyright: ignore[reportMissingImports]

    core = openvino.Core()
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    converted = openvino.convert_model(model, example_input=example)
    converted.reshape(list(example.shape))
    network = core.compile_model(converted, "CPU", hints)
    return Prepared(lambda images: torch.from_numpy(network(images.numpy())[0]))


def best_of(timed: dict[str, Latency], dense: list[str]) -> str:
    return min(dense, key=lambda name: timed[name].median)


def measure_cell(row: Row, sparsity: float, repeats: int, engines: list[str]) -> dict[str, Any]:
    """One cell: the speedup over the best dense engine, and everything it was made of."""
    model, masks = sparsified(row.model, sparsity, row.allocation)
    example = torch.randn(row.batch, 3, row.pixels, row.pixels)
    began = time.perf_counter()
    compiled = compile(model, example)
    compile_s = time.perf_counter() - began
    callables: dict[str, Callable[[Tensor], Tensor]] = dict(dense_engines(model, example, engines))
    dense = list(callables)
    callables["sparse"] = compiled
    with torch.inference_mode():
        output: Tensor = model(example)
    expected = {name: output for name in callables}
    timed = measure(callables, example, reference=dense[0], repeats=repeats, expected=expected)
    best = "dense" if row.own else best_of(timed, dense)
    ratios = timed[best].seconds / timed["sparse"].seconds
    cost = macs(model, row.pixels, masks)
    return {
        "row": row.label,
        "sparsity": sparsity,
        "mac_density": cost.ratio,
        "speedup": float(np.median(ratios)),
        "interval": median_interval(ratios),
        "goal": row.goals[sparsity],
        "best_dense": best,
        "median_s": {name: latency.median for name, latency in timed.items()},
        "relative_error": timed["sparse"].relative_error,
        "compile_s": compile_s,
        "engine": compiled.engine,
        "reason": compiled.reason,
    }


def main() -> int:
    """Print the table; the exit code is 0 whether goals are met or not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--sparsities", nargs="+", type=float, help="those of the row if left out")
    parser.add_argument("--repeats", type=int, default=30, help="timed rounds of a cell")
    parser.add_argument(
        "--dense", nargs="+", default=["dense", "inductor", "onnxruntime", "openvino"],
        help="dense engines",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    machine = (
        f"{library.cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"kernels {library.current().level}, {platform.system()}"
    )
    print(machine)
    cells = []
    for name in options.rows:
        print(f"{ROWS[name].label} [{name}]")
        for sparsity in options.sparsities or ROWS[name].goals:
            if sparsity not in ROWS[name].goals:
                continue
            cell = measure_cell(ROWS[name], sparsity, options.repeats, options.dense)
            cells.append(cell)
            low, high = cell["interval"] or (float("nan"), float("nan"))
            medians = ", ".join(f"{k} {1e3 * v:.1f}" for k, v in cell["median_s"].items())
            print(
                f"  {sparsity:>4.0%} (MACs {cell['mac_density']:.3f})  {cell['speedup']:5.2f} "
                f"[{low:.2f}, {high:.2f}]  goal {cell['goal']:<4} "
                f"{'PASS' if cell['speedup'] >= cell['goal'] else 'MISS'}  "
                f"error {cell['relative_error']:.0e}  ms: {medians}; compiled in "
                f"{cell['compile_s']:.1f} s; {cell['engine']}",
                flush=True,
            )
    if options.json is not None:
        content = {"machine": machine, "repeats": options.repeats, "cells": cells}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

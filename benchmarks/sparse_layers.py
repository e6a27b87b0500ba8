"""Single layers: the sparse kernels against PyTorch, and against SparseProp where installed.

    OMP_NUM_THREADS=2 python benchmarks/sparse_layers.py [--sparsities .9] [--json out.json]

Every layer gets and returns PyTorch tensors, so ours pays for the way into its layout and back
(networks do not: benchmarks/sparse_inference.py). Per round everything runs once, in rotating
order; a figure is the median over rounds of PyTorch's time / ours in the same round, PyTorch being
the faster of NCHW and channels-last. The last column is the kernel alone, data in its layout, one
thread: billions of useful floating-point operations a second. Outputs and gradients are compared
with float64 on one image first. PASS: faster than SparseProp, forward and both.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sparse_transfer.sparse import library, tuning
from sparse_transfer.sparse.layer import SparseConvolution

# output and input channels, kernel, stride, pixels, images
SHAPES = (
    (64, 64, 3, 1, 56, 16),
    (128, 128, 3, 1, 28, 16),
    (256, 256, 3, 1, 14, 16),
    (512, 512, 3, 1, 7, 16),
    (128, 64, 3, 2, 56, 16),
    (256, 64, 1, 1, 56, 16),
    (64, 256, 1, 1, 56, 16),
    (512, 128, 1, 1, 28, 16),
    (1024, 256, 1, 1, 14, 16),
    (256, 1024, 1, 1, 14, 16),
    (2048, 512, 1, 1, 7, 16),
    (96, 24, 1, 1, 56, 16),
    (64, 64, 3, 1, 32, 64),
    (256, 256, 3, 1, 8, 64),
    (512, 512, 3, 1, 4, 64),
)
LIMITS = {"forward": 1e-6, "input": 1e-6, "values": 1e-5}


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def errors(
    layer: SparseConvolution, weight: Tensor, images: Tensor, stride: int, pad: int
) -> dict[str, float]:
    """Relative errors against float64 of the output and both gradients."""
    exact, exact_weight = images.double().requires_grad_(), weight.double().requires_grad_()
    expected = functional.conv2d(exact, exact_weight, None, stride, pad)
    gradient = torch.randn(expected.shape)
    expected.backward(gradient.double())
    assert exact.grad is not None and exact_weight.grad is not None
    size = (images.shape[2], images.shape[3])
    return {
        "forward": relative(layer.forward(images), expected.detach()),
        "input": relative(layer.input_gradient(gradient, size), exact.grad),
        "values": relative(layer.value_gradient(images, gradient), exact_weight.grad[weight != 0]),
    }


def peer(weight: Tensor, stride: int, pad: int) -> Any | None:
    """SparseProp's convolution, or None; it has no groups and one stride."""
    if importlib.util.find_spec("sparseprop") is None:
        return None
    from sparseprop.modules import SparseConv2d  # pyright: ignore[reportMissingImports]

    out, into, kernel, _ = weight.shape
    plain = torch.nn.Conv2d(into, out, kernel, stride, pad, bias=False)
    plain.weight.data.copy_(weight)
    return SparseConv2d(plain)


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run in every round."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(repeats + 2):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            began = time.perf_counter()
            runs[name]()
            if turn >= 2:
                taken[name].append(time.perf_counter() - began)
    return taken


def ratio(taken: dict[str, list[float]], kind: str) -> float:
    """Median over rounds of PyTorch's time over ours."""
    dense = min(
        (taken[f"{kind} nchw"], taken[f"{kind} nhwc"]), key=lambda times: statistics.median(times)
    )
    return statistics.median(d / s for d, s in zip(dense, taken[f"{kind} ours"], strict=True))


def measure_cell(shape: tuple[int, ...], sparsity: float, repeats: int) -> dict[str, Any]:
    """All figures of one layer at one sparsity."""
    out, into, kernel, stride, size, batch = shape
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, into, kernel, kernel, generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) >= sparsity
    pad = kernel // 2
    layer = SparseConvolution(weight, stride=(stride, stride), padding=(pad, pad))
    images = torch.randn(batch, into, size, size, generator=generator)
    found = errors(layer, weight, images[:1], stride, pad)
    wrong = {name: error for name, error in found.items() if error > LIMITS[name]}
    if wrong:
        raise SystemExit(f"{shape} at {sparsity}: relative errors {wrong} are too large")
    gradient = torch.randn(layer.forward(images).shape, generator=generator)
    runs: dict[str, Callable[[], object]] = {
        "forward ours": lambda: layer.forward(images),
        "both ours": lambda: (
            layer.forward(images),
            layer.input_gradient(gradient, (size, size)),
            layer.value_gradient(images, gradient),
        ),
    }

    def add_dense(name: str, memory: torch.memory_format) -> None:
        x, w = images.to(memory_format=memory), weight.to(memory_format=memory)
        g = gradient.to(memory_format=memory)
        x_grad, w_grad = x.clone().requires_grad_(), w.clone().requires_grad_()

        def forward() -> None:
            with torch.inference_mode():
                functional.conv2d(x, w, None, stride, pad)

        def both() -> None:
            made = functional.conv2d(x_grad, w_grad, None, stride, pad)
            torch.autograd.grad(made, (x_grad, w_grad), g)

        runs[f"forward {name}"], runs[f"both {name}"] = forward, both

    add_dense("nchw", torch.contiguous_format)
    add_dense("nhwc", torch.channels_last)
    rival = peer(weight, stride, pad)
    if rival is not None:
        runs["forward sparseprop"] = lambda: rival(images)
        x = images.clone().requires_grad_()
        runs["both sparseprop"] = lambda: rival(x).backward(gradient)
    taken = interleaved(runs, repeats)
    cell: dict[str, Any] = {
        "shape": shape,
        "sparsity": sparsity,
        "errors": found,
        "forward": ratio(taken, "forward"),
        "both": ratio(taken, "both"),
        "median_s": {name: statistics.median(times) for name, times in taken.items()},
        "kernel_gflops": kernel_rate(layer, weight.numpy(), size, batch),
    }
    if rival is not None:
        for kind in ("forward", "both"):
            pairs = zip(taken[f"{kind} sparseprop"], taken[f"{kind} ours"], strict=True)
            cell[f"{kind}_over_sparseprop"] = statistics.median(p / o for p, o in pairs)
    return cell


def kernel_rate(layer: SparseConvolution, weight: Any, size: int, batch: int) -> float:
    """Useful floating-point operations (2 per product) of the tuned kernel, 10⁹ a second."""
    problem = tuning.problem_of(weight, layer.axes(size, size), batch)
    tuner = tuning.Tuner(layer.library, tuning.cache_file())
    seconds = tuner.choose(problem).seconds
    tuner.save()
    axes = problem.axes
    return 2e-9 * len(layer.values) * axes[0].output * axes[1].output / seconds


def main() -> int:
    """Print a line for each layer and sparsity; the exit code is 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.8, 0.9, 0.95, 0.98])
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    machine = (
        f"{library.cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"kernels {library.current().level}, {platform.system()}"
    )
    print(machine)
    print("layer                       sparsity  forward  fwd+bwd  SparseProp fwd/both  GF/s")
    cells = []
    for shape in SHAPES:
        out, into, kernel, stride, size, batch = shape
        for sparsity in options.sparsities:
            cell = measure_cell(shape, sparsity, options.repeats)
            cells.append(cell)
            against = "not installed"
            if "both_over_sparseprop" in cell:
                pair = (cell["forward_over_sparseprop"], cell["both_over_sparseprop"])
                against = "{:.2f} {:.2f} {}".format(*pair, "PASS" if min(pair) > 1 else "MISS")
            print(
                f"{f'{out}×{into} {kernel}×{kernel} /{stride} {size} px n{batch}':<27} "
                f"{sparsity:>8.0%} {cell['forward']:>8.2f} {cell['both']:>8.2f}  {against:<19} "
                f"{cell['kernel_gflops']:>6.0f}",
                flush=True,
            )
    if options.json is not None:
        content = {"machine": machine, "repeats": options.repeats, "cells": cells}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

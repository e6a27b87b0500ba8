"""Single layers: the sparse kernels against PyTorch, and against SparseProp where installed.

    OMP_NUM_THREADS=2 python benchmarks/sparse_layers.py [--sparsities .9] [--json out.json]

Every layer gets and returns PyTorch tensors, so ours pays for the way into its layout and back
(networks do not: benchmarks/sparse_inference.py; nor do 1 × 1 layers of 56 and 28 px). Per round
everything runs once, in rotating order; a figure is the median over rounds of PyTorch's time / ours
in the same round, PyTorch being the faster of NCHW and channels-last. The last column is the kernel
alone, data in its layout, one thread: billions of useful floating-point operations a second.
Outputs and gradients are compared with float64 on one image first. PASS: faster than SparseProp,
forward and both.

SparseProp (arXiv 2302.04852) runs as the faster of its two kernels, by its own module. Its setup
calls the `pip` and `python3` that come first on the PATH, so install it into an activated
environment that has what it needs, without isolation:

    . .venv/bin/activate && pip install pybind11 setuptools wheel scipy
    pip install --no-build-isolation --no-deps sparseprop
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from measuring import (
    SPARSITIES,
    Cells,
    add_options,
    fastest,
    interleaved,
    machine,
    ratio,
    verdict,
)
from torch import Tensor
from torch.nn import functional

from sparse_transfer.errors import UserError
from sparse_transfer.sparse import tuning
from sparse_transfer.sparse.drop_in import SparseConv2d
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
PEER_LIMIT = 1e-4  # relative error of SparseProp that still counts as the same function
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


def peers(
    weight: Tensor, stride: int, pad: int, images: Tensor, gradient: Tensor
) -> dict[str, Callable[[], object]]:
    """Runs of SparseProp's kernels, forward and both, where it is installed.

    Raises:
        UserError: it does not compute the same function.
    """
    if importlib.util.find_spec("sparseprop") is None:
        return {}
    from sparseprop.modules import SparseConv2d  # pyright: ignore[reportMissingImports]

    out, into, kernel, _ = weight.shape
    plain = torch.nn.Conv2d(into, out, kernel, stride, pad, bias=False)
    plain.weight.data.copy_(weight)
    with torch.no_grad():
        expected = plain(images)
    runs: dict[str, Callable[[], object]] = {}
    leaf = images.clone().requires_grad_()
    for number in (1, 2):  # vectors over images, or over the pixels of a row
        rival = SparseConv2d.from_dense(plain, vectorizing_over_on=number == 2)
        error = relative(rival(images).detach(), expected.double())
        if not error <= PEER_LIMIT:
            raise UserError(
                f"SparseProp's kernel {number} is off by {error:.1e} on {weight.shape}."
            )

        def forward(rival: Any = rival) -> None:
            with torch.no_grad():
                rival(images)

        def both(rival: Any = rival) -> None:
            torch.autograd.grad(rival(leaf), (leaf, rival.weight), gradient)

        runs[f"forward sparseprop {number}"] = forward
        runs[f"both sparseprop {number}"] = both
    return runs


def measure_cell(shape: Sequence[int], sparsity: float, repeats: int) -> dict[str, Any]:
    """All figures of one layer at one sparsity."""
    out, into, kernel, stride, size, batch = shape
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, into, kernel, kernel, generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) >= sparsity
    pad = kernel // 2
    plain = torch.nn.Conv2d(into, out, kernel, stride, pad, bias=False)
    plain.weight.data.copy_(weight)
    module = SparseConv2d.from_dense(plain, weight != 0)
    layer = module.convolution(module.values)
    images = torch.randn(batch, into, size, size, generator=generator)
    found = errors(layer, weight, images[:1], stride, pad)
    wrong = {name: error for name, error in found.items() if not error <= LIMITS[name]}
    if wrong:
        raise UserError(f"{shape} at {sparsity}: relative errors {wrong} are too large.")
    gradient = torch.randn(layer.forward(images).shape, generator=generator)
    leaf = images.clone().requires_grad_()

    def forward_ours() -> None:
        with torch.no_grad():
            module(images)

    def both_ours() -> None:
        torch.autograd.grad(module(leaf), (leaf, module.values), gradient)

    runs: dict[str, Callable[[], object]] = {"forward ours": forward_ours, "both ours": both_ours}

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
    runs |= peers(weight, stride, pad, images, gradient)
    seconds = interleaved(runs, repeats)
    cell: dict[str, Any] = {
        "errors": found,
        "median_s": {name: float(np.median(taken)) for name, taken in seconds.items()},
        "kernel_gflops": kernel_rate(layer, weight.numpy(), size, batch),
    }
    for kind in ("forward", "both"):
        for rivals, goal in ((("nchw", "nhwc"), None), (("sparseprop",), 1.0)):
            names = [n for n in runs if n.startswith(kind) and n.split()[1] in rivals]
            if names:
                best = fastest(seconds, names)
                figures = ratio(seconds[best], seconds[f"{kind} ours"])
                name = kind if goal is None else f"{kind}_over_sparseprop"
                cell[name] = {**figures, "goal": goal, "best": best}
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
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--shapes", nargs="+", type=int, help="places in the list; default: all")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds")
    add_options(parser)
    options = parser.parse_args()
    cells = Cells(options.json, "sparse_layers", options.again)
    print(machine())
    print("layer                       sparsity  forward  fwd+bwd  SparseProp fwd/both  GF/s")
    places = range(len(SHAPES)) if options.shapes is None else options.shapes
    for shape in [SHAPES[place] for place in places]:
        out, into, kernel, stride, size, batch = shape
        for sparsity in options.sparsities:
            key = {"shape": list(shape), "sparsity": sparsity, "repeats": options.repeats}
            cell = cells.get(key, lambda c=shape, s=sparsity: measure_cell(c, s, options.repeats))
            against = "not installed"
            pair = [cell[n] for n in cell if n.endswith("_over_sparseprop")]
            if pair:
                words = "PASS" if all(verdict(p) == "PASS" for p in pair) else "MISS"
                against = f"{pair[0]['speedup']:.2f} {pair[1]['speedup']:.2f} {words}"
            print(
                f"{f'{out}×{into} {kernel}×{kernel} /{stride} {size} px n{batch}':<27} "
                f"{sparsity:>8.0%} {cell['forward']['speedup']:>8.2f} "
                f"{cell['both']['speedup']:>8.2f}  {against:<19} {cell['kernel_gflops']:>6.0f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))

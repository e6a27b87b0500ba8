"""Inference of whole networks: the sparse engine against the best dense engine, and its goals.

    OMP_NUM_THREADS=2 python benchmarks/sparse_inference.py [--rows resnet50] [--json out.json]

Masks are random and uniform per layer, or ERK; first convolution, depthwise convolutions and
classifier stay dense. With `--weights FOLDER` there are trained ones, too: MobileNetV2 under a
global magnitude mask, and a network that is sparse as it comes (`TRAINED` says which files).
One-shot global masks of more than about 60 % leave MobileNetV2 a constant function, whose time is
worth nothing: `--checkpoint FOLDER` measures a pruned and fine-tuned network of your own. What does
not depend on its images is refused.
Every cell is one process's interleaved rounds: each engine once per round, in rotating order; the
figure is the median over rounds of best dense time / sparse time in the same round, in brackets its
95 % interval. "Best dense" is the dense backend of the smallest median: PyTorch channels-last with
folded batch norms, eager or compiled, whichever its own measurement found faster; ONNX Runtime; and
OpenVINO where installed. The row `bf16` admits bf16 in PyTorch and OpenVINO as well, and lets
`compile` take our bf16 kernels; where float32 ones are faster it takes those, and the cell's
`precision` says so. All outputs are compared with PyTorch's before anything is timed. Tuning is
done before, and its time printed.
PASS and MISS refer to the goals in `ROWS`; rows with `own` are compared with our own dense path
alone: never slower, and never fewer than 30 rounds. What has no goal is printed without one.

The rows `conversion`, `memory` and `growth` run in processes of their own (sparse_costs.py):
seconds of a conversion of ResNet-50 with an empty and a full tuning cache, memory beside the dense
model's, and growth over 1,000 calls.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import (
    SPARSITIES,
    Cells,
    add_options,
    cost,
    distance,
    fastest,
    interleaved,
    machine,
    network,
    ratio,
    shown,
    trained,
    verdict,
)
from sparse_costs import in_process
from torch import Tensor, nn

from sparse_transfer import load, plugins
from sparse_transfer.cost import macs
from sparse_transfer.errors import UserError
from sparse_transfer.latency import CONSTANT, Prepared, agreement, dependence
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.sparse.engine import compile

NEVER_SLOWER, ROUNDS = 0.97, 30
BF16_ERROR = 5e-2  # relative error (Euclidean norm) of a bf16 network that is the same function
FLOAT32 = ("dense", "onnxruntime", "openvino")
BF16 = ("dense-bf16", "openvino-bf16")


@dataclass(frozen=True)
class Row:
    """One line of the table; goals by sparsity, a number that the speedup must reach, or None."""

    label: str
    model: str
    pixels: int
    batch: int
    goals: Mapping[float, float | None]
    allocation: str = "uniform"
    own: bool = False  # the backend `sparse` against `dense`, not against the best of all
    dtype: torch.dtype = torch.float32


def row(label: str, model: str, pixels: int, batch: int, *goals: float, **more: Any) -> Row:
    return Row(label, model, pixels, batch, dict(zip(SPARSITIES, goals, strict=True)), **more)


def floor(label: str, model: str, pixels: int, batch: int, *sparsities: float, **more: Any) -> Row:
    """A row that must not be slower than our own dense path."""
    goals = dict.fromkeys(sparsities or (0.0, 0.5, 0.9), NEVER_SLOWER)
    return Row(label, model, pixels, batch, goals, own=True, **more)


def open_row(label: str, model: str, pixels: int, batch: int, **more: Any) -> Row:
    """A row without goals."""
    return Row(label, model, pixels, batch, dict.fromkeys(SPARSITIES), **more)


ROWS = {
    "resnet50": row("ResNet-50 224 px, batch 16", "resnet50", 224, 16, 2.0, 3.0, 4.5, 6.0),
    "bf16": row("ResNet-50 224 px, batch 16, bf16", "resnet50", 224, 16, 1.1, 1.7, 2.4, 3.2,
                dtype=torch.bfloat16),
    "cifar": row("ResNet-18 32 px, batch 64", "resnet18_cifar", 32, 64, 2.0, 3.5, 5.5, 10.0),
    "batch1": row("ResNet-50 224 px, batch 1", "resnet50", 224, 1, 1.7, 2.6, 3.7, 5.0),
    "erk": open_row("ResNet-50 224 px, batch 16, ERK", "resnet50", 224, 16, allocation="erk"),
    "resnet18": open_row("ResNet-18 224 px, batch 16", "resnet18", 224, 16),
    "resnet34": open_row("ResNet-34 224 px, batch 16", "resnet34", 224, 16),
    "vgg19": open_row("VGG-19 224 px, batch 16", "vgg19_bn", 224, 16),
    "mobilenetv1": open_row("MobileNetV1 224 px, batch 16", "mobilenetv1_100", 224, 16),
    "global": floor("MobileNetV2 224 px, batch 16, trained, global", "mobilenetv2_100", 224, 16,
                    0.3, 0.5, allocation="global"),
    "trained": floor("SqueezeNet 1.0 224 px, batch 16, trained", "torchvision_squeezenet1_0", 224,
                     16, 0.67,
                     allocation="as it comes"),
    "floor50": floor("ResNet-50 224 px, batch 16, floor", "resnet50", 224, 16, 0.0, 0.5),
    "mobilenetv2": floor("MobileNetV2 224 px, batch 16", "mobilenetv2_100", 224, 16),
    "floor": floor("ResNet-18 32 px, batch 16", "resnet18_cifar", 32, 16),
    "mobilenetv3": floor("MobileNetV3 224 px, batch 16", "mobilenetv3_large_100", 224, 16),
    "efficientnet": floor("EfficientNet-B0 224 px, batch 16", "efficientnet_b0", 224, 16),
    "regnet": floor("RegNetY-400MF 224 px, batch 16", "regnety_004", 224, 16),
    "densenet": floor("DenseNet-121 224 px, batch 16", "densenet121", 224, 16),
    "convnext": floor("ConvNeXt-A 224 px, batch 16", "convnext_atto", 224, 16),
    "vit": floor("ViT-Ti/16 224 px, batch 16", "vit_tiny_patch16_224", 224, 16),
}  # fmt: skip
# architecture: beginning of the file's name, arguments of the model, pruned further to a sparsity
TRAINED: dict[str, tuple[str, dict[str, Any], bool]] = {
    "mobilenetv2_100": ("mobilenetv2_100.", {"pad_type": "same", "bn_eps": 1e-3}, True),
    "torchvision_squeezenet1_0": ("squeezenet1_0.", {}, False),
}
COSTS = ("conversion", "memory", "growth")


def made(row: Row, sparsity: float, folder: Path | None) -> tuple[nn.Module, Masks]:
    """The row's network with its zeros.

    Raises:
        UserError: a file is missing or does not fit, or the output does not depend on the image.
    """
    model, masks = _made(row, sparsity, folder)
    found = dependence(model, row.pixels)
    if not found > CONSTANT:
        raise UserError(
            f"{row.label} at {sparsity:.0%} is not measured.",
            f"Its outputs for different images differ by {found:.0e} of their size: it collapsed "
            "under the mask, and the time of a constant says nothing.",
        )
    return model, masks


def _made(row: Row, sparsity: float, folder: Path | None) -> tuple[nn.Module, Masks]:
    if row.allocation == "checkpoint":
        checkpoint = load(row.model)
        assert checkpoint.masks is not None
        return checkpoint.model.eval(), checkpoint.masks
    if row.allocation not in ("global", "as it comes"):
        return network(row.model, sparsity, row.allocation)
    assert folder is not None
    start, arguments, is_pruned = TRAINED[row.model]
    files = sorted(folder.glob(f"{start}*safetensors"))
    if not files:
        raise UserError(f"There is no {start}*safetensors in {folder}.")
    return trained(files[0], row.model, sparsity if is_pruned else None, **arguments)


def own_row(folder: Path) -> Row:
    """The row of a checkpoint: its own image size, sixteen images."""
    checkpoint = load(folder)
    if checkpoint.masks is None:
        raise UserError(f"{folder} has no mask.", hint="Name the checkpoint of a pruned network.")
    spec = checkpoint.loaded.spec
    pixels = spec["pretrained_cfg"]["input_size"][-1]
    label = f"{spec['architecture']} {pixels} px, batch 16, {folder}"
    sparsity = round(checkpoint.masks.sparsity(), 4)
    return floor(label, str(folder), pixels, 16, sparsity, allocation="checkpoint")


def dense_engines(model: nn.Module, example: Tensor, names: list[str]) -> dict[str, Prepared]:
    """Those that are installed, of the names asked for."""
    made = {}
    for name in names:
        try:
            made[name] = _engine(model, example, name)
        except Exception as error:  # a peer that cannot be used is left out, and said so
            print(f"# {name} left out: {str(error).strip().splitlines()[0]}", flush=True)
    return made


def _engine(model: nn.Module, example: Tensor, name: str) -> Prepared:
    backend = plugins.load("backend", name)()
    reason = backend.available()
    if reason is not None:
        raise UserError(reason)
    return backend.prepare(model, example)


def measure_cell(
    row: Row, sparsity: float, repeats: int, engines: list[str], folder: Path | None
) -> dict[str, Any]:
    """One cell: the speedup over the best dense engine, and everything it was made of."""
    model, masks = made(row, sparsity, folder)
    example = torch.randn(row.batch, 3, row.pixels, row.pixels)
    is_lower = row.dtype == torch.bfloat16
    began = time.perf_counter()
    precision: dict[str, Any] = {"dtype": row.dtype} if is_lower else {}
    compiled = compile(model, example, **precision)
    compile_s = time.perf_counter() - began
    wanted = ["dense"] if row.own else engines + list(BF16 if is_lower else ())
    callables: dict[str, Any] = dict(dense_engines(model, example, wanted))
    dense = list(callables)
    callables["sparse"] = ours = _engine(model, example, "sparse") if row.own else compiled
    with torch.inference_mode():
        expected: Tensor = model(example)
    errors = {}
    for name, run in callables.items():
        output = run(example)
        errors[name] = distance(output, expected)
        if not (name in BF16 or (is_lower and name == "sparse")):
            agreement(name, output, expected)
        elif not errors[name] <= BF16_ERROR:
            raise UserError(f"{name} is off by {errors[name]:.1e} of the output's norm.")
    runs = {name: partial(run, example) for name, run in callables.items()}
    seconds = interleaved(runs, max(repeats, ROUNDS) if row.own else repeats)
    best = fastest(seconds, dense)
    return {
        "mac_density": macs(model, row.pixels, masks).ratio,
        "measured_sparsity": masks.sparsity(),
        **ratio(seconds[best], seconds["sparse"]),
        "goal": row.goals[sparsity],
        "best_dense": best,
        "left_out": [name for name in wanted if name not in dense],
        "notes": {name: callables[name].note for name in dense},
        "median_s": {name: float(np.median(taken)) for name, taken in seconds.items()},
        "relative_error": errors["sparse"],
        "errors": errors,
        "compile_s": compile_s,
        "engine": ours.note.partition(":")[0] if isinstance(ours, Prepared) else ours.engine,
        "precision": str(compiled.dtype).removeprefix("torch."),
        "reason": ours.note if isinstance(ours, Prepared) else ours.reason,
    }


def costs(work: str) -> Iterator[dict[str, Any]]:
    """Cells of a cost: a value that must not be above its goal."""
    of = ("resnet50", 224, 16, 0.9)
    if work == "growth":
        found = in_process("growth", "", "resnet18_cifar", 32, 4, 0.9, environment=dict(os.environ))
        what = f"growth over {found['calls']:,} calls, MiB"
        yield {**cost(what, found["bytes"] / 2**20, 1.0, found), "of": found}
        return
    with tempfile.TemporaryDirectory() as cache:
        place = {**os.environ, "SPARSE_TRANSFER_CACHE": cache}
        cold = in_process("inference", "sparse", *of, environment=place)
        warm = in_process("inference", "sparse", *of, environment=place)
    if work == "conversion":
        for words, found, goal in (("an empty", cold, 20.0), ("a full", warm, 3.0)):
            what = f"conversion of ResNet-50 90 % with {words} tuning cache, s"
            yield {**cost(what, found["seconds"], goal, found), "of": found}
        return
    dense = in_process("inference", "dense", *of, environment=dict(os.environ))
    for kind in ("peak", "resident"):
        value, limit = warm[f"{kind}_bytes"] / 2**20, dense[f"{kind}_bytes"] / 2**20
        what = f"ResNet-50 90 %, batch 16: {kind} memory, MiB (at most dense)"
        yield {**cost(what, value, limit, warm), "of": {"sparse": warm, "dense": dense}}


def main() -> int:
    """Print the table; the exit code is 0 whether goals are met or not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    every = [*ROWS, *COSTS]
    parser.add_argument("--rows", nargs="+", default=every, choices=every)
    parser.add_argument("--sparsities", nargs="+", type=float, help="those of the row if left out")
    parser.add_argument("--repeats", type=int, default=ROUNDS, help="timed rounds of a cell")
    parser.add_argument(
        "--dense", nargs="+", default=list(FLOAT32), choices=FLOAT32,
        help="dense engines; the row bf16 adds those in bf16",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, help="folder of trained weights, see TRAINED")
    parser.add_argument("--checkpoint", type=Path, help="measure this pruned network, too")
    add_options(parser)
    options = parser.parse_args()
    cells = Cells(options.json, "sparse_inference", options.again)
    print(machine())
    for name in [*options.rows, *(["checkpoint"] if options.checkpoint else [])]:
        if name in COSTS:
            key = {"row": name, "cost": True}
            found = cells.get(key, lambda work=name: {"figures": list(costs(work))})
            for figure in found["figures"]:
                goal = "none" if figure["goal"] is None else f"{figure['goal']:.1f}"
                text = f"{figure['value']:.1f}  goal {goal}"
                print(f"{figure['what']}: {text}  {verdict({**figure, 'at_most': True})}")
            continue
        row = own_row(options.checkpoint) if name == "checkpoint" else ROWS[name]
        print(f"{row.label} [{name}]")
        if row.allocation in ("global", "as it comes") and options.weights is None:
            print("# left out: trained weights are looked for in --weights FOLDER")
            continue
        if options.sparsities and not set(options.sparsities) & set(row.goals):
            print(f"# left out: it is measured at {', '.join(f'{s:g}' for s in row.goals)}")
        for sparsity in options.sparsities or row.goals:
            if sparsity in row.goals:
                key = {"row": row.label, "sparsity": sparsity, "repeats": options.repeats}
                key["engines"] = ["dense"] if row.own else options.dense
                _print(cells.get(key, lambda r=row, s=sparsity: measure_cell(
                    r, s, options.repeats, options.dense, options.weights
                )))  # fmt: skip
    return 0


def _print(cell: dict[str, Any]) -> None:
    medians = ", ".join(f"{k} {1e3 * v:.1f}" for k, v in cell["median_s"].items())
    print(
        f"  {cell['measured_sparsity']:>4.0%} (MACs {cell['mac_density']:.3f})  {shown(cell)}  "
        f"error {cell['relative_error']:.0e}  ms: {medians}; compiled in "
        f"{cell['compile_s']:.1f} s; {cell['engine']}, {cell['precision']}"
        + ("  (was there)" if cell.get("was_there") else ""),
        flush=True,
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))

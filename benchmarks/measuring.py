"""What the benchmarks of the sparse engine share: networks, rounds, cells kept in a file.

A cell is one figure with everything it was made of. `Cells` writes every finished one at once, so
that a long table that was interrupted goes on where it stopped. Every PASS or MISS is one of
`verdict`, and `benchmarks/tables.py` prints what the files hold.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import timm
import torch
from torch import Tensor, nn

from sparse_transfer import models, store, weights  # noqa: F401 - registers the small variants
from sparse_transfer.errors import UserError
from sparse_transfer.latency import median_interval
from sparse_transfer.pruning.allocation import Allocation
from sparse_transfer.pruning.criteria import Stage, magnitude, random, remove
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.sparse import library

SPARSITIES = (0.8, 0.9, 0.95, 0.98)
KEPT_DENSE = ("first_conv", "depthwise", "head")
WARMUP = 2  # untimed rounds before the timed ones


def machine() -> str:
    """What the figures hold for."""
    return (
        f"{library.cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"kernels {library.current().level}, {platform.system()}"
    )


def network(name: str, sparsity: float, allocation: Allocation) -> tuple[nn.Module, Masks]:
    """A network with random zeros whose activations keep a sane scale, and its masks."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    layers = prunable(model, KEPT_DENSE)
    masks = Masks.ones(layers)
    if sparsity:
        masks = remove(masks, [Stage(random(layers, generator))], sparsity, allocation)
    with torch.no_grad():
        for layer, weight in layers.items():
            kept = masks[layer]
            weight.mul_(kept * float(kept.float().mean().clamp_min(1e-6)) ** -0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
    return model, masks


def trained(
    file: Path, name: str, sparsity: float | None, **kwargs: Any
) -> tuple[nn.Module, Masks]:
    """A network with weights from a file, pruned by global magnitude, or with the zeros it has.

    Args:
        sparsity: of the weights that may be pruned; None leaves them as they are.

    Raises:
        UserError: the file does not fit.
    """
    model = timm.create_model(name, **kwargs).eval()
    models.load_strictly(model, weights.read(file), file)
    if sparsity is None:
        layers = prunable(model)
        return model, Masks({layer: weight != 0 for layer, weight in layers.items()})
    layers = prunable(model, KEPT_DENSE)
    masks = remove(Masks.ones(layers), [Stage(magnitude(layers))], sparsity, "global")
    masks.apply(layers.items())
    return model, masks


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, warmup: int = WARMUP
) -> dict[str, np.ndarray]:
    """Seconds (repeats,) of every run, each once per round.

    The order rotates, and every other round it is reversed, so that nothing has the same
    predecessor throughout (the threads of some engines spin on for a while).
    """
    names = list(runs)
    seconds = {name: np.empty(repeats) for name in names}
    for turn in range(warmup + repeats):
        shift = turn // 2 % len(names)
        order = names[shift:] + names[:shift]
        for name in order[:: -1 if turn % 2 else 1]:
            began = time.perf_counter()
            runs[name]()
            if turn >= warmup:
                seconds[name][turn - warmup] = time.perf_counter() - began
    return seconds


def ratio(reference: np.ndarray, own: np.ndarray) -> dict[str, Any]:
    """`speedup`, the median of reference / own over the rounds, and its 95 % `interval`."""
    ratios = reference / own
    return {"speedup": float(np.median(ratios)), "interval": median_interval(ratios)}


def fastest(seconds: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """Of the names, that of the smallest median."""
    return min(names, key=lambda name: float(np.median(seconds[name])))


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative error in the Euclidean norm, in float64."""
    exact = expected.double()
    return float((found.double() - exact).norm() / exact.norm())


def shown(cell: Mapping[str, Any]) -> str:
    """`3.07 [2.98, 3.15]  goal 3.0  PASS` of a cell with a speedup."""
    low, high = cell["interval"] or (float("nan"), float("nan"))
    text = f"{cell['speedup']:5.2f} [{low:.2f}, {high:.2f}]"
    if cell["goal"] is not None:
        text += f"  goal {cell['goal']:<4} {verdict(cell)}"
    return text + without(cell)


def without(cell: Mapping[str, Any]) -> str:
    """` (without openvino)` where rivals that were asked for could not be used."""
    return f" (without {', '.join(cell['left_out'])})" if cell.get("left_out") else ""


def cost(what: str, value: float, goal: float, found: Mapping[str, Any]) -> dict[str, Any]:
    """A figure that must not be above its goal; without one where `compile` chose PyTorch.

    Args:
        found: what was measured of our engine, and which one it was.
    """
    if found["engine"] == "dense":
        return {"what": f"{what} (of PyTorch, which compile chose)", "goal": None, "value": value}
    return {"what": what, "goal": goal, "value": value}


def verdict(cell: Mapping[str, Any]) -> str:
    """PASS or MISS of a cell with a `goal`, nothing where there is none.

    A speedup must reach its goal; a cost (`at_most`) must not be above it.
    """
    if cell["goal"] is None:
        return ""
    if cell.get("at_most"):
        return "PASS" if cell["value"] <= cell["goal"] else "MISS"
    return "PASS" if cell["speedup"] >= cell["goal"] else "MISS"


@final
class Cells:
    """Finished cells, in a file where there is one.

    Args:
        path: a JSON file, read if it exists; None keeps nothing.
        benchmark: whose cells they are.
        again: measure everything anew; old cells are replaced one by one.

    Raises:
        UserError: the file holds cells of another benchmark, of another machine or of kernels
            that were compiled otherwise.
    """

    def __init__(self, path: Path | None, benchmark: str, again: bool = False) -> None:
        self._path, self._again = path, again
        self._head: dict[str, Any] = {"benchmark": benchmark, "machine": machine()}
        self._head["kernels"] = library.digest()
        self._cells: list[dict[str, Any]] = []
        if path is None or not path.exists():
            return
        content = store.read_json(path)
        found = {key: content.get(key) for key in self._head}
        if found != self._head:
            raise UserError(
                f"{path} cannot be gone on with.",
                f"It holds {found['benchmark']} on {found['machine']}, kernels "
                f"{str(found['kernels'])[:8]}; this is {benchmark} on {self._head['machine']}, "
                f"kernels {self._head['kernels'][:8]}.",
                "Name another file with --json.",
            )
        self._head |= {key: value for key, value in content.items() if key != "cells"}
        self._cells = content["cells"]

    def facts(self, **facts: Any) -> None:
        """Keep something beside the cells."""
        self._head |= facts

    def fact(self, name: str) -> Any | None:
        """What is kept beside the cells, or None."""
        return None if self._again else self._head.get(name)

    def get(self, key: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The cell of this key, measured and written if it is not there yet."""
        old = next((c for c in self._cells if {k: c.get(k) for k in key} == key), None)
        if old is not None and not self._again:
            return {**old, "was_there": True}
        cell = {**key, **measure()}
        if old is None:
            self._cells.append(cell)
        else:
            self._cells[self._cells.index(old)] = cell
        if self._path is not None:
            store.write_json(self._path, {**self._head, "cells": self._cells})
        return cell

    def __iter__(self):
        return iter(self._cells)


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--json` and `--again`, which every table has."""
    parser.add_argument(
        "--json", type=Path, help="write the figures to this file, too; what it holds is kept"
    )
    parser.add_argument("--again", action="store_true", help="measure what the file holds anew")


def resident() -> int:
    """Bytes of this process in memory, after giving back to the system what is free (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def forget_peak() -> None:
    """Let `peak` count from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak() -> int:
    """Most bytes of this process in memory since `forget_peak`, or since it began (Linux)."""
    return _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024

"""How the sparse engine scales: threads, images, pixels and density, beside the machine's roofs.

    OMP_NUM_THREADS=2 python benchmarks/sparse_scaling.py --out docs/scaling

Inference of ResNet-18 under random uniform masks, one figure (SVG) for each direction and all
numbers in `scaling.json`; the rest stays at 224 px, batch 16, 10 % density. Useful operations are
counted: two per weight that is not zero and position, so a dense engine's rate shrinks with the
density. What is drawn:

- sparse: the engine as `sparse.compile` returns it, tuned for that point. A hollow mark is a point
  where it chose PyTorch.
- PyTorch: dense, eager, channels-last, batch norms folded; its useful rate.
- FMA roof: the multiply-adds of a square float32 matrix product of 1024 (`torch.mm`), a little
  below what the units can do.
- L2 roof: the kernels load one vector per multiply-add, so 8 bytes of input buy 4 operations once
  the inputs have left the first cache: half an operation for each byte that a matrix-vector product
  (`torch.mv`) reads per second from a matrix of 512 KiB per thread. The kernels can be above it by
  what they find in the first cache.
- memory roof: what must come from memory at least once in a call (packed weights of 8 bytes each,
  images and logits) at the rate of the same product with a matrix of 256 MiB.

Points that the JSON holds are not measured
again. The engine and PyTorch run in turns; a rate is that of the median.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from measuring import Cells, interleaved, machine, network

from sparse_transfer import plugins, store
from sparse_transfer.cost import macs
from sparse_transfer.errors import UserError
from sparse_transfer.report.canvas import Drawing, label_ends, panel, to_drawing
from sparse_transfer.report.colours import INK, MUTED, PALETTE
from sparse_transfer.sparse.engine import compile

MODEL = "resnet18"
ROUNDS, SECONDS = 9, 2.0  # timed rounds of a point; fewer where they would take longer
SIDE = 1024
IN_L2, IN_MEMORY = 512 * 1024, 256 * 2**20  # bytes of a matrix, per thread and in all


@dataclass(frozen=True)
class Point:
    """One measurement; `density` is that of the weights under the mask."""

    threads: int
    batch: int = 16
    pixels: int = 224
    density: float = 0.1


DIRECTIONS: dict[str, tuple[str, Sequence[float]]] = {
    "batch": ("images of a call", (1, 4, 8, 16, 64)),
    "pixels": ("pixels of a side", (32, 64, 112, 160, 224)),
    "density": ("density of the weights", (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)),
}


def points(direction: str, threads: Sequence[int]) -> Iterator[Point]:
    """Those of one figure."""
    if direction == "threads":
        for density in (0.05, 0.1, 0.2):
            yield from (Point(count, density=density) for count in threads)
        return
    kind = float if direction == "density" else int
    for count in threads:
        for value in DIRECTIONS[direction][1]:
            yield replace(Point(count), **{direction: kind(value)})


def best(run: Callable[[], object], seconds: float = 0.3) -> float:
    """Seconds of the fastest of as many runs as fit."""
    taken, end = [], time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


def roofs(threads: int) -> dict[str, float]:
    """10⁹ operations a second of a matrix product; 10⁹ bytes a second read from L2 and memory."""
    torch.set_num_threads(threads)
    a, b, made = (torch.randn(SIDE, SIDE) for _ in range(3))
    found = {"gflops": 2e-9 * SIDE**3 / best(lambda: torch.mm(a, b, out=made))}
    vector = torch.randn(SIDE)
    for name, size in (("l2", threads * IN_L2), ("memory", IN_MEMORY)):
        matrix = torch.randn(size // (4 * SIDE), SIDE)
        result = torch.empty(len(matrix))
        seconds = best(partial(torch.mv, matrix, vector, out=result))
        found[f"{name}_gbytes"] = 1e-9 * matrix.nbytes / seconds
    return found


def measure(point: Point) -> dict[str, Any]:
    """Useful operations a second of the engine and of PyTorch, and what the point needs."""
    torch.set_num_threads(point.threads)
    model, masks = network(MODEL, 1 - point.density, "uniform")
    example = torch.randn(point.batch, 3, point.pixels, point.pixels)
    dense = plugins.load("backend", "dense")().prepare(model, example)
    compiled = compile(model, example)
    runs = {"sparse": lambda: compiled(example), "dense": lambda: dense(example)}
    once = sum(float(s[0]) for s in interleaved(runs, 1, warmup=1).values())
    rounds = max(3, min(ROUNDS, int(SECONDS / once)))
    medians = {name: float(np.median(s)) for name, s in interleaved(runs, rounds, 0).items()}
    cost = macs(model, point.pixels, masks)
    operations = 2 * cost.sparse * point.batch
    stored = 8 * sum(int(torch.count_nonzero(p)) for p in model.parameters())
    passed = 4 * (example.numel() + 1000 * point.batch)
    return {
        "gflops": {name: 1e-9 * operations / seconds for name, seconds in medians.items()},
        "median_s": medians,
        "rounds": rounds,
        "operations": operations,
        "bytes": stored + passed,
        "mac_density": cost.ratio,
        "engine": compiled.engine,
    }


def bounds(cell: dict[str, Any], roof: dict[str, float]) -> dict[str, float]:
    """The roofs of one point in 10⁹ useful operations a second."""
    return {
        "FMA": roof["gflops"],
        "L2": roof["l2_gbytes"] / 2,
        "memory": roof["memory_gbytes"] * cell["operations"] / cell["bytes"],
    }


def figure(
    direction: str, cells: Sequence[dict[str, Any]], measured: dict[int, dict[str, float]]
) -> Drawing:
    """The rates of one direction, with the roofs of each number of threads."""
    by_threads = direction == "threads"
    label = "threads" if by_threads else DIRECTIONS[direction][0]
    title = f"Useful operations by {label}"
    image, axes = panel(title, "10⁹ useful operations a second", right=1.45, bottom=0.55)
    rows, ends = [], []
    lines = sorted({c["density" if by_threads else "threads"] for c in cells})
    for place, line in enumerate(lines):
        own = [c for c in cells if c["density" if by_threads else "threads"] == line]
        own.sort(key=lambda c: c[direction])
        x = [c[direction] for c in own]
        words = f"{line:.0%} kept" if by_threads else f"{line} thread{'s' * (line > 1)}"
        colour = PALETTE[place]
        for name, style in (("sparse", "-"), ("dense", ":")):
            y = [c["gflops"][name] for c in own]
            axes.plot(x, y, style, color=colour, linewidth=1.6 if name == "sparse" else 1.1)
            ends.append((y[-1], words if name == "sparse" else f"PyTorch, {line:g}", colour))
        for c in own:
            fill = colour if c["engine"] == "sparse" else "none"
            at = (c[direction], c["gflops"]["sparse"])
            axes.plot(*at, marker="o", color=colour, markerfacecolor=fill)
            roof = bounds(c, measured[c["threads"]])
            rows.append({**{k: c[k] for k in asdict(Point(1))}, **c["gflops"], **roof})
        if not by_threads or place == 0:
            ends += _draw_roofs(axes, own, direction, measured, "" if by_threads else f", {line:g}")
    ticks = sorted({c[direction] for c in cells})
    axes.set_yscale("log", base=2)
    if not by_threads:
        axes.set_xscale("log", base=2)
    highest = 1.15 * max(roof["gflops"] for roof in measured.values())
    lowest = min(v for c in cells for v in c["gflops"].values())
    axes.set_ylim(max(lowest / 1.2, highest / 128), highest)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(label)
    low, high = axes.get_ylim()
    label_ends(axes, [(min(max(y, low), high), words, colour) for y, words, colour in ends])
    caption = "Solid: the engine (hollow: it chose PyTorch). Dotted: PyTorch. Dashed: roofs."
    return to_drawing(image, f"scaling-{direction}", title, caption, pd.DataFrame(rows))


def _draw_roofs(
    axes: Any, own: Sequence[dict[str, Any]], direction: str,
    measured: dict[int, dict[str, float]], suffix: str,
) -> list[tuple[float, str, str]]:  # fmt: skip
    """Dashed lines, those that lie inside the figure; where they end and what they are called."""
    ends = []
    found = [bounds(c, measured[c["threads"]]) for c in own]
    top = max(f["FMA"] for f in found)
    for name, dash in (("FMA", (6, 2)), ("L2", (3, 2)), ("memory", (1, 2))):
        y = [f[name] for f in found]
        if min(y) > top:
            continue
        colour = INK if name == "FMA" else MUTED
        style = {"color": colour, "linewidth": 0.9, "linestyle": (0, dash), "zorder": 1}
        axes.plot([c[direction] for c in own], [min(v, 4 * top) for v in y], **style)
        if y[-1] <= top:
            ends.append((y[-1], f"{name}{suffix}", colour))
    return ends


def main() -> int:
    """Measure what is not there yet, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    every = ["threads", *DIRECTIONS]
    parser.add_argument("--directions", nargs="+", default=every, choices=every)
    parser.add_argument(
        "--threads", nargs="+", type=int, help="default: 1 and as many as PyTorch has"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures")
    parser.add_argument("--again", action="store_true", help="measure everything anew")
    options = parser.parse_args()
    threads = options.threads or sorted({1, torch.get_num_threads()})
    options.out.mkdir(parents=True, exist_ok=True)
    print(machine())
    cells = Cells(options.out / "scaling.json", "sparse_scaling", options.again)
    measured = {
        count: cells.get({"roofs": count}, lambda t=count: roofs(t))
        for count in threads
    }  # fmt: skip
    for count, roof in measured.items():
        print(
            f"{count} threads: {roof['gflops']:.0f} GF/s, L2 {roof['l2_gbytes']:.0f} GB/s, memory "
            f"{roof['memory_gbytes']:.0f} GB/s"
        )
    for direction in options.directions:
        found = []
        for point in points(direction, threads):
            cell = cells.get(asdict(point), lambda p=point: measure(p))
            found.append(cell)
            rates = cell["gflops"]
            print(
                f"{direction}: {json.dumps(asdict(point))}: sparse {rates['sparse']:.1f} GF/s, "
                f"PyTorch {rates['dense']:.1f}; {cell['engine']}",
                flush=True,
            )
        drawing = figure(direction, found, measured)
        path = options.out / f"{drawing.name}.svg"
        with store.replacing(path) as temporary:
            temporary.write_text(drawing.file, encoding="utf-8")
        print(f"{path}: {drawing.caption}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))

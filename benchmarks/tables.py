"""Markdown tables from the JSON files of the sparse benchmarks, so that no figure is typed by hand.

    python benchmarks/tables.py inference.json training.json layers.json scaling.json
    python benchmarks/tables.py inference.json --into docs/when-zeros-pay.md

The second puts them between `<!-- sparse_inference -->` and `<!-- /sparse_inference -->` of a page;
between `<!-- sparse_inference goals -->` and `<!-- /sparse_inference goals -->` go those with goals
that ask for more than not to be slower, those that are missed, and costs.
Every table is headed by its machine. A cell is a median with its 95 % interval, the goal where
there is one, and PASS or MISS; sparsity and MAC density are percentages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import verdict, without

from sparse_transfer import store
from sparse_transfer.errors import UserError

Cell = dict[str, Any]


def goals(cells: Iterable[Cell], part: str | None = None) -> Iterator[str]:
    """A line for each row, a column for each sparsity; `part` of each cell, or the whole."""
    rows: dict[str, dict[float, str]] = {}
    for cell in cells:
        figures = cell if part is None else cell.get(part)
        if figures is not None:
            rows.setdefault(cell["row"], {})[cell["sparsity"]] = _figure(figures)
    levels = sorted({level for row in rows.values() for level in row})
    yield from _table(
        ["work", *(f"{level:.4g} %" for level in (100 * x for x in levels))],
        ([name, *(row.get(level, "") for level in levels)] for name, row in rows.items()),
    )


def densities(cells: Iterable[Cell]) -> Iterator[str]:
    """What speed depends on: MACs left, beside the sparsity that they come from."""
    yield from _table(
        ["work", "zeros, %", "MACs left, %", "× best dense", "which", "engine", "compiled in, s"],
        (
            [
                cell["row"], f"{100 * cell['measured_sparsity']:.1f}",
                f"{100 * cell['mac_density']:.1f}", _interval(cell), cell["best_dense"],
                f"{cell['engine']}, {cell['precision']}", f"{cell['compile_s']:.1f}",
            ]
            for cell in sorted(cells, key=lambda cell: cell["mac_density"])
        ),
    )  # fmt: skip


def inference(cells: Sequence[Cell]) -> Iterator[str]:
    """Goals, then everything against MAC density, then costs."""
    timed = [cell for cell in cells if "speedup" in cell]
    yield "### Inference, × best dense\n"
    yield from goals(timed)
    yield "\n### Inference against MAC density\n"
    yield from densities(timed)
    yield from costs(cells)


def inference_goals(cells: Sequence[Cell]) -> Iterator[str]:
    """What has a goal that asks for more than not to be slower, or is missed, then costs."""
    yield "### Inference, × best dense\n"
    timed = (cell for cell in cells if "speedup" in cell and cell["goal"] is not None)
    yield from goals(cell for cell in timed if cell["goal"] > 1 or verdict(cell) == "MISS")
    yield from costs(cells)


def costs(cells: Sequence[Cell]) -> Iterator[str]:
    """What must not be above a limit."""
    figures = [figure for cell in cells if cell.get("cost") for figure in cell["figures"]]
    if figures:
        yield "\n### Costs\n"
        rows = (
            [
                c["what"],
                f"{c['value']:.1f}",
                "" if c["goal"] is None else f"{c['goal']:.1f}",
                verdict({**c, "at_most": True}),
            ]  # fmt: skip
            for c in figures
        )
        yield from _table(["cost", "measured", "at most", ""], rows)


def training(cells: Sequence[Cell]) -> Iterator[str]:
    """Both tables of goals, then memory."""
    yield from training_goals(cells)
    memory = [cell for cell in cells if cell.get("memory")]
    if memory:
        yield "\n### Parameters, gradients and optimizer state, MiB (peak of the process)\n"
        names = list(memory[0]["of"])
        rows = (
            [c["row"], f"{100 * c['sparsity']:.4g}", *(_memory(c["of"][n]) for n in names)]
            for c in memory
        )
        yield from _table(["work", "zeros, %", *names], rows)


def training_goals(cells: Sequence[Cell]) -> Iterator[str]:
    """Against dense float32, and against the best of any precision."""
    yield "### One training step, × best dense float32\n"
    yield from goals(cells, "float32")
    yield "\n### One training step, × best dense including bf16\n"
    yield from goals(cells, "any")


def layers(cells: Sequence[Cell]) -> Iterator[str]:
    """Single layers, with PyTorch tensors in and out."""
    yield "### Single layers, × PyTorch and × SparseProp\n"
    head = ["layer", "zeros, %", "forward", "both", "forward / SparseProp", "both / SparseProp"]
    kinds = ("forward", "both", "forward_over_sparseprop", "both_over_sparseprop")
    rows = (
        [
            "{}×{} {k}×{k} /{} {} px, {} images".format(*c["shape"][:2], *c["shape"][3:],
                                                        k=c["shape"][2]),
            f"{100 * c['sparsity']:.4g}",
            *(_figure(c[kind]) if kind in c else "" for kind in kinds),
            f"{c['kernel_gflops']:.0f}",
        ]
        for c in cells
    )  # fmt: skip
    yield from _table([*head, "kernel, GF/s"], rows)


def scaling(cells: Sequence[Cell]) -> Iterator[str]:
    """Useful rates of all points, and the roofs."""
    yield "### Roofs\n"
    roofs = [c for c in cells if "roofs" in c]
    yield from _table(
        ["threads", "FMA, GF/s", "L2, GB/s", "memory, GB/s"],
        ([str(c["roofs"]), *(f"{c[k]:.0f}" for k in ("gflops", "l2_gbytes", "memory_gbytes"))]
         for c in roofs),
    )  # fmt: skip
    yield "\n### Useful operations, 10⁹ a second\n"
    keys = ("threads", "batch", "pixels", "density")
    rows = (
        [*(f"{c[k]:g}" for k in keys), f"{100 * c['mac_density']:.1f}"]
        + [f"{c['gflops'][name]:.1f}" for name in ("sparse", "dense")]
        + [c["engine"]]
        for c in sorted((c for c in cells if "gflops" in c and "batch" in c),
                        key=lambda c: [c[k] for k in keys])
    )  # fmt: skip
    yield from _table([*keys, "MACs left, %", "sparse", "PyTorch", "engine"], rows)


KINDS: dict[str, Callable[[Sequence[Cell]], Iterator[str]]] = {
    "sparse_inference": inference,
    "sparse_training": training,
    "sparse_layers": layers,
    "sparse_scaling": scaling,
}
SHORT = {"sparse_inference": inference_goals, "sparse_training": training_goals}


def opened(path: Path) -> tuple[str, dict[str, Any]]:
    """The benchmark of a file, and what the file holds.

    Raises:
        UserError: it is not of one of these benchmarks.
    """
    content = store.read_json(path)
    kind = content.get("benchmark") if isinstance(content, dict) else None
    if kind not in KINDS:
        raise UserError(f"{path} holds no tables.", f"Its benchmark is {kind}; {', '.join(KINDS)}.")
    return kind, content


def document(
    content: dict[str, Any], tables: Callable[[Sequence[Cell]], Iterator[str]]
) -> Iterator[str]:
    """The machine, and the tables of its cells."""
    yield f"{content['machine']}\n"
    yield from tables(content["cells"])
    yield ""


def filled(page: str, kind: str, content: dict[str, Any]) -> str:
    """The page with tables between the marks of a benchmark, in the place of what was there.

    Raises:
        UserError: the page has no such marks.
    """
    places = {kind: KINDS[kind]} | ({f"{kind} goals": SHORT[kind]} if kind in SHORT else {})
    is_found = False
    for name, tables in places.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        head, found, rest = page.partition(start)
        _, closed, tail = rest.partition(end)
        if found and not closed:
            raise UserError(f"The page has a place for {name} without an end.", f"It lacks {end}.")
        if found:
            page, is_found = "\n".join([head + start, *document(content, tables), end + tail]), True
    if not is_found:
        marks = " or ".join(f"<!-- {name} --> and <!-- /{name} -->" for name in places)
        raise UserError(f"The page has no place for {kind}.", f"It lacks {marks}.")
    return page


def _interval(figures: Cell) -> str:
    text = f"{figures['speedup']:.2f}"
    if figures["interval"] is not None:
        low, high = figures["interval"]
        text += f" [{low:.2f}, {high:.2f}]"
    return text


def _figure(figures: Cell) -> str:
    text = _interval(figures)
    if figures["goal"] is not None:
        text += f", {figures['goal']:g}: {verdict(figures)}"
    return text + without(figures)


def _memory(found: Cell) -> str:
    trained = sum(found[f"{kind}_bytes"] for kind in ("parameter", "gradient", "optimizer"))
    return f"{trained / 2**20:.0f} ({found['peak_bytes'] / 2**20:.0f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def main() -> int:
    """Print the tables of all files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="JSON files of the sparse benchmarks")
    parser.add_argument("--into", type=Path, help="write them into this page, do not print them")
    options = parser.parse_args()
    for path in options.files:
        kind, content = opened(path)
        if options.into is None:
            sys.stdout.write("\n".join(document(content, KINDS[kind])) + "\n")
            continue
        page = filled(options.into.read_text(encoding="utf-8"), kind, content)
        with store.replacing(options.into) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))

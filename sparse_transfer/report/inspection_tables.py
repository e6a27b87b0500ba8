"""The table of `inspect` on a terminal: layers, totals, and the sentences under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def print_inspection(
    rows: Sequence[Mapping[str, Any]],
    *,
    timed: bool,
    full_seconds: Mapping[str, float] | None = None,
    changes: Mapping[str, Mapping[float, float]] | None = None,
) -> None:
    """One line per layer.

    Args:
        rows: as `LayerRow` has them.
        timed: whether there are times at all.
        full_seconds: of the layers of the dense model beside it, by path.
        changes: change of accuracy by layer and level.
    """
    backends = sorted({name for row in rows for name in row["sparse_seconds"]})
    levels = sorted({level for change in (changes or {}).values() for level in change})
    names = ["layer", "shape", "weights", "density", "MACs", "dead out", "dead in"]
    names += ["ms dense"] * timed + [f"ms {name}" for name in backends]
    names += ["ms full model"] * (full_seconds is not None)
    names += [f"at {100 * level:g} %" for level in levels]
    table = Table(box=box.SIMPLE_HEAD)
    for name in names:
        left = name in ("layer", "shape")
        table.add_column(
            name, justify="left" if left else "right", overflow="fold", no_wrap=name == "layer"
        )
    for row in rows:
        cells = [
            row["layer"],
            "×".join(map(str, row["shape"])),
            f"{row['weights']:,}",
            f"{row['density']:.3f}",
            f"{row['macs_share']:.1%}",
            _some(row["dead_outputs"], row["outputs"]),
            _some(row["dead_inputs"], row["inputs"]),
        ]
        cells += [_milliseconds(row["seconds"])] * timed
        cells += [_milliseconds(row["sparse_seconds"].get(name)) for name in backends]
        if full_seconds is not None:
            cells.append(_milliseconds(full_seconds.get(row["layer"])))
        own = (changes or {}).get(row["layer"], {})
        cells += [f"{100 * own[level]:+.1f}" if level in own else "" for level in levels]
        table.add_row(*cells)
    console = Console()
    if not console.is_terminal:  # in a file nothing needs to be folded
        needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
        console = Console(width=max(needed, console.width))
    console.print(table)
    if backends:
        console.print(
            f"ms {', ms '.join(backends)}: each layer by itself, with the way into the layout and "
            "back, which a whole network does not pay: use bench."
        )


def totals_line(totals: Mapping[str, Any]) -> str:
    """The sums of one network in a sentence."""
    ratio = totals["macs"] / max(totals["macs_zeros_skipped"], 1)
    skipped = "" if ratio == 1 else f" ({ratio:.2f} times fewer with zeros skipped)"
    words = (
        f"{totals['title']}: {totals['layers']} layers, {totals['weights']:,} weights, "
        f"{totals['density']:.2%} of them not zero; {totals['macs'] / 1e6:,.1f} million MACs"
        f"{skipped}; {totals['dead_outputs']:,} of {totals['outputs']:,} output and "
        f"{totals['dead_inputs']:,} of {totals['inputs']:,} input channels dead"
    )
    if totals["seconds"] is not None:
        words += (
            f". Dense, the whole network takes {1e3 * totals['seconds']:.2f} ms, and these layers, "
            f"each by itself, add up to {1e3 * (totals['layer_seconds'] or 0):.2f} ms"
        )
    return words + "."


def _some(count: int, of: int) -> str:
    return f"{count} of {of}" if count else "0"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3f}"

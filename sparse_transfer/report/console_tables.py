"""The tables of `plan` and `bench` on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from sparse_transfer.backends import uses_zeros

_AGGREGATES = ("mean of ratios, %", "ratio of means, %")
_BENCH = ("batch", "median ms", "p10", "p90", "p99", "images/s")
_NUMBERS = ("about", "disk", *_BENCH, "weights", "zeros", *_AGGREGATES, "tasks")
_LEFT_OUT = ("p10", "p99", "p90", "images/s")  # on a narrow terminal, in this order
_WHOLE = ("id", "backend", "layer")  # names are never broken
_NOISY = 2.0  # p90 over p10 from which a median is not worth quoting


def print_plan(rows: Sequence[Mapping[str, Any]], missing: Sequence[Mapping[str, Any]]) -> None:
    """Runs with status and forecast, then totals of what is left to do."""
    table = _table("id", "stage", "run", "status", "about", "disk")
    for row in rows:
        table.add_row(
            row["id"],
            row["stage"],
            row["title"],
            row["status"],
            _seconds(row["seconds"]),
            _bytes(row["bytes"]),
        )
    console = Console()
    console.print(table)
    left = [row for row in rows if row["status"] != "finished"]
    text = f"{len(rows)} runs, {len(rows) - len(left)} finished"
    if any(row["seconds"] is not None for row in rows):
        seconds = _seconds(sum(row["seconds"] or 0 for row in left)) or "nothing"
        disk = _bytes(sum(row["bytes"] or 0 for row in left)) or "nothing"
        text += f"; left to do: about {seconds} (good to a factor of two), {disk} of disk"
    console.print(text)
    for item in missing:
        console.print(f"arm {item['arm']}, {item['what']} cannot be run here:", style="bold")
        console.print(item["error"], highlight=False)


def print_bench(rows: Sequence[Mapping[str, Any]]) -> None:
    """Latency per batch size and backend; below, whether it uses zeros and how exact it is."""
    console = Console()
    if rows:
        first = rows[0]
        console.print(
            f"{first['device']}, {first['threads']} threads, {first['image_size']} px, "
            f"{first['repeats']} rounds",
            highlight=False,
        )
    print_fitting(console, lambda left_out: _bench_table(rows, left_out), _LEFT_OUT)
    if rows and all(row["over"] is None for row in rows):
        console.print("For a speedup, name the dense model's checkpoint: --dense.")
    for name in dict.fromkeys(row["backend"] for row in rows):
        own = [row for row in rows if row["backend"] == name]
        console.print(f"{name}: {_exactness(own)}", highlight=False, soft_wrap=True)
        for batch, note in dict.fromkeys((r["batch_size"], r.get("note", "")) for r in own):
            if note:
                console.print(f"  batch {batch}: {note}", highlight=False, soft_wrap=True)
    for text in dict.fromkeys(text for row in rows for text in said_of_nothing(row)):
        console.print(text, style="bold", highlight=False, soft_wrap=True)
    for row in rows:
        if row["p90_s"] > _NOISY * row["p10_s"]:
            spread = row["p90_s"] / row["p10_s"]
            console.print(
                f"{row['backend']}, batch {_batch(row)}: p90 is {spread:.1f} times p10. "
                "The machine was busy; measure again when it is idle before quoting this."
            )


def said_of_nothing(row: Mapping[str, Any]) -> list[str]:
    """Why a time says little about zeros: the network, or a part of it, computes a constant."""
    said = []
    if row.get("is_constant"):
        said.append(
            f"The outputs for different images differ by {row['dependence']:.0e} of their size: "
            "the network computes a constant, and its time says nothing."
        )
    if count := row.get("zero_layers", 0):
        layers = "1 layer has" if count == 1 else f"{count} layers have"
        said.append(
            f"{layers} no weight left, or a batch norm that multiplies by zero: whole branches "
            "may be skipped, and the time says little of other networks."
        )
    return said


def _bench_table(rows: Sequence[Mapping[str, Any]], left_out: Sequence[str]) -> Table:
    """The rows, and after those of the same rounds the dense models that they are compared with."""
    is_compared = any(_speedup(row) for row in rows)
    names = [name for name in ("backend", *_BENCH) if name not in left_out]
    table = _table(*names, *["speedup [95 %]"] * is_compared)
    for _, part in groupby(rows, lambda row: (row["batch_size"], row["idle_ms"])):
        own = list(part)
        dense = {row["over"]: row for row in own if _speedup(row)}
        lines = [(row["backend"], row, "", _speedup(row)) for row in own]
        lines += [(f"{name} (dense model)", row, "over_", "") for name, row in dense.items()]
        for name, row, prefix, speedup in lines:
            median = row[f"{prefix}median_s"]
            cells = {
                "backend": name,
                "batch": _batch(row),
                "median ms": f"{1e3 * median:.2f}",
                **{p: f"{1e3 * row[f'{prefix}{p}_s']:.2f}" for p in ("p10", "p90", "p99")},
                "images/s": f"{row['batch_size'] / median if prefix else row['images_per_s']:.4g}",
            }
            table.add_row(*(cells[each] for each in names), *[speedup] * is_compared)
    return table


def _speedup(row: Mapping[str, Any]) -> str:
    """The ratio and whom it is over; nothing for a backend that zeros do not make faster."""
    if row["speedup"] is None or not uses_zeros(row["uses_zeros"]):
        return ""
    low, high = row["speedup_low"], row["speedup_high"]
    interval = f" [{low:.2f}, {high:.2f}]" if low else ""
    return f"{row['speedup']:.2f}×{interval} over {row['over']}"


def _batch(row: Mapping[str, Any]) -> str:
    return f"{row['batch_size']}" + (f" after {row['idle_ms']} ms" if row["idle_ms"] else "")


def _exactness(rows: Sequence[Mapping[str, Any]]) -> str:
    """What one backend is to zeros and to rounding."""
    row, error = rows[0], max(row["relative_error"] for row in rows)
    zeros = row["uses_zeros"]
    if uses_zeros(zeros) and all(each.get("note", "").startswith("dense:") for each in rows):
        zeros = "dense, as zeros skipped are not faster here"
    words = f"{zeros}; largest error {error:.0e} of the largest output"
    if "accuracy" in row:
        own, exact = 100 * row["accuracy"], 100 * row["accuracy_float32"]
        words += f"; accuracy {own:.1f} %, in float32 {exact:.1f} %"
    elif "agreement" in row:
        words += f"; {100 * row['agreement']:.1f} % of its predictions are those of float32"
    if "scored_images" in row:
        words += f" ({row['scored_images']} test images)"
    return words


def print_imported(told: Mapping[str, Any]) -> None:
    """What an imported set holds, what it lacks, and its relative error increases."""
    console = Console()
    console.print(f"{told['name']}: {told['rows']:,} rows · {told['origin']}", style="bold")
    for source in told["sources"]:
        fewest, most = source["fewest_seeds"], source["most_seeds"]
        seeds = f"{fewest} to {most} seeds" if fewest < most else f"{most} seed{'s' * (most > 1)}"
        again = f", {source['repeated']} lines repeat a key" if source["repeated"] else ""
        console.print(
            f"  {source['source']}: {', '.join(source['models'])}, {', '.join(source['modes'])}, "
            f"{source['rows']:,} rows, {source['cells']:,} cells, {seeds} per cell{again}",
            highlight=False,
            soft_wrap=True,
        )
    for text in told["left_out"]:
        console.print(f"left out: {text}", style="bold", highlight=False, soft_wrap=True)
    console.print("Relative error increase over dense:")
    blocks: dict[str, Table] = {}
    for row in told["summary"]:
        title = f"{row['model']}, {row['mode']} ({told['origin']})"
        if title not in blocks:
            blocks[title] = _table("method", "sparsity", *_AGGREGATES, "tasks")
            blocks[title].title = title
        blocks[title].add_row(
            row["method"],
            f"{row['sparsity']:g}",
            _change(row["mean_of_ratios"]),
            _change(row["ratio_of_means"]),
            str(row["n_tasks"]),
        )
    for table in blocks.values():
        console.print(table)


def _change(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}".replace("-", "−")


def print_effective_layers(rows: Sequence[Mapping[str, Any]]) -> None:
    """The layers of an imported checkpoint that have zeros, and how many."""
    table = _table("layer", "weights", "zeros", "dead channels")
    for row in rows:
        dead = f"{row['dead_channels']} of {row['channels']}" if "channels" in row else ""
        table.add_row(row["layer"], f"{row['weights']:,}", f"{1 - row['density']:.2%}", dead)
    Console().print(table)


def print_fitting(
    console: Console, made: Callable[[Sequence[str]], Table], droppable: Sequence[str]
) -> None:
    """Print a table with as few columns left out as fit on the terminal; with all into a file.

    Args:
        made: the table without some columns.
        droppable: these may be left out, the first first.
    """
    if not console.is_terminal:
        width = Measurement.get(console, console.options.update(max_width=1000), made(())).maximum
        Console(width=max(width, console.width)).print(made(()))
        return
    for count in range(len(droppable) + 1):
        table = made(droppable[:count])
        if Measurement.get(console, console.options.update(max_width=1000), table).maximum <= (
            console.width
        ):
            break
    console.print(table)
    if count:
        console.print(f"Left out, as the terminal is narrow: {', '.join(droppable[:count])}.")


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        right = column in _NUMBERS
        table.add_column(
            column, justify="right" if right else "left", overflow="fold", no_wrap=column in _WHOLE
        )
    return table


def _seconds(value: float | None) -> str:
    if not value:
        return ""
    if value < 90:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _bytes(value: float | None) -> str:
    if not value:
        return ""
    return f"{value / 1e6:.1f} MB" if value < 1e9 else f"{value / 1e9:.1f} GB"

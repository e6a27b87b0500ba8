"""The tables of `plan` and `bench` on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_AGGREGATES = ("mean of ratios, %", "ratio of means, %")
_BENCH = ("batch", "median ms", "p10", "p90", "p99", "images/s")
_NUMBERS = ("about", "disk", *_BENCH, "weights", "zeros", *_AGGREGATES, "tasks")
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
    table = _table("backend", *_BENCH, "speedup over dense [95 %]")
    for row in rows:
        speedup = ""
        if row["speedup"] is not None:
            low, high = row["speedup_low"], row["speedup_high"]
            speedup = f"{row['speedup']:.2f}×" + (f" [{low:.2f}, {high:.2f}]" if low else "")
            speedup += "" if row["over"] == row["backend"] else f" over {row['over']}"
        table.add_row(
            row["backend"],
            _batch(row),
            *(f"{1e3 * row[name]:.2f}" for name in ("median_s", "p10_s", "p90_s", "p99_s")),
            f"{row['images_per_s']:.4g}",
            speedup,
        )
    console.print(table)
    for name in dict.fromkeys(row["backend"] for row in rows):
        own = [row for row in rows if row["backend"] == name]
        console.print(f"{name}: {_exactness(own)}", highlight=False, soft_wrap=True)
    for row in rows:
        if row["p90_s"] > _NOISY * row["p10_s"]:
            spread = row["p90_s"] / row["p10_s"]
            console.print(
                f"{row['backend']}, batch {_batch(row)}: p90 is {spread:.1f} times p10. "
                "The machine was busy; measure again when it is idle before quoting this."
            )


def _batch(row: Mapping[str, Any]) -> str:
    return f"{row['batch_size']}" + (f" after {row['idle_ms']} ms" if row["idle_ms"] else "")


def _exactness(rows: Sequence[Mapping[str, Any]]) -> str:
    """What one backend is to zeros and to rounding."""
    row, error = rows[0], max(row["relative_error"] for row in rows)
    words = f"{row['uses_zeros']}; largest error {error:.0e} of the largest output"
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


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        right = column in _NUMBERS
        table.add_column(column, justify="right" if right else "left", overflow="fold")
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

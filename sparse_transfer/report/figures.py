"""Figures of results: increase by sparsity, accuracy by task, heat map, values by layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from sparse_transfer.report.canvas import (
    WIDTH,
    Drawing,
    fill_of,
    label_ends,
    legend,
    legend_columns,
    panel,
    percent,
    room_for,
    short,
    signed,
    to_drawing,
)
from sparse_transfer.report.cells import records
from sparse_transfer.report.colours import BETTER, INK, MUTED, WORSE, Looks

LINEAR_UP_TO = 20  # percent, where one method is so far off that the others would lie on a line
TICKS = (-50, -20, -10, 0, 10, 20, 50, 100, 200, 500, 1000, 2000)


def increase_by_sparsity(
    frame: pd.DataFrame,
    looks: Looks,
    *,
    limits: tuple[float, float],
    name: str,
    title: str,
    caption: str,
) -> Drawing:
    """Relative error increase by sparsity, one line per method, with its interval.

    Args:
        frame: columns method, sparsity, increase, low, high (fractions; low/high may be missing).
        limits: the range of the axis, see `common_limits`; panels beside each other may share it.
    """
    figure, axes = panel(title, "relative error increase over dense, %, lower is better")
    levels = sorted(frame["sparsity"].unique())
    ends = []
    count = frame["method"].nunique()
    for place, (method, part) in enumerate(frame.sort_values("sparsity").groupby("method")):
        colour, marker = looks[str(method)]
        shift = (place - (count - 1) / 2) * min(0.08, 0.5 / count)
        x = [levels.index(value) + shift for value in part["sparsity"]]
        y = [100 * value for value in part["increase"]]
        axes.plot(x, y, color=colour, marker=marker, markeredgewidth=0, zorder=3)
        for at, low, high in zip(x, part["low"], part["high"], strict=True):
            if not (math.isnan(low) or math.isnan(high)):
                axes.plot([at, at], [100 * low, 100 * high], color=colour, linewidth=1.1, zorder=2)
        ends.append((y[-1], str(method), colour))
    axes.axhline(0, color=INK, linewidth=0.9)
    if _has_outliers(frame["increase"]):
        axes.set_yscale("symlog", linthresh=LINEAR_UP_TO, linscale=1.4)
        axes.yaxis.set_major_locator(FixedLocator(TICKS))
        axes.yaxis.set_minor_locator(NullLocator())
        caption += f" Above {LINEAR_UP_TO} % the scale is logarithmic."
        lowest = min(0.0, *frame[["increase", "low"]].min().dropna())
        limits = (1.2 * lowest - 0.03, 1.3 * limits[1])
    axes.set_ylim(100 * limits[0], 100 * limits[1])
    axes.set_xlim(-0.35, len(levels) - 1 + 0.35)
    axes.xaxis.set_major_locator(FixedLocator(range(len(levels))))
    axes.set_xticklabels([f"{percent(value)} sparse" if value else "no zeros" for value in levels])
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))
    label_ends(axes, [*ends, (0.0, "dense", INK)])
    return to_drawing(figure, name, title, caption, frame)


def _has_outliers(increases: pd.Series) -> bool:
    """Whether the largest increase is ten times the usual one, and large."""
    size = 100 * increases.abs()
    return bool(size.max() > 10 * max(size.median(), LINEAR_UP_TO / 2))


def accuracy_by_task(
    frame: pd.DataFrame,
    looks: Looks,
    *,
    tasks: Sequence[str],
    name: str,
    title: str,
    caption: str,
) -> Drawing:
    """A dot plot: one row per task, dense as a line, methods as dots, filled by sparsity.

    Args:
        frame: columns method, sparsity, task, value (fraction, the task's own metric).
        tasks: the rows, from top to bottom.
    """
    dense = frame[frame["method"] == "dense"].groupby("task")["value"].mean()
    order = [task for task in reversed(tasks) if task in set(frame["task"])]
    sparse = frame[frame["method"] != "dense"]
    methods = sorted(sparse["method"].unique())
    levels = sorted(sparse["sparsity"].unique())
    keys = ["dense", *methods, *(percent(level) for level in levels[1:]), "80 %"]
    bottom = 0.37 + 0.18 * math.ceil(len(keys) / legend_columns(keys))
    inches = 0.7 + bottom + len(order) * max(0.3, 0.09 + 0.09 * len(methods))
    figure, axes = panel(
        title, "accuracy on the test set, %", inches=inches, left=room_for(order), bottom=bottom
    )
    for task, value in dense.items():
        row = order.index(str(task))
        axes.plot([100 * value] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=1.8, zorder=4)
    for place, method in enumerate(methods):
        colour, marker = looks[method]
        shift = ((len(methods) - 1) / 2 - place) * min(0.2, 0.66 / len(methods))
        for level, part in sparse[sparse["method"] == method].groupby("sparsity"):
            fill = fill_of(levels.index(level), len(levels), colour)
            y = [order.index(task) + shift for task in part["task"]]
            x = [100 * value for value in part["value"]]
            dots = {"linestyle": "none", "marker": marker, "markeredgecolor": colour, "zorder": 3}
            axes.plot(x, y, markerfacecolor=fill, markersize=5, markeredgewidth=1.1, **dots)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.yaxis.set_major_locator(FixedLocator(range(len(order))))
    axes.set_yticklabels(order, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    legend(figure, {name: looks[name] for name in methods}, levels, has_dense=len(dense) > 0)
    return to_drawing(figure, name, title, caption, frame)


def heat_map(
    frame: pd.DataFrame, *, tasks: Sequence[str], name: str, title: str, caption: str
) -> Drawing:
    """Relative error increase of every task (rows) under every method and sparsity (columns).

    Args:
        frame: columns method, sparsity, task, increase (fraction).
        tasks: the rows, from top to bottom.
    """
    shown = frame[["method", "sparsity"]].drop_duplicates().sort_values(["method", "sparsity"])
    cells = [(row["method"], row["sparsity"]) for row in records(shown)]
    methods = Counter(method for method, _ in cells)
    tasks = [task for task in tasks if task in set(frame["task"])]
    largest = float(frame["increase"].abs().max()) or 1.0
    # a column takes its value, a method's columns together take its name
    needed = [0.5, *(0.068 * len(short(name)) / count for name, count in methods.items())]
    width = max(WIDTH, room_for(tasks) + 0.2 + max(needed) * len(cells))
    figure, axes = panel(
        title,
        "relative error increase over dense, %",
        inches=1.13 + 0.3 * len(tasks),
        left=room_for(tasks),
        width=width,
        bottom=0.5,
        right=0.08,
    )
    values = frame.set_index(["method", "sparsity", "task"])["increase"].to_dict()
    for column, (method, sparsity) in enumerate(cells):
        for row, task in enumerate(tasks):
            value = values.get((method, sparsity, task), math.nan)
            if math.isnan(value):
                continue
            # square root: an outlier must not bleach all the others
            strength = 0.75 * math.sqrt(abs(value) / largest)
            box = Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, linewidth=0)
            box.set(facecolor=BETTER if value < 0 else WORSE, alpha=strength)
            axes.add_artist(box)  # as a patch, each would move the limits, which are set below
            axes.text(
                column, row, signed(100 * value), ha="center", va="center", fontsize=8, color=INK
            )
    axes.set_xlim(-0.5, len(cells) - 0.5)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.xaxis.set_major_locator(FixedLocator(range(len(cells))))
    axes.set_xticklabels([])
    # one text per line: SVG viewers use other fonts than the one matplotlib measures with
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 8, "color": MUTED}
    for column, (_, sparsity) in enumerate(cells):
        axes.text(column, len(tasks) - 0.14, percent(sparsity), **look)
    start = 0
    for method, count in methods.items():
        place = start + (count - 1) / 2
        axes.text(place, len(tasks) + 0.32, short(method), **{**look, "color": INK})
        start += count
    axes.yaxis.set_major_locator(FixedLocator(range(len(tasks))))
    axes.set_yticklabels(tasks, color=INK)
    return to_drawing(figure, name, title, caption, frame, wide=width > 1.2 * WIDTH)


def layer_lines(
    frame: pd.DataFrame,
    looks: Looks,
    *,
    column: str,
    what: str,
    name: str,
    title: str,
    caption: str,
) -> Drawing:
    """One value per layer (input to output), one line per method.

    Args:
        frame: columns method, layer, place (0 = nearest the input) and `column` (fraction).
        what: what the value is, in words, without its unit.
    """
    figure, axes = panel(title, f"{what}, %", bottom=0.62)
    ends = []
    known = frame.dropna(subset=[column])
    for method, part in known.sort_values("place").groupby("method"):
        colour, marker = looks[str(method)]
        y = [100 * value for value in part[column]]
        axes.plot(part["place"] + 1, y, color=colour, marker=marker, markersize=3.5, linewidth=1.2)
        ends.append((y[-1], str(method), colour))
    axes.set_ylim(0, 105 * float(known[column].max()) or 1.0)
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("layer, from input to output")
    label_ends(axes, ends)
    return to_drawing(figure, name, title, caption, frame)


def accuracy_by_shots(
    frame: pd.DataFrame, looks: Looks, *, name: str, title: str, caption: str
) -> Drawing:
    """Mean accuracy by training images per class (log2 axis), one line per method.

    Args:
        frame: columns method, shots, accuracy, and if known accuracy_low and accuracy_high.
    """
    figure, axes = panel(title, "mean accuracy over tasks, %", bottom=0.62)
    shots = sorted(frame["shots"].unique())
    ends = []
    methods = list(dict.fromkeys(frame["method"]))
    for place, (method, part) in enumerate(frame.sort_values("shots").groupby("method")):
        colour, marker = looks[str(method)]
        shift = (place - (len(methods) - 1) / 2) * min(0.05, 0.3 / len(methods))
        x = [math.log2(k) + shift for k in part["shots"]]
        y = [100 * value for value in part["accuracy"]]
        axes.plot(x, y, color=colour, marker=marker, markersize=4, linewidth=1.2)
        if "accuracy_low" in part:
            for at, low, high in zip(x, part["accuracy_low"], part["accuracy_high"], strict=True):
                axes.plot([at, at], [100 * low, 100 * high], color=colour, linewidth=1.1)
        ends.append((y[-1], str(method), colour))
    axes.xaxis.set_major_locator(FixedLocator([math.log2(k) for k in shots]))
    axes.set_xticklabels([str(k) for k in shots])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("training images per class")
    axes.margins(y=0.1)
    label_ends(axes, ends)
    return to_drawing(figure, name, title, caption, frame)

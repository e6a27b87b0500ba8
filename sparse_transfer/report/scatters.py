"""Figures of one dot per method, task or cell: ranks, difficulty, upstream against downstream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from sparse_transfer.report.canvas import (
    STYLE,
    WIDTH,
    Drawing,
    fill_of,
    legend,
    legend_columns,
    panel,
    percent,
    short,
    signed,
    to_drawing,
)
from sparse_transfer.report.cells import records
from sparse_transfer.report.colours import INK, MUTED, Looks
from sparse_transfer.statistics.correlations import correlation, needed_correlation

ACROSS = 3  # panels of methods beside each other


def rank_dots(
    ranks: pd.DataFrame, tests: pd.DataFrame, looks: Looks, *, name: str, title: str, caption: str
) -> Drawing:
    """Mean ranks: one row per sparsity, one dot per method, and the critical difference as a bar.

    Args:
        ranks: columns method, sparsity, mean_rank.
        tests: columns sparsity, critical_difference.
    """
    levels = sorted(ranks["sparsity"].unique())
    methods = sorted(ranks["method"].unique())
    bottom = 0.45 + 0.18 * math.ceil(len(methods) / legend_columns(methods))
    figure, axes = panel(
        title,
        "mean rank over tasks, 1 is best",
        inches=0.72 + bottom + 0.42 * len(levels),
        left=0.85,
        right=0.2,
        bottom=bottom,
    )
    lowest, highest = 1.0, float(max(ranks["mean_rank"].max(), 2.0))
    lengths = tests.set_index("sparsity")["critical_difference"].to_dict()
    for place, level in enumerate(levels):
        here = ranks[ranks["sparsity"] == level].sort_values(["mean_rank", "method"])
        best = float(here["mean_rank"].min())
        if level in lengths:
            axes.plot([best, best + lengths[level]], [place + 0.36] * 2, color=MUTED, zorder=2)
            highest = max(highest, best + lengths[level])
        shift, before = 0.0, -math.inf
        for row in records(here):
            colour, marker = looks[row["method"]]
            is_close = row["mean_rank"] - before < 0.03 * len(methods)
            shift, before = (0.2 - shift if is_close else 0.0), row["mean_rank"]
            look: dict[str, Any] = {"linestyle": "none", "marker": marker, "color": colour}
            axes.plot([row["mean_rank"]], [place - shift], markersize=6.5, zorder=3, **look)
    axes.set_xlim(lowest - 0.15, highest + 0.15)
    axes.set_ylim(len(levels) - 0.4, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(FixedLocator(range(len(levels))))
    axes.set_yticklabels([f"{percent(level)} sparse" for level in levels], color=INK)
    legend(figure, {method: looks[method] for method in methods}, (), has_dense=False)
    return to_drawing(figure, name, title, caption, ranks)


def by_difficulty(
    frame: pd.DataFrame, looks: Looks, *, name: str, title: str, caption: str
) -> Drawing:
    """Relative error increase against task difficulty: one panel per method, filled by sparsity.

    A least-squares line stands where the correlation is larger than chance allows (p < .05).

    Args:
        frame: columns method, sparsity, task, difficulty and increase (fractions).
    """
    methods = sorted(frame["method"].unique())
    levels = sorted(frame["sparsity"].unique())
    columns = min(ACROSS, len(methods))
    rows = math.ceil(len(methods) / columns)
    width = WIDTH if columns == 1 else columns * 3.1
    inches = 0.75 + 2.15 * rows + 0.3
    heading = "relative error increase over dense, %"
    figure, panels = _grid(title, heading, len(methods), columns, width, inches)
    for axes, method in zip(panels, methods, strict=False):
        colour, marker = looks[method]
        own = frame[frame["method"] == method]
        for level, part in own.groupby("sparsity"):
            fill = fill_of(levels.index(level), len(levels), colour)
            look: dict[str, Any] = {"linestyle": "none", "marker": marker, "markersize": 4.5}
            x, y = 100 * part["difficulty"].to_numpy(), 100 * part["increase"].to_numpy()
            look |= {"markerfacecolor": fill, "markeredgecolor": colour, "markeredgewidth": 1}
            axes.plot(x, y, **look)
            if abs(correlation(x, y).r) > needed_correlation(len(x)):
                ends = np.array([x.min(), x.max()])
                slope, height = np.polyfit(x, y, 1)
                axes.plot(ends, height + slope * ends, color=colour, linewidth=1.1, zorder=2)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_title(short(method), loc="left", fontsize=9, color=INK, pad=4)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(0.07)
    figure.text(
        0, 0.06 / inches, "difficulty of the task, points (full − linear of dense)",
        fontsize=8.5, color=MUTED,
    )  # fmt: skip
    if len(levels) > 1:
        words = ", ".join(percent(level) for level in levels)
        figure.text(
            1 - 0.1 / width, 0.06 / inches, f"open to filled: {words}",
            ha="right", fontsize=8.5, color=MUTED,
        )  # fmt: skip
    return to_drawing(figure, name, title, caption, frame, wide=columns > 1)


def upstream_scatter(
    frame: pd.DataFrame, looks: Looks, *, name: str, title: str, caption: str
) -> Drawing:
    """Downstream against upstream accuracy, one dot per cell, filled by sparsity.

    Args:
        frame: columns model, method, sparsity, upstream (fraction), downstream (mean centred
            logit).
    """
    methods = sorted(frame["method"].unique())
    pruned = sorted(level for level in frame["sparsity"].unique() if level)
    keys = [*methods, *(percent(level) for level in pruned[1:]), "80 %"]
    figure, axes = _panel_over_legend(
        title, "downstream accuracy, mean over tasks of centred logits", keys
    )
    for row in records(frame):
        colour, marker = looks[row["method"]]
        level = row["sparsity"]
        fill = fill_of(pruned.index(level), len(pruned), colour) if level else colour
        _dot(axes, 100 * row["upstream"], row["downstream"], marker, colour, fill)
    axes.set_xlabel("upstream accuracy, %")
    axes.margins(0.08)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:+.2g}".replace("-", "−"))
    )
    legend(figure, {method: looks[method] for method in methods}, pruned, has_dense=False)
    return to_drawing(figure, name, title, caption, frame)


def training_scatter(
    frame: pd.DataFrame, looks: Looks, *, name: str, title: str, caption: str
) -> Drawing:
    """Change of accuracy against the speedup of training, one dot per cell, filled by sparsity.

    Args:
        frame: columns method, sparsity, speedup (dense over own seconds), change (fraction).
    """
    methods = sorted(frame["method"].unique())
    levels = sorted(frame["sparsity"].unique())
    keys = [*methods, *(percent(level) for level in levels[1:])]
    figure, axes = _panel_over_legend(
        title, "accuracy against the dense model, points, mean over tasks", keys
    )
    for row in records(frame):
        colour, marker = looks[row["method"]]
        fill = fill_of(levels.index(row["sparsity"]), len(levels), colour)
        _dot(axes, row["speedup"], 100 * row["change"], marker, colour, fill)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
    axes.set_xlabel("speedup of a training step over the dense model's")
    axes.margins(0.1)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    legend(figure, {method: looks[method] for method in methods}, levels, has_dense=False)
    return to_drawing(figure, name, title, caption, frame)


def _panel_over_legend(title: str, label: str, keys: Sequence[str]) -> tuple[Figure, Axes]:
    """A panel with room below for a legend of these keys; `label` is that of the y axis."""
    bottom = 0.62 + 0.18 * math.ceil(len(keys) / legend_columns(keys))
    return panel(title, label, bottom=bottom, inches=2.68 + bottom, right=0.2)


def _dot(axes: Axes, x: float, y: float, marker: Any, colour: str, fill: Any) -> None:
    look: dict[str, Any] = {"marker": marker, "markerfacecolor": fill, "markeredgecolor": colour}
    axes.plot([x], [y], markeredgewidth=1.1, **look)


def _grid(
    title: str, subtitle: str, count: int, columns: int, width: float, inches: float
) -> tuple[Figure, Sequence[Axes]]:
    """Panels of equal size under one title; the last row may have empty places."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, inches))
        FigureCanvasSVG(figure)
        left, gap, top, bottom, between = 0.42, 0.55, 0.85, 0.5, 0.5
        each = (width - left - 0.1 - gap * (columns - 1)) / columns
        rows = math.ceil(count / columns)
        tall = (inches - top - bottom - between * (rows - 1)) / rows
        made = []
        for row in range(rows):
            for column in range(columns):
                x = left + column * (each + gap)
                y = bottom + (rows - 1 - row) * (tall + between)
                made.append((x / width, y / inches, each / width, tall / inches))
        panels = [figure.add_axes(place) for place in made[:count]]
    figure.text(0, 1 - 0.2 / inches, title, fontsize=10.5, fontweight="bold", color=INK)
    figure.text(0, 1 - 0.4 / inches, subtitle, fontsize=8.5, color=MUTED)
    return figure, panels

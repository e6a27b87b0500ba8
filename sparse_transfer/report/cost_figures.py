"""Figures of cost: mean error against MACs or time, with the front of what nothing beats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from sparse_transfer.report.canvas import (
    Drawing,
    legend,
    legend_columns,
    panel,
    percent,
    spread,
    to_drawing,
)
from sparse_transfer.report.cells import records
from sparse_transfer.report.colours import INK, MUTED, Looks
from sparse_transfer.statistics.fronts import front

MOST_LABELS = 7  # points of one figure that are all named
INCHES_PER_LETTER = 0.058  # of a name beside a point, at 7.5 points


def pareto(
    frame: pd.DataFrame, looks: Looks, *, unit: str, name: str, title: str, caption: str
) -> Drawing:
    """Mean error over tasks against cost, with the front of what nothing else beats in both.

    The points of one model and method are joined by a thin line. Marks of other upstream models
    than the first are hollow.

    Args:
        frame: columns model, method, sparsity, cost (in `unit`), error (fraction).
        unit: label of the cost axis, with its unit and regime.
    """
    methods = [name for name in looks if name in set(frame["method"])]
    is_crowded = len(frame) > MOST_LABELS
    rows = math.ceil(len(methods) / legend_columns(methods)) if is_crowded else 0
    bottom = 0.62 + 0.18 * rows
    heading = "mean error over tasks, %, lower is better"
    figure, axes = panel(title, heading, bottom=bottom, inches=2.68 + bottom)
    main = str(frame["model"].iloc[0])
    edge = front(list(zip(frame["cost"], frame["error"], strict=True)))
    for (x0, y0), (x1, y1) in zip(edge, edge[1:], strict=False):
        style = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (3, 2)), "zorder": 1}
        axes.plot([x0, x1, x1], [100 * y0, 100 * y0, 100 * y1], **style)
    for key, part in frame.sort_values("cost").groupby(["model", "method"], sort=False):
        model, method = map(str, key if isinstance(key, tuple) else (key,))
        colour, marker = looks[method]
        fill = colour if model == main else "none"
        look = {"marker": marker, "color": colour, "markerfacecolor": fill, "zorder": 3}
        axes.plot(part["cost"], 100 * part["error"], linewidth=0.7, **look)
    _scale(axes, frame)
    axes.set_xlabel(unit)
    axes.margins(y=0.15)
    axes.grid(visible=False, axis="x")
    shown = frame
    if is_crowded:  # names where they matter: on the front, and of every smaller dense model
        legend(figure, {name: looks[name] for name in methods}, (), has_dense=False)
        on_front = [pair in edge for pair in zip(frame["cost"], frame["error"], strict=True)]
        shown = frame[pd.Series(on_front, index=frame.index) | frame["sparsity"].eq(0)]
    _label_points(axes, shown, looks, main, below=is_crowded)
    return to_drawing(figure, name, title, caption, frame)


def point_name(row: Mapping[str, Any], main: str, *, alone: bool = False) -> str:
    """How a point is called: `gmp 90 %`, `dense`; other upstream models by their name.

    Args:
        row: model, method and sparsity.
        main: the upstream model that is not named.
        alone: there is no other model, so `dense` needs no name beside it.
    """
    is_dense = row["method"] == "dense"
    own = str(row["method"])
    if row["sparsity"]:
        own += f" {percent(row['sparsity'])}"
    if row["model"] == main:
        return f"{main} dense" if is_dense and not alone else own
    return f"{row['model']} {own}"


def _scale(axes: Axes, frame: pd.DataFrame) -> None:
    low, high = float(frame["cost"].min()), float(frame["cost"].max())
    if low > 0 and high / low > 5:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(_steps(low, high)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(low / 1.15, high * (high / low) ** 0.2)
    else:
        axes.set_xlim(0, 1.2 * high)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label_points(axes: Axes, frame: pd.DataFrame, looks: Looks, main: str, *, below: bool) -> None:
    """Names beside their points; where they would overlap, they are moved apart.

    Below a front there is nothing, so there a name is in nobody's way.
    """
    low, high = axes.get_ylim()
    size = axes.figure.get_size_inches()  # pyright: ignore[reportAttributeAccessIssue]
    height = axes.get_position().height * size[1]
    width = axes.get_position().width * size[0]
    alone = frame["model"].nunique() == 1 and (frame["sparsity"].eq(0).sum() < 2)
    named = frame.assign(words=[point_name(row, main, alone=alone) for row in records(frame)])
    for part in _near_each_other(axes, named, width):
        heights = [100 * error for error in part["error"]]
        placed = spread(heights, (high - low) * 0.14 / height, low, high)
        for y, row in zip(placed, records(part), strict=True):
            colour = INK if row["method"] == "dense" else looks[row["method"]][0]
            look = {"va": "center", "fontsize": 7.5, "color": colour}
            offset = {"xytext": (4, -8.5 if below else 4.5), "textcoords": "offset points"}
            axes.annotate(row["words"], (row["cost"], y), **offset, **look)


def _near_each_other(axes: Axes, frame: pd.DataFrame, inches: float) -> list[pd.DataFrame]:
    """Points whose names could overlap: each cluster ends where the next name has room."""
    ordered = frame.sort_values("cost")
    places = axes.transLimits.transform(
        axes.transScale.transform([(cost, axes.get_ylim()[0]) for cost in ordered["cost"]])
    )[:, 0]
    cluster, end = [0], 0.0
    for place, words in zip(places, ordered["words"], strict=True):
        if len(cluster) > 1 or end:
            cluster.append(cluster[-1] + int(place > end))
        end = max(end, place + (INCHES_PER_LETTER * len(words) + 0.12) / inches)
    return [part for _, part in ordered.groupby(cluster)]


def _steps(low: float, high: float) -> list[float]:
    """Round ticks (1, 2, 5 × powers of ten) of a logarithmic axis, the ends included."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [
        m * 10.0**p for p in powers for m in (1, 2, 5) if low / 1.2 <= m * 10.0**p <= high * 1.2
    ]

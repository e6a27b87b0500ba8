"""Figures as SVG: drawn once, readable on light and dark, each with the numbers it shows.

Matplotlib draws with literal colours and leaves text as text. `Drawing.file` keeps the literal
colours (any program can open it) and adds rules for the dark scheme; `Drawing.inline` uses the
page's CSS variables and fonts. The output is a function of the numbers alone: no date, fixed ids.
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from sparse_transfer.report.cells import records
from sparse_transfer.report.colours import (
    BETTER,
    GRID,
    INK,
    MUTED,
    SCHEMES,
    WORSE,
    Looks,
    dark_rules,
    variable,
)

FONTS = 'Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MOST_LABELS = 12  # points of one figure that are all named
WIDTH = 5.2  # inches of a panel; two stand beside each other on a wide page
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sparse-transfer",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Drawing:
    """One figure: its file name (without ending), caption, SVG and the numbers in it."""

    name: str
    title: str
    caption: str
    svg: str
    data: pd.DataFrame = field(repr=False)
    wide: bool = False

    @property
    def file(self) -> str:
        """The SVG document for a file of its own."""
        head, _, body = self.svg.partition(">")
        style = f"text{{font-family:{FONTS}!important}}{dark_rules()}"
        return f"{head}><title>{_escape(self.title)}</title><style>{style}</style>{body}\n"

    @property
    def inline(self) -> str:
        """The SVG element for the page, coloured by the page's CSS variables."""
        svg = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", self.svg)
        svg = re.sub(r' xmlns:xlink="[^"]*"', "", svg).replace("xlink:href", "href")
        for light in SCHEMES:
            svg = svg.replace(light, variable(light))
        label = f'role="img" aria-label="{_escape(f"{self.title}. {self.caption}")}"'
        return svg.replace("<svg ", f"<svg {label} ", 1)


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
    figure, axes = _panel(title, "relative error increase over dense, %, lower is better")
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
    axes.set_ylim(100 * limits[0], 100 * limits[1])
    axes.set_xlim(-0.35, len(levels) - 1 + 0.35)
    axes.xaxis.set_major_locator(FixedLocator(range(len(levels))))
    axes.set_xticklabels([f"{percent(value)} sparse" for value in levels])
    axes.grid(visible=False, axis="x")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))
    _label_ends(axes, [*ends, (0.0, "dense", INK)])
    return _drawing(figure, name, title, caption, frame)


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
    bottom = 0.37 + 0.18 * math.ceil(len(keys) / _legend_columns(keys))
    inches = 0.7 + bottom + len(order) * max(0.3, 0.09 + 0.09 * len(methods))
    figure, axes = _panel(
        title, "accuracy on the test set, %", inches=inches, left=_room(order), bottom=bottom
    )
    for task, value in dense.items():
        row = order.index(str(task))
        axes.plot([100 * value] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=1.8, zorder=4)
    for place, method in enumerate(methods):
        colour, marker = looks[method]
        shift = ((len(methods) - 1) / 2 - place) * min(0.2, 0.66 / len(methods))
        for level, part in sparse[sparse["method"] == method].groupby("sparsity"):
            fill = _fill(levels.index(level), len(levels), colour)
            y = [order.index(task) + shift for task in part["task"]]
            x = [100 * value for value in part["value"]]
            dots = {"linestyle": "none", "marker": marker, "markeredgecolor": colour, "zorder": 3}
            axes.plot(x, y, markerfacecolor=fill, markersize=5, markeredgewidth=1.1, **dots)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.yaxis.set_major_locator(FixedLocator(range(len(order))))
    axes.set_yticklabels(order, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    _legend(figure, {name: looks[name] for name in methods}, levels, has_dense=len(dense) > 0)
    return _drawing(figure, name, title, caption, frame)


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
    needed = [0.5, *(0.068 * len(_short(name)) / count for name, count in methods.items())]
    width = max(WIDTH, _room(tasks) + 0.2 + max(needed) * len(cells))
    figure, axes = _panel(
        title,
        "relative error increase over dense, %",
        inches=1.13 + 0.3 * len(tasks),
        left=_room(tasks),
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
            axes.add_patch(box)
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
        axes.text(place, len(tasks) + 0.32, _short(method), **{**look, "color": INK})
        start += count
    axes.yaxis.set_major_locator(FixedLocator(range(len(tasks))))
    axes.set_yticklabels(tasks, color=INK)
    return _drawing(figure, name, title, caption, frame, wide=width > 1.2 * WIDTH)


def pareto(
    frame: pd.DataFrame, looks: Looks, *, unit: str, name: str, title: str, caption: str
) -> Drawing:
    """Mean error over tasks against cost, with the front of what nothing else beats in both.

    Args:
        frame: columns model, method, sparsity, cost (in `unit`), error (fraction).
        unit: label of the cost axis, with its unit and regime.
    """
    methods = [name for name in looks if name in set(frame["method"])]
    is_crowded = len(frame) > MOST_LABELS
    rows = math.ceil(len(methods) / _legend_columns(methods)) if is_crowded else 0
    bottom = 0.62 + 0.18 * rows
    heading = "mean error over tasks, %, lower is better"
    figure, axes = _panel(title, heading, bottom=bottom, inches=2.68 + bottom)
    models = list(dict.fromkeys(frame["model"]))
    edge = front(list(zip(frame["cost"], frame["error"], strict=True)))
    stairs = [(a, b) for a, b in zip(edge, edge[1:], strict=False)]
    for (x0, y0), (x1, y1) in stairs:
        style = {"color": MUTED, "linewidth": 0.9, "linestyle": (0, (3, 2)), "zorder": 1}
        axes.plot([x0, x1, x1], [100 * y0, 100 * y0, 100 * y1], **style)
    for row in records(frame):
        colour, marker = looks[row["method"]]
        fill = colour if row["model"] == models[0] else "none"
        look = {"marker": marker, "color": colour, "markerfacecolor": fill, "zorder": 3}
        axes.plot([row["cost"]], [100 * row["error"]], **look)
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
    axes.set_xlabel(unit)
    axes.margins(y=0.15)
    axes.grid(visible=False, axis="x")
    if is_crowded:  # names where they matter, on the front
        _legend(figure, {name: looks[name] for name in methods}, (), has_dense=False)
        on_front = [pair in edge for pair in zip(frame["cost"], frame["error"], strict=True)]
        frame_shown = frame[on_front]
    else:
        frame_shown = frame
    _label_points(axes, frame_shown, looks, several_models=len(models) > 1)
    return _drawing(figure, name, title, caption, frame)


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
    figure, axes = _panel(title, f"{what}, %", bottom=0.62)
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
    _label_ends(axes, ends)
    return _drawing(figure, name, title, caption, frame)


def accuracy_by_shots(
    frame: pd.DataFrame, looks: Looks, *, name: str, title: str, caption: str
) -> Drawing:
    """Mean accuracy by training images per class (log2 axis), one line per method.

    Args:
        frame: columns method, shots, accuracy, and if known accuracy_low and accuracy_high.
    """
    figure, axes = _panel(title, "mean accuracy over tasks, %", bottom=0.62)
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
    _label_ends(axes, ends)
    return _drawing(figure, name, title, caption, frame)


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other point beats in both coordinates, by rising first coordinate."""
    best: list[tuple[float, float]] = []
    for cost, error in sorted(points):
        if not best or error < best[-1][1]:
            best.append((cost, error))
    return best


def common_limits(values: Iterable[float], *, margin: float = 0.08) -> tuple[float, float]:
    """One range for panels that are compared by eye; always holds zero."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    room = margin * (high - low) or 0.01
    return low - room, high + room


def percent(fraction: float) -> str:
    """0.95 → `95 %`, 0.965 → `96.5 %`."""
    return f"{100 * fraction:.4g} %"


def signed(value: float) -> str:
    """A number with its sign and three digits at most: `+12`, `−3.1`, `0`."""
    rounded = round(value, 0 if abs(value) >= 9.95 else 1)
    if rounded == 0:
        return "0"
    return f"{rounded:+.{0 if rounded == int(rounded) else 1}f}".replace("-", "−")


def _panel(
    title: str,
    subtitle: str,
    *,
    inches: float = 3.3,
    left: float = 0.45,
    width: float = WIDTH,
    bottom: float = 0.4,
    right: float = 0.95,
) -> tuple[Figure, Axes]:
    """A figure with one axes, margins in inches; title and what is measured stand top left."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, inches))
        FigureCanvasSVG(figure)
        size = (1 - (left + right) / width, 1 - (bottom + 0.62) / inches)
        axes = figure.add_axes((left / width, bottom / inches, *size))
    figure.text(0, 1 - 0.2 / inches, title, fontsize=10.5, fontweight="bold", color=INK)
    figure.text(0, 1 - 0.4 / inches, subtitle, fontsize=8.5, color=MUTED)
    return figure, axes


def _drawing(
    figure: Figure, name: str, title: str, caption: str, data: pd.DataFrame, *, wide: bool = False
) -> Drawing:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    return Drawing(name, title, caption, _clean(buffer.getvalue()), data, wide)


def _clean(svg: str) -> str:
    """Drop what only bloats: prolog, metadata, comments, group ids, white space."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", _font, svg)
    svg = re.sub(r'<g><path d="[^"]*" style="fill: none"/></g>', "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", svg)
    svg = re.sub(r"(\d+\.\d{2})\d+", r"\1", svg)
    return re.sub(r">\s+<", "><", svg).strip()


def _font(match: re.Match[str]) -> str:
    weight = "; font-weight: 650" if re.search(r"\b(bold|[67]00)\b", match[1]) else ""
    return f"font-size: {match[2]}{weight}"


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right end of their lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    height = axes.get_position().height * axes.figure.get_size_inches()[1]  # pyright: ignore
    gap = (high - low) * 0.155 / height
    placed = spread([end[0] for end in ends], gap, low, high)
    for y, (_, name, colour) in zip(placed, ends, strict=True):
        position = (1.015, (y - low) / (high - low))
        look = {"color": colour, "va": "center", "fontsize": 8.5, "transform": axes.transAxes}
        axes.text(*position, _short(name), **look)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The values moved as little as needed to stand at least `gap` apart, inside the range."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    placed = list(values)
    bottom = low
    for index in order:
        placed[index] = bottom = max(values[index], bottom)
        bottom += gap
    top = high
    for index in reversed(order):
        placed[index] = top = min(placed[index], top)
        top -= gap
    return placed


def _label_points(axes: Axes, frame: pd.DataFrame, looks: Looks, *, several_models: bool) -> None:
    """Names beside their points; where points share a place, their names are moved apart."""
    low, high = axes.get_ylim()
    height = axes.get_position().height * axes.figure.get_size_inches()[1]  # pyright: ignore
    for part in _near_each_other(axes, frame):
        heights = [100 * error for error in part["error"]]
        placed = spread(heights, (high - low) * 0.14 / height, low, high)
        for y, row in zip(placed, records(part), strict=True):
            is_dense = row["method"] == "dense"
            words = "dense" if is_dense else f"{row['method']} {percent(row['sparsity'])}"
            if several_models:
                words = f"{row['model']} {words}"
            look = {"va": "center", "fontsize": 7.5, "color": looks[row["method"]][0]}
            offset = {"xytext": (5, 4.5), "textcoords": "offset points"}
            axes.annotate(words, (row["cost"], y), **offset, **look)


def _near_each_other(axes: Axes, frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Points whose labels could overlap: neighbours closer than a label is wide."""
    ordered = frame.sort_values("cost")
    places = axes.transLimits.transform(
        axes.transScale.transform([(cost, axes.get_ylim()[0]) for cost in ordered["cost"]])
    )[:, 0]
    cluster = [0]
    for left, right in zip(places, places[1:], strict=False):
        cluster.append(cluster[-1] + int(right - left > 0.2))
    return [part for _, part in ordered.groupby(cluster)]


def _steps(low: float, high: float) -> list[float]:
    """Round ticks (1, 2, 5 × powers of ten) of a logarithmic axis, the ends included."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [
        m * 10.0**p for p in powers for m in (1, 2, 5) if low / 1.2 <= m * 10.0**p <= high * 1.2
    ]


def _fill(place: int, count: int, colour: str) -> tuple[float, float, float, float]:
    """Marker fill: lowest sparsity open, highest filled, those between in steps."""
    return to_rgba(colour, alpha=place / (count - 1) if count > 1 else 1.0)


def _short(name: str) -> str:
    return name if len(name) <= 13 else name[:12] + "…"


def _room(names: Sequence[str]) -> float:
    """Inches needed for the longest of the names at 8.5 points."""
    return 0.2 + 0.073 * max((len(name) for name in names), default=0)


def _legend(
    figure: Figure,
    looks: Looks,
    levels: Sequence[float],
    *,
    has_dense: bool,
) -> None:
    empty = {"linestyle": "none", "markersize": 5}
    dense = Line2D([], [], color=INK, marker="|", markeredgewidth=1.8, label="dense", **empty)
    keys = [dense] if has_dense else []
    for name, (colour, marker) in looks.items():
        keys.append(Line2D([], [], marker=marker, color=colour, label=name, **empty))
    if len(levels) > 1:
        for place, level in enumerate(levels):
            fill = _fill(place, len(levels), INK)
            look = {"markerfacecolor": fill, "markeredgecolor": INK, "marker": "o", **empty}
            keys.append(Line2D([], [], label=percent(level), **look))
    figure.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0, 0),
        ncols=_legend_columns([str(key.get_label()) for key in keys]),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handletextpad=0.2,
        columnspacing=1.0,
        borderaxespad=0,
    )


def _legend_columns(labels: Sequence[str]) -> int:
    """As many columns as fit into a panel; rows are filled as evenly as can be."""
    inches = sum(0.075 * len(label) + 0.32 for label in labels)
    return math.ceil(len(labels) / math.ceil(inches / WIDTH))


def _escape(text: str) -> str:
    pairs = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
    return "".join(pairs.get(letter, letter) for letter in text)

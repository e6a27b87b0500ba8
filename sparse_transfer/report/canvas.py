"""What every figure is drawn on: style, margins, labels, and an SVG that is small and adapts.

Matplotlib draws with literal colours and leaves text as text. `Drawing.file` keeps the literal
colours (any program can open it) and adds rules for the dark scheme; `Drawing.inline` uses the
page's CSS variables and fonts. The output is a function of the numbers alone: no date, fixed ids.
"""

from __future__ import annotations

import io
import math
import re
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

from sparse_transfer.report.colours import GRID, INK, MUTED, SCHEMES, Looks, dark_rules, variable

FONTS = 'Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MOST_METHODS = 18  # of one figure: more names and colours nobody tells apart; tables have them
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


def panel(
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


def to_drawing(
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


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names at the right end of their lines, moved apart where they would overlap."""
    height = axes.get_position().height * axes.figure.get_size_inches()[1]  # pyright: ignore
    scale = axes.transScale + axes.transLimits  # data → share of the axis, whatever its scale
    wanted = [float(scale.transform((axes.get_xlim()[0], end[0]))[1]) for end in ends]
    placed = spread(wanted, 0.155 / height, 0.0, 1.0)
    for y, (_, name, colour) in zip(placed, ends, strict=True):
        position = (1.015, y)
        look = {"color": colour, "va": "center", "fontsize": 8.5, "transform": axes.transAxes}
        axes.text(*position, short(name), **look)


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


def fill_of(place: int, count: int, colour: str) -> tuple[float, float, float, float]:
    """Marker fill: lowest sparsity open, highest filled, those between in steps."""
    return to_rgba(colour, alpha=place / (count - 1) if count > 1 else 1.0)


def short(name: str) -> str:
    return name if len(name) <= 13 else name[:12] + "…"


def room_for(names: Sequence[str]) -> float:
    """Inches needed for the longest of the names at 8.5 points."""
    return 0.2 + 0.073 * max((len(name) for name in names), default=0)


def legend(
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
            fill = fill_of(place, len(levels), INK)
            look = {"markerfacecolor": fill, "markeredgecolor": INK, "marker": "o", **empty}
            keys.append(Line2D([], [], label=percent(level), **look))
    figure.legend(
        handles=keys,
        loc="lower left",
        bbox_to_anchor=(0, 0),
        ncols=legend_columns([str(key.get_label()) for key in keys]),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handletextpad=0.2,
        columnspacing=1.0,
        borderaxespad=0,
    )


def legend_columns(labels: Sequence[str]) -> int:
    """As many columns as fit into a panel; rows are filled as evenly as can be."""
    inches = sum(0.075 * len(label) + 0.32 for label in labels)
    return math.ceil(len(labels) / math.ceil(inches / WIDTH))


def _escape(text: str) -> str:
    pairs = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
    return "".join(pairs.get(letter, letter) for letter in text)

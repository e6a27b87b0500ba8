"""One HTML file from tables, drawings and sentences; opens from disk without a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from sparse_transfer.report.canvas import Drawing
from sparse_transfer.report.cells import Table
from sparse_transfer.report.colours import assign, css_variables, variable
from sparse_transfer.report.pictures import Picture

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Part:
    """Drawings, pictures and tables under one heading of the third level (may be empty)."""

    title: str = ""
    drawings: tuple[Drawing, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.drawings or self.tables or self.pictures)


@dataclass(frozen=True)
class Section:
    """A section of the page; one without any part is not shown."""

    name: str
    title: str
    text: str
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, name: str, title: str, text: str, parts: Iterable[Part]) -> Section:
        """A section of those parts that show something."""
        return cls(name, title, text, tuple(part for part in parts if part))

    def __bool__(self) -> bool:
        return bool(self.parts)


def page(
    facts: Mapping[str, Any],
    verdict: Sequence[str],
    sections: Sequence[Section],
    methods: Iterable[str],
) -> str:
    """The whole page as text.

    Args:
        facts: title, experiment, notes and labels, see `write.write`.
        verdict: sentences, the first one set larger.
        sections: only those with something in them are shown.
        methods: every method's name, for its colour in the tables.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["unbroken"] = _unbroken
    environment.filters["js_number"] = _js_number
    looks = {name: variable(colour) for name, (colour, _) in assign(methods).items()}
    return environment.get_template("page.html").render(
        title=facts["title"],
        experiment=facts["experiment"],
        notes=facts["notes"],
        labels=facts["labels"],
        verdict=verdict,
        sections=[section for section in sections if section],
        looks=looks,
        light=css_variables(dark=False),
        dark=css_variables(dark=True),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        js=(HERE / "page.js").read_text(encoding="utf-8"),
    )


def _unbroken(text: str) -> str:
    """Text whose numbers stay with their unit, and names with a hyphen whole, at line ends."""
    return text.replace(" %", "\u00a0%").replace("L-BFGS", "L\u2011BFGS")


def _js_number(value: float) -> str:
    """A number as JavaScript reads it: Python's `inf` would be no number there."""
    return f"{value:.12g}".replace("inf", "Infinity")

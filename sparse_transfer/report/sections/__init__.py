"""The sections of a report, one module each.

A section is a module here with a function `section(material)`, which returns None (or a section
without parts) where there is nothing to show. `ALL` is the order of the page.
"""

from __future__ import annotations

from collections.abc import Callable

from sparse_transfer.report.html import Section
from sparse_transfer.report.material import Material
from sparse_transfer.report.sections import (
    answer,
    behaviour,
    beside,
    bought,
    correlation,
    cost,
    difficulty,
    examples,
    few_shot,
    increase,
    inside,
    missing,
    modes,
    origin,
    ranks,
    summary,
    tasks,
    training_time,
    upstream,
)

ALL: tuple[Callable[[Material], Section | None], ...] = (
    answer.section,
    summary.section,
    upstream.section,
    beside.section,
    increase.section,
    ranks.section,
    tasks.section,
    difficulty.section,
    modes.section,
    behaviour.section,
    examples.section,
    few_shot.section,
    bought.section,
    training_time.section,
    cost.section,
    correlation.section,
    inside.section,
    missing.section,
    origin.section,
)

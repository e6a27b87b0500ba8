"""The answer: rows of all arms side by side, where an experiment asks for them."""

from __future__ import annotations

from sparse_transfer.report import answer
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material


def section(material: Material) -> Section | None:
    """One table over all arms; its sentences are the verdict."""
    made = answer.rows(material)
    if made.empty:
        return None
    facts, part = material.facts["answer"], Part("", (), (answer.table(material, made),))
    return Section.of("answer", "The answer", facts["text"], [part])

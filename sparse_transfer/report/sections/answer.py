"""The answer: rows of all arms side by side, where an experiment asks for them."""

from __future__ import annotations

from sparse_transfer.report import answer
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material


def section(material: Material) -> Section | None:
    """One table over all arms, with a sentence for each row."""
    made = answer.rows(material)
    if made.empty:
        return None
    part = Part("", (), (answer.table(material, made),))
    return Section.of("answer", "The answer", " ".join(answer.sentences(material, made)), [part])

"""Provenance: software, machine, runs."""

from __future__ import annotations

from sparse_transfer.report import provenance
from sparse_transfer.report.cells import Table
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material


def section(material: Material) -> Section:
    """Where the numbers come from."""
    return Section.of("provenance", "Provenance", "", [Part(tables=_provenance(material))])


def _provenance(material: Material) -> tuple[Table, ...]:
    origin = provenance.origin_table(material.facts)
    runs = [provenance.runs_table(material.frame)] if len(material.frame) else []
    return (origin, *runs) if origin else tuple(runs)

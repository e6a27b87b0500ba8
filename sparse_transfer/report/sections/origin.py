"""Provenance: software, machine, runs."""

from __future__ import annotations

import pandas as pd

from sparse_transfer.report import imported, provenance
from sparse_transfer.report.cells import Table
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material

TEXT = "Where the numbers come from: software, machine, and every run by its id."


def section(material: Material) -> Section:
    """Where the numbers come from."""
    return Section.of("provenance", "Provenance", TEXT, [Part(tables=_provenance(material))])


def _provenance(material: Material) -> tuple[Table, ...]:
    origin = provenance.origin_table(material.facts)
    tables = [origin] if origin else []
    frame = pd.concat([material.frame, material.further])
    foreign = frame["origin"].notna() if "origin" in frame else pd.Series(False, index=frame.index)
    if len(own := frame[~foreign]):
        tables.append(provenance.runs_table(own))
    if foreign.any():
        tables.append(imported.sources_table(frame[foreign]))
    return tuple(tables)

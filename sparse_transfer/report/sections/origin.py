"""Provenance: software, machine, runs."""

from __future__ import annotations

import pandas as pd

from sparse_transfer.report import provenance
from sparse_transfer.report.cells import Table
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material


def section(material: Material) -> Section:
    """Where the numbers come from."""
    return Section.of("provenance", "Provenance", "", [Part(tables=_provenance(material))])


def _provenance(material: Material) -> tuple[Table, ...]:
    origin = provenance.origin_table(material.facts)
    every = pd.concat([material.frame, material.further])
    runs = [provenance.runs_table(every)] if len(every) else []
    return (origin, *runs) if origin else tuple(runs)

"""What is not there: failed runs and skipped images."""

from __future__ import annotations

from sparse_transfer.report import imported, provenance
from sparse_transfer.report.cells import Table
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material

TEXT = "What the numbers above do not hold: runs that failed, and images that could not be read."


def section(material: Material) -> Section:
    """Shown where anything failed or was skipped."""
    return Section.of("missing", "Failed and skipped", TEXT, [Part(tables=_missing(material))])


def _missing(material: Material) -> tuple[Table, ...]:
    failures, skipped = material.facts["failures"], material.facts["skipped"]
    found = [provenance.failures_table(failures)] if failures else []
    if made := provenance.skipped_table(skipped):
        found.append(made)
    if left_out := material.facts["left_out"]:
        found.append(imported.left_out_table(left_out))
    return tuple(found)

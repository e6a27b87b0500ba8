"""One's own dense model beside the imported one, and whether both share a ranking."""

from __future__ import annotations

from sparse_transfer.report import imported
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material


def section(material: Material) -> Section | None:
    """Shown where results stand beside imported ones."""
    rows = material.facts["drift"]
    if not rows:
        return None
    return Section.of(
        "beside",
        "Beside imported results",
        "Own and imported results share a ranking only where the own dense model, run under the "
        "same profile, lies within one point of the imported dense model on every shared task. "
        "Every method is compared with the dense model of its own side, on the shared tasks; where "
        "they share a ranking, the row of dense is the mean of both.",
        [Part(tables=(imported.drift_table(rows),))],
    )

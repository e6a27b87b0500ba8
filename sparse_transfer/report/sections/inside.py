"""Inside the networks: where weights remain, and which channels are gone."""

from __future__ import annotations

from collections.abc import Iterator

from sparse_transfer.report import layers
from sparse_transfer.report.html import Part, Section
from sparse_transfer.report.material import Material


def section(material: Material) -> Section:
    """Layer by layer, one part per arm."""
    return Section.of(
        "inside",
        "Inside the networks",
        "Where the remaining weights are, and which channels are gone.",
        _inside(material),
    )


def _inside(material: Material) -> Iterator[Part]:
    if material.layers.empty:
        return
    arms = list(dict.fromkeys(material.layers["arm"]))
    for arm in arms:
        title = arm if len(arms) > 1 else ""
        yield Part(
            title,
            layers.drawings(material.layers, material.looks, arm=arm),
            (layers.table(material.layers, arm=arm),),
        )

"""STR: learned thresholds beside the convolutions, and a 1×1 convolution without bias as the head.

Marks: `X.sparseThreshold`, or an `fc.weight` of four dimensions (its dense conversions, whose
sparsity must be declared). The imported weights are the thresholded ones, what its forward pass
uses; the head becomes a linear layer with a bias of zero (arXiv 2002.03231). ResNets have
torchvision's names otherwise, MobileNetV1 Distiller's.
"""

from dataclasses import replace

from sparse_transfer.imports.layout import (
    IMAGENET_INPUT,
    PROJECTS_NETWORKS,
    Layout,
    Translated,
    as_it_is,
    ends,
)
from sparse_transfer.imports.storage import THRESHOLD, Stored

ALIAS = "str"


def _has_convolutional_head(stored: Stored) -> bool:
    head = stored.state.get("fc.weight")
    return head is not None and head.ndim == 4 and head.shape[2:] == (1, 1)


def _translate(stored: Stored, architecture: str) -> Translated:
    if _has_convolutional_head(stored):
        weight = stored.state["fc.weight"].flatten(1)
        bias = stored.state.get("fc.bias", weight.new_zeros(len(weight)))
        masks = dict(stored.masks)
        if "fc.weight" in masks:
            masks["fc.weight"] = masks["fc.weight"].flatten(1)
        state = stored.state | {"fc.weight": weight, "fc.bias": bias}
        stored = replace(stored, state=state, masks=masks)
    return as_it_is(stored, architecture)


LAYOUT = Layout(
    marks=lambda stored: ends(stored, THRESHOLD) or _has_convolutional_head(stored),
    translate=_translate,
    config=lambda _architecture: IMAGENET_INPUT,
    networks=PROJECTS_NETWORKS,
)

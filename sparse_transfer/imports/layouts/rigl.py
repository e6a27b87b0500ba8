"""RigL: the ResNet-50 converted from TensorFlow, with asymmetric padding and bicubic input.

Marks: `initial_conv.conv.weight`. Every convolution is `NAME.conv` with its batch norm `NAME.bn`,
blocks are `layerN.block.M`, projections `shortcut` (arXiv 1911.11134, as converted for
arXiv 2111.13445). It becomes `resnet50_rigl`, whose stem pads as TensorFlow does.
"""

import re

from sparse_transfer.errors import UserError
from sparse_transfer.imports.layout import IMAGENET_INPUT, Layout, Translated, renamed
from sparse_transfer.imports.storage import Stored

_STEM = {"initial_conv.conv": "conv1", "initial_conv.bn": "bn1"}
_BLOCK = re.compile(r"(layer\d)\.block\.(\d+)\.(conv\d|shortcut)\.(conv|bn)")


def _module(name: str) -> str:
    found = _BLOCK.fullmatch(name)
    if found is None:
        return _STEM.get(name, name)
    stage, block, part, kind = found.groups()
    if part == "shortcut":
        return f"{stage}.{block}.downsample.{0 if kind == 'conv' else 1}"
    return f"{stage}.{block}.{part if kind == 'conv' else part.replace('conv', 'bn')}"


def _translate(stored: Stored, architecture: str) -> Translated:
    if architecture not in ("resnet50", "resnet50_rigl"):
        raise UserError(
            f"--arch {architecture} does not have RigL's layout.",
            "RigL's converted checkpoints are ResNet-50s.",
            "Say --arch resnet50.",
        )
    modules = {name.rpartition(".")[0] for name in stored.state}
    return renamed(stored, "resnet50_rigl", {name: _module(name) for name in modules})


LAYOUT = Layout(
    marks=lambda stored: any(name.startswith("initial_conv.conv") for name in stored.marks),
    translate=_translate,
    config=lambda _architecture: {**IMAGENET_INPUT, "interpolation": "bicubic"},
)

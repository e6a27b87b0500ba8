"""What a layout is: how a project names the weights of a network, and which network it means.

A layout file in `imports/layouts/` defines `LAYOUT`. How weights are stored (masks, thresholds,
prefixes) is the same question for all of them and is answered in `storage.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sparse_transfer.imports.storage import Stored

MOBILENET = "mobilenetv1_100"
# the input that the projects around the transfer study trained with (protocol of arXiv 2111.13445)
IMAGENET_INPUT: Mapping[str, Any] = {
    "input_size": [3, 224, 224],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
PROJECTS_NETWORKS = ("resnet", "mobilenetv1")  # of the projects around the transfer study
_DEPTHS = (1, 2, 2, 6, 2)  # blocks per stage of timm's MobileNetV1


@dataclass(frozen=True)
class Translated:
    """A foreign network in our terms.

    Attributes:
        architecture: the model name that computes it.
        state, masks: by the parameter names of that model.
        model_args: arguments it must be built with.
    """

    architecture: str
    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    model_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """One project's layout.

    Attributes:
        marks: whether the file bears marks that only this layout has.
        translate: (file, architecture asked for) → the network in our terms. Names that it does
            not know stay as they are: comparing them with the model is the caller's.
        config: architecture → entries of timm's pretrained_cfg that the project's checkpoints
            share; what is left out is the architecture's own.
        precedence: of two layouts whose marks are there, the lower one is tried first.
        networks: how the architectures of the project begin; a file without marks of this layout
            is refused for others. Empty: any.
    """

    marks: Callable[[Stored], bool]
    translate: Callable[[Stored, str], Translated]
    config: Callable[[str], Mapping[str, Any]] = lambda _architecture: {}
    precedence: int = 1
    networks: tuple[str, ...] = ()


def unmarked(_stored: Stored) -> bool:
    """The marks of a layout that has none: plain weights under a library's own names."""
    return False


def as_it_is(stored: Stored, architecture: str) -> Translated:
    """The names are the model's already, or those of the projects' MobileNetV1."""
    names = mobilenet_names(stored.state) if architecture == MOBILENET else {}
    if not names:
        return Translated(architecture, stored.state, stored.masks)
    # timm's has ReLU6, these have ReLU
    return renamed(stored, architecture, names, {"act_layer": "relu"})


def renamed(
    stored: Stored, architecture: str, names: Mapping[str, str], args: dict[str, Any] | None = None
) -> Translated:
    """The file with modules renamed: `names` maps the path of a module to its path here."""

    def name_of(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        return f"{names[module]}.{leaf}" if module in names else name

    return Translated(
        architecture,
        {name_of(name): tensor for name, tensor in stored.state.items()},
        {name_of(name): mask for name, mask in stored.masks.items()},
        args or {},
    )


def mobilenet_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Modules of the projects' MobileNetV1 → those of timm's; empty if it is not one of them.

    Two forms are known: one sequence `model.0` to `model.13` and `fc` (Distiller's, used by
    WoodFisher, M-FAC, AC/DC and STR), and `conv1`, `features.0` to `features.12`, `classifier.0`
    (AMC's). Each block is depthwise convolution, batch norm, ReLU, pointwise convolution, batch
    norm, ReLU.
    """
    if "model.0.0.weight" in state:
        stem, blocks, head = "model.0", [f"model.{index}" for index in range(1, 14)], "fc"
    elif "conv1.0.weight" in state and "features.0.0.weight" in state:
        stem, blocks, head = "conv1", [f"features.{index}" for index in range(13)], "classifier.0"
    else:
        return {}
    names = {f"{stem}.0": "conv_stem", f"{stem}.1": "bn1", head: "classifier"}
    places = [(stage, block) for stage, depth in enumerate(_DEPTHS) for block in range(depth)]
    for theirs, (stage, block) in zip(blocks, places, strict=True):
        ours = f"blocks.{stage}.{block}"
        for index, name in {0: "conv_dw", 1: "bn1", 3: "conv_pw", 4: "bn2"}.items():
            names[f"{theirs}.{index}"] = f"{ours}.{name}"
    return names


def ends(stored: Stored, pattern: str) -> bool:
    """Whether a name in the file ends in the given regular expression."""
    return any(re.search(f"{pattern}$", name) for name in stored.marks)

"""Which engine computes a network, PyTorch ("dense") or the sparse kernels: one rule for all.

The rule looks at the model, its masks and the machine and never at a clock, so a run computes the
same numbers again, and a resumed one those of a run that was never interrupted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from pydantic import JsonValue
from torch import nn

from sparse_transfer import cost
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.sparse import library, training

Asked = Literal["auto", "dense", "sparse"]
Purpose = Literal["training", "features"]

# `auto` takes the kernels up to this share of the dense multiply-accumulates, and from this many
# of them per image: below, what surrounds a kernel call weighs more than the products in it. Steps
# of ResNet-18 and -50 were 1.3 to 1.5 times as fast as dense ones at 0.35, and 2.6 to 2.9 times at
# 0.15 (one thread, AVX-512, 32 and 112 pixels); a ResNet-20 with 41 million was twice as fast.
MOST_MACS: dict[Purpose, float] = {"training": 0.35, "features": 0.5}
LEAST_DENSE_MACS = 10_000_000


@dataclass(frozen=True)
class Choice:
    """An engine and why it was chosen."""

    name: Literal["dense", "sparse"]
    reason: str

    def facts(self) -> dict[str, JsonValue]:
        """For a result: `name` and `reason`, and the instruction level of the sparse kernels."""
        level = {"level": library.current().level} if self.name == "sparse" else {}
        return {**asdict(self), **level}


def chosen(
    asked: Asked,
    model: nn.Module,
    masks: Masks | None,
    device: torch.device,
    purpose: Purpose,
    *,
    image_size: int,
    precision: str = "fp32",
    processes: int = 1,
) -> Choice:
    """The engine for a model with its zeros held.

    A model without zeros is computed densely whatever is asked: there is nothing to skip, and a
    comparison with its dense model should not need two settings.

    Args:
        asked: "auto" takes the kernels where they can be used and the zeros are likely to pay
            (`MOST_MACS`, `LEAST_DENSE_MACS`).
        image_size: pixels of the square images.
        precision: of the run, "fp32" or "bf16".
        processes: that train together.

    Raises:
        UserError: "sparse" was asked for and cannot be.
    """
    if masks is None or masks.kept() == masks.total:
        return Choice("dense", "the model has no zeros that are held")
    if asked == "dense":
        return Choice("dense", "asked for")
    trains = purpose == "training"
    reason = _obstacle(model, masks, device, purpose, precision, processes)
    if reason is not None and asked == "sparse":
        raise UserError(
            "The sparse engine cannot be used here.",
            reason[0].upper() + reason[1:] + ("" if reason.endswith(".") else "."),
            "Choose --engine auto or dense, or remove the cause.",
        )
    if reason is not None:
        return Choice("dense", reason)
    if asked == "sparse":
        without = training.without_regions(model, masks, image_size) if trains else None
        return Choice("sparse", f"asked for; layer by layer: {without}" if without else "asked for")
    count = cost.macs(model, image_size, masks)
    left = count.ratio
    if trains:
        between = _between(model)
        if between is not None:
            return Choice("dense", f"regions of kernels end at every {between}")
        names = training.sparse_layers(model, masks)
        skipped = [count.layers[name] for name in names if name in count.layers]
        left = 1 - sum(layer.dense - layer.sparse for layer in skipped) / count.dense
    share, most = f"{100 * left:.0f} %", f"{100 * MOST_MACS[purpose]:.0f} %"
    if count.dense < LEAST_DENSE_MACS:
        millions = f"{count.dense / 1e6:.1f} million multiply-accumulates"
        return Choice("dense", f"the model is small: {millions} an image")
    if left > MOST_MACS[purpose]:
        return Choice("dense", f"{share} of the products are left; the kernels pay up to {most}")
    without = training.without_regions(model, masks, image_size) if trains else None
    if without is not None:
        return Choice("dense", f"layers would run one by one: {without}")
    return Choice("sparse", f"{share} of the products are left")


def _between(model: nn.Module) -> str | None:
    """An activation that the kernels do not train through, so that layers would run one by one.

    An EfficientNet-B0 at a tenth of its weights was slower than dense for that reason.
    """
    names = {type(module).__name__ for module in model.modules()}
    return next(iter(sorted(names & _NOT_IN_REGIONS)), None)


_NOT_IN_REGIONS = {
    "ELU", "GELU", "GELUTanh", "HardSwish", "HardSwishMe", "Hardswish", "LeakyReLU", "Mish",
    "PReLU", "QuickGELU", "SiLU", "Swish",
}  # fmt: skip


def _obstacle(
    model: nn.Module,
    masks: Masks,
    device: torch.device,
    purpose: Purpose,
    precision: str,
    processes: int,
) -> str | None:
    missing = library.available()
    if missing is not None:
        return missing
    if device.type != "cpu":
        return f"the kernels run on the CPU, and this is {device}"
    if precision != "fp32":
        return f"the kernels compute in fp32 here, and the run is in {precision}"
    if processes > 1:
        return f"the kernels train in one process, and there are {processes}"
    return training.obstacle(model, masks) if purpose == "training" else None

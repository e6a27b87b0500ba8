"""Forward passes of a checkpoint without gradients, by the engine that the rule chooses.

The sparse engine is compiled by rule, not by measurement: the numbers of a run are those of a run
that was resumed, or done again elsewhere. (On a ResNet-18 and a ResNet-50 at 90 % sparsity that
costs about a tenth of the speed that measuring would give.) A network is compiled once in a
process, and kept for the runs on the same checkpoint that follow.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from sparse_transfer import engines, models
from sparse_transfer.cost import evaluating
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.seeds import derive
from sparse_transfer.sparse import library

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparse_transfer.sparse.engine import Compiled

What = Literal["maps", "features", "logits"]
KEPT = 2  # compiled networks; each holds a copy of its weights
_COMPILED: OrderedDict[tuple[object, ...], Compiled] = OrderedDict()


@dataclass(frozen=True)
class Engine:
    """What computes a forward pass.

    Attributes:
        choice: the engine and why; for results.
        run: images (n, 3, h, w), of any number, float32 on the CPU → what was asked for; None for
            PyTorch, where the model is called as ever.
    """

    choice: engines.Choice
    run: Callable[[Tensor], Tensor] | None = None

    def key(self) -> dict[str, JsonValue]:
        """What a cache must tell apart: engines agree to rounding, not to the last bit."""
        return {} if self.run is None else {"engine": f"sparse {library.current().level}"}


@final
class Body(nn.Module):
    """What a model computes before its head, as a module: (n, 3, h, w) → (n, c, h', w')."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The model's `forward_features`."""
        return self.model.forward_features(images)  # pyright: ignore[reportCallIssue]


def engine(
    asked: engines.Asked,
    model: nn.Module,
    masks: Masks | None,
    what: What,
    *,
    image_size: int,
    batch_size: int,
    accelerator: Accelerator,
    precision: str = "fp32",
) -> Engine:
    """Choose, and compile where the sparse engine is chosen.

    Args:
        model: with exact zeros where `masks` says so; it is left alone, and later changes of its
            weights do not reach what was compiled.
        what: "maps" are what `forward_features` gives; "features" those pooled, in PyTorch.
        image_size: pixels of the square images.
        batch_size: of most calls; others work as well.

    Raises:
        UserError: the sparse engine was asked for and cannot be used.
    """
    choice = engines.chosen(
        asked,
        model,
        masks if what == "logits" else _without_head(masks, model),
        accelerator.device,
        "features",
        image_size=image_size,
        precision=precision,
        processes=accelerator.num_processes,
    )
    if choice.name == "dense":
        return Engine(choice)
    shape = (batch_size, getattr(model, "in_chans", 3), image_size)
    found = _compiled(model, what == "logits", shape)
    if found.engine == "dense" and asked == "sparse":
        raise UserError(
            "The sparse engine cannot be used here.",
            f"{found.reason[0].upper()}{found.reason[1:]}.",
            "Choose --engine auto or dense.",
        )
    if found.engine == "dense":  # a network that torch.fx cannot trace, for one
        return Engine(engines.Choice("dense", found.reason))
    choice = engines.Choice("sparse", f"{choice.reason}; {found.reason}")
    if what != "features":
        return Engine(choice, found)
    return Engine(choice, lambda images: models.pooled(model, found(images)))


def _without_head(masks: Masks | None, model: nn.Module) -> Masks | None:
    """The masks of what is before the classifier, which may be a new one of another size."""
    kept = {name: mask for name, mask in (masks or {}).items()}
    for name in models.head_name(model):
        kept.pop(name, None)
    return Masks(kept) if kept else None


def weights_digest(model: nn.Module, without: Collection[str] = ()) -> str:
    """SHA-256 (hex) over the names, types, shapes and bytes of the state dict, buffers included.

    The same on every device and in every memory layout.

    Args:
        without: names to leave out.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name in without:
            continue
        tensor = tensor.detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def structure_digest(model: nn.Module, without: Iterable[nn.Module] = ()) -> str:
    """SHA-256 (hex) of the model's printed structure.

    What the weights do not show: the same state dict with another padding or another epsilon in
    its batch norms gives other features.

    Args:
        without: modules whose own lines are left out.
    """
    text = repr(model)
    for module in without:
        text = text.replace(f": {module!r}", "")
    without_addresses = re.sub(r" at 0x[0-9a-f]+", "", text)
    return hashlib.sha256(without_addresses.encode()).hexdigest()


def _compiled(model: nn.Module, is_whole: bool, shape: tuple[int, int, int]) -> Compiled:
    """The whole network, or all before its head, for images of that shape; made once."""
    from sparse_transfer.sparse.engine import compile

    names, modules = (), ()
    if not is_whole:  # a new classifier leaves what is before it as it is
        names, modules = models.head_name(model), models.classifiers(model)
    key = (is_whole, weights_digest(model, names), structure_digest(model, modules), shape)
    if key in _COMPILED:
        _COMPILED.move_to_end(key)
        return _COMPILED[key]
    batch, channels, size = shape
    generator = torch.Generator().manual_seed(derive(0, "inference"))
    example = torch.randn(batch, channels, size, size, generator=generator)
    with evaluating(model):
        made = compile(model if is_whole else Body(model).eval(), example, tune=False)
    _COMPILED[key] = made
    while len(_COMPILED) > KEPT:
        _COMPILED.popitem(last=False)
    return made

"""Masks beside the model: which weights are kept, by parameter name, and how they are enforced.

A mask never touches a module: it is a bool tensor (True = kept) under the name that
`model.named_parameters()` gives the weight. It therefore survives `.to()`, `.half()`, saving,
`deepcopy` and compilation, and checkpoints keep their plain names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from sparse_transfer.errors import UserError

CHUNK = 2**17  # weights multiplied together, so that their pieces stay in the cache


@final
class Masks(Mapping[str, Tensor]):
    """An ordered mapping from parameter name to a bool tensor of that parameter's shape.

    Immutable: an update makes new `Masks`. A mask costs one byte per weight; where its memory
    layout is not the weight's, a copy in that layout is made once and kept (`laid_out` avoids it).

    Raises:
        ValueError: a tensor is not bool, or there is none.
    """

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        wrong = [name for name, mask in kept.items() if mask.dtype != torch.bool]
        if wrong or not kept:
            raise ValueError(
                f"masks are bool tensors, at least one; not so: {wrong or 'none given'}"
            )
        self._kept = dict(kept)
        self._counts: dict[str, int] | None = None
        self._copies: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    @staticmethod
    def ones(layers: Mapping[str, Tensor]) -> Masks:
        """Everything kept, in the shapes and on the devices of `layers`."""
        return Masks({n: torch.ones_like(w, dtype=torch.bool) for n, w in layers.items()})

    @staticmethod
    def unpack(packed: Mapping[str, Tensor], shapes: Mapping[str, Iterable[int]]) -> Masks:
        """The inverse of `pack`, on the CPU, in the order of `shapes`.

        Raises:
            UserError: a mask is missing or has the wrong number of bytes.
        """
        kept = {}
        for name, shape in shapes.items():
            size = torch.Size(shape)
            bits = packed.get(name)
            if bits is None or bits.numel() != -(-size.numel() // 8):
                raise UserError(
                    f"The stored mask of '{name}' cannot be read.",
                    f"Expected {-(-size.numel() // 8)} bytes for shape {tuple(size)}, "
                    f"found {'nothing' if bits is None else bits.numel()}.",
                    "The file belongs to another model, or is damaged.",
                )
            flat = np.unpackbits(bits.cpu().numpy(), count=size.numel()).astype(bool)
            kept[name] = torch.from_numpy(flat).reshape(size)
        return Masks(kept)

    def __getitem__(self, name: str) -> Tensor:
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, {self.total} weights, sparsity {self.sparsity():.4f})"

    @property
    def total(self) -> int:
        """Number of weights under the masks, kept or not."""
        return sum(mask.numel() for mask in self._kept.values())

    def counts(self) -> dict[str, int]:
        """Number of kept weights by parameter name."""
        if self._counts is None:
            self._counts = {n: int(torch.count_nonzero(m)) for n, m in self._kept.items()}
        return dict(self._counts)

    def kept(self) -> int:
        """Number of kept weights in total."""
        return sum(self.counts().values())

    def sparsity(self) -> float:
        """Share of zeros in [0, 1] over all weights under the masks."""
        return 1.0 - self.kept() / self.total

    def to(self, device: torch.device | str) -> Masks:
        """The same masks on another device; `self` when they are there already."""
        if all(mask.device == torch.device(device) for mask in self._kept.values()):
            return self
        return Masks({name: mask.to(device) for name, mask in self._kept.items()})

    def laid_out(self, tensors: Mapping[str, Tensor]) -> Masks:
        """The same masks on the device and in the memory layout of the named tensors."""
        like = {name: _like(mask, tensors[name]) for name, mask in self._kept.items()}
        return self if all(like[n] is mask for n, mask in self._kept.items()) else Masks(like)

    def factor(self, name: str, like: Tensor) -> Tensor:
        """The mask of `name` as ones and zeros in the dtype and layout of `like`, a new tensor."""
        return torch.empty_like(like).copy_(self._kept[name])

    @torch.no_grad()
    def zero(self, name: str, tensor: Tensor) -> None:
        """Multiply a tensor by the mask of `name`, in place.

        On a CPU piece by piece through a small buffer: torch multiplies float by bool several
        times slower than it turns a cached piece into float and multiplies by that.
        """
        key = (name, tensor.stride())
        mask = self._copies.get(key)
        if mask is None:
            mask = _like(self._kept[name], tensor)
            if mask is not self._kept[name]:
                self._copies[key] = mask
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        if tensor.device.type != "cpu" or not whole or not tensor.is_floating_point():
            tensor.mul_(mask)
            return
        flat = tensor.as_strided((tensor.numel(),), (1,))
        bits = mask.as_strided((mask.numel(),), (1,)).view(torch.uint8)
        buffer = torch.empty(min(CHUNK, flat.numel()), dtype=tensor.dtype)
        for part, kept in zip(flat.split(CHUNK), bits.split(CHUNK), strict=True):
            part.mul_(buffer[: len(kept)].copy_(kept))

    @torch.no_grad()
    def apply(self, named_parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Zero the pruned entries of every given tensor whose name has a mask, in place.

        For copies of the weights (an averaged model) as well as for the model itself.
        """
        for name, weight in named_parameters:
            if name in self._kept:
                self.zero(name, weight)

    def pack(self) -> dict[str, Tensor]:
        """Eight weights to a byte: name → uint8 (ceil(n / 8),) on the CPU, without shapes."""
        return {name: torch.from_numpy(_bits(mask)) for name, mask in self._kept.items()}

    def digest(self) -> str:
        """sha256 (hex) of names, shapes and bits; independent of order, device and dtype."""
        content = hashlib.sha256()
        for name in sorted(self._kept):
            mask = self._kept[name]
            content.update(f"{name} {tuple(mask.shape)} ".encode())
            content.update(_bits(mask).tobytes())
        return content.hexdigest()


@torch.no_grad()
def enforce(masks: Masks, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Zero the pruned weights and every optimizer state tensor of a pruned weight, in place.

    State tensors are found by shape (momentum, Adam's moments, any other per-weight buffer), so
    no optimizer is special. Without this momentum moves a pruned weight off zero at the next
    step, and comes back stale when the weight is regrown.
    """
    for name in masks:
        weight = model.get_parameter(name)
        state = optimizer.state.get(weight, {}) if optimizer is not None else {}
        per_weight = [s for s in state.values() if torch.is_tensor(s) and s.shape == weight.shape]
        for tensor in (weight, *per_weight):
            masks.zero(name, tensor)


def keeps_zeros(optimizer: torch.optim.Optimizer | None) -> bool:
    """Whether a weight stays exactly zero of itself when its gradient and state are zero.

    So it is by arithmetic with these three, weight decay included, and the steps between two
    mask changes need no `enforce`: two passes over all weights less. Any other is enforced.
    """
    if optimizer is None:
        return False
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrap
    return type(inner) in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW) and all(
        group.get("eps", 1.0) > 0 for group in inner.param_groups
    )


@torch.no_grad()
def mask_gradients(masks: Masks, model: nn.Module) -> None:
    """Zero the gradients of pruned weights, so that clipping and gradient norms see kept ones."""
    for name in masks:
        gradient = model.get_parameter(name).grad
        if gradient is not None:
            masks.zero(name, gradient)


@torch.no_grad()
def assert_zeros(masks: Masks, model: nn.Module) -> None:
    """Verify that every pruned weight is exactly zero.

    Raises:
        UserError: a pruned weight is NaN: the training diverged (zero times infinity).
        AssertionError: a pruned weight is another number: an error of this program.
    """
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        alive = weight.masked_fill(mask, 0.0)
        found = int(torch.count_nonzero(alive))
        if found and bool(alive.isnan().any()):
            raise diverged(name)
        if found:
            raise AssertionError(f"{found} pruned weights of '{name}' are not zero")


def diverged(name: str) -> UserError:
    """The error for values of a layer that are not finite."""
    return UserError(
        f"The training diverged: '{name}' holds values that are not finite.",
        "A mask cannot be chosen or kept on NaN or infinite weights or gradients.",
        "Lower the learning rate, lengthen its warm-up, or set `clip_norm`.",
    )


def _like(mask: Tensor, tensor: Tensor) -> Tensor:
    """The mask in the layout and on the device of a tensor; itself where it is so already."""
    if mask.device == tensor.device and mask.stride() == tensor.stride():
        return mask
    return torch.empty_like(tensor, dtype=torch.bool).copy_(mask)


def _bits(mask: Tensor) -> np.ndarray:
    return np.packbits(mask.detach().cpu().contiguous().numpy().reshape(-1))

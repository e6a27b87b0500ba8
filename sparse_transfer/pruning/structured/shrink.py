"""The shrink plan: which channels of a full-size network are left, by tensor and dimension.

A network that was pruned by channels is the architecture's full-size network with rows and columns
cut out. The plan is what cuts them: it needs no tracing, is small, is JSON, and rebuilds the
network anywhere. It holds kept indices in the coordinates of the network that it applies to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_transfer.errors import UserError


@dataclass(frozen=True)
class Cut:
    """What is left of one dimension: ascending indices into its `size` entries."""

    size: int
    kept: tuple[int, ...]


@final
@dataclass(frozen=True)
class ShrinkPlan:
    """Cuts by parameter or buffer name and dimension; dimensions without a cut stay whole."""

    cuts: Mapping[str, Mapping[int, Cut]]

    def __bool__(self) -> bool:
        return bool(self.cuts)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers; the inverse of `from_json`."""
        return {
            name: {str(d): {"size": cut.size, "kept": list(cut.kept)} for d, cut in dims.items()}
            for name, dims in self.cuts.items()
        }

    @staticmethod
    def from_json(stored: Any) -> ShrinkPlan:
        """Read a plan.

        Raises:
            UserError: this is not a plan.
        """
        try:
            cuts = {
                str(name): {
                    int(d): Cut(_whole(cut["size"]), tuple(map(_whole, cut["kept"])))
                    for d, cut in dims.items()
                }
                for name, dims in stored.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise _damaged(f"It cannot be read ({type(error).__name__}: {error}).") from error
        for name, dims in cuts.items():
            for d, cut in dims.items():
                inside = not cut.kept or (cut.kept[0] >= 0 and cut.kept[-1] < cut.size)
                if not cut.kept or not inside or list(cut.kept) != sorted(set(cut.kept)):
                    raise _damaged(
                        f"What it keeps of dimension {d} of '{name}' is not an ascending list of "
                        f"indices below {cut.size}."
                    )
        return ShrinkPlan(cuts)

    def digest(self) -> str:
        """sha256 (hex) of the plan; independent of the order of its entries."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def then(self, later: ShrinkPlan) -> ShrinkPlan:
        """One plan for this one followed by `later`, which speaks of the shrunk network.

        Raises:
            UserError: `later` is for a network of another size.
        """
        cuts = {name: dict(dims) for name, dims in self.cuts.items()}
        for name, dims in later.cuts.items():
            for d, cut in dims.items():
                first = cuts.setdefault(name, {}).get(d)
                if first is not None:
                    _check_size(name, d, len(first.kept), cut)
                    cut = Cut(first.size, tuple(first.kept[i] for i in cut.kept))
                cuts[name][d] = cut
        return ShrinkPlan(cuts)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a tensor of the size of `name` (an average, a momentum); or itself."""
        for d, cut in self.cuts.get(name, {}).items():
            _check_size(name, d, tensor.shape[d] if d < tensor.dim() else 0, cut)
        return _sliced(tensor, self.cuts.get(name, {}))

    def apply(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Shrink a model in place, and with it the state of its optimizer.

        Parameters are replaced (a tensor that autograd has seen cannot change its shape): new ones
        stand at the same place of the model and of the optimizer's groups. Per-weight state is cut
        with the same indices, a step count stays. Dtype, device and memory layout stay, gradients
        are dropped. The attributes of convolutions, linear layers and norms follow, and so do the
        widths that timm's `reset_classifier` reads.

        Raises:
            UserError: the model lacks a tensor of the plan, or has one of another size; nothing
                was changed then.
        """
        tensors = dict(model.named_parameters(remove_duplicate=False))
        tensors |= dict(model.named_buffers(remove_duplicate=False))
        for name, dims in self.cuts.items():
            for d, cut in dims.items():
                if name not in tensors:
                    raise _misfit(f"The model has no tensor '{name}'.")
                found = tensors[name].shape
                _check_size(name, d, found[d] if d < len(found) else 0, cut)
        widths = _head_widths(model)
        replaced: dict[int, nn.Parameter] = {}
        for name, dims in self.cuts.items():
            path, _, own = name.rpartition(".")
            module, tensor = model.get_submodule(path), tensors[name]
            if not isinstance(tensor, nn.Parameter):
                module._buffers[own] = _sliced(tensor, dims)
                continue
            if id(tensor) not in replaced:  # tied weights have two names and are cut once
                small = _sliced(tensor.detach(), dims)
                replaced[id(tensor)] = nn.Parameter(small, requires_grad=tensor.requires_grad)
                if optimizer is not None:
                    _move_state(optimizer, tensor, replaced[id(tensor)], name, dims)
            module._parameters[own] = replaced[id(tensor)]
        for path in {name.rpartition(".")[0] for name in self.cuts}:
            _refit(model.get_submodule(path))
        _refit_head(model, widths)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not an index")
    return value


def _sliced(tensor: Tensor, dims: Mapping[int, Cut]) -> Tensor:
    if not dims:
        return tensor
    layout = torch.contiguous_format
    if tensor.dim() == 4 and not tensor.is_contiguous():
        layout = torch.channels_last
    for d, cut in dims.items():
        tensor = tensor.index_select(d, torch.tensor(cut.kept, device=tensor.device))
    return tensor.contiguous(memory_format=layout)


def _move_state(
    optimizer: torch.optim.Optimizer,
    old: nn.Parameter,
    new: nn.Parameter,
    name: str,
    dims: Mapping[int, Cut],
) -> None:
    for group in optimizer.param_groups:
        group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
    state = optimizer.state.pop(old, None)
    if state is None:
        return
    for key, value in state.items():
        if torch.is_tensor(value) and value.shape == old.shape:
            state[key] = _sliced(value, dims)
        elif torch.is_tensor(value) and value.numel() > 1:
            raise UserError(
                f"The optimizer's state '{key}' of '{name}' cannot be cut with the channels.",
                f"Its shape is {tuple(value.shape)}, the parameter's {tuple(old.shape)}.",
                "Use sgd, adam or adamw, which keep their state weight by weight.",
            )
    optimizer.state[new] = state


def _refit(module: nn.Module) -> None:
    """Make the attributes of a layer agree with its tensors."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        rows, columns = module.weight.shape[:2]
        if module.groups > 1:  # depthwise: one filter for each channel
            module.groups = rows
        module.out_channels, module.in_channels = rows, columns * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _BatchNorm):
        kept = module.weight if module.weight is not None else module.running_mean
        assert kept is not None, "a norm without tensors is in no plan"
        module.num_features = kept.numel()
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def _head_widths(model: nn.Module) -> list[tuple[str, int]]:
    """Path and inputs of timm's classifier and of a convolution that reads the pooled features."""
    get_classifier = getattr(model, "get_classifier", None)
    head = get_classifier() if get_classifier is not None else None
    found = []
    for path, module in model.named_modules():
        if module is head and isinstance(module, nn.Linear):
            found.append((path, module.in_features))
        elif path == "conv_head" and isinstance(module, nn.Conv2d):  # the MobileNetV3 family
            found.append((path, module.in_channels))
    return found


def _refit_head(model: nn.Module, before: list[tuple[str, int]]) -> None:
    """Set the widths from which timm makes a new classifier, on the way down to it."""
    for (path, old), (_, new) in zip(before, _head_widths(model), strict=True):
        parts = path.split(".")[:-1]
        for outer in (".".join(parts[:depth]) for depth in range(len(parts) + 1)):
            module = model.get_submodule(outer)
            for width in ("num_features", "head_hidden_size", "in_features"):
                if getattr(module, width, None) == old:
                    setattr(module, width, new)


def _check_size(name: str, d: int, found: int, cut: Cut) -> None:
    if found != cut.size:
        raise _misfit(f"Dimension {d} of '{name}' has {found} entries; the plan cuts {cut.size}.")


def _misfit(why: str) -> UserError:
    return UserError(
        "The shrink plan does not fit the model.",
        why,
        "Use the architecture and arguments that the plan was made with.",
    )


def _damaged(why: str) -> UserError:
    return UserError("The shrink plan is damaged.", why, "Copy the checkpoint again.")

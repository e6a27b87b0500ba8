"""A network with fixed masks made ready to be trained: its parameters are the non-zeros alone.

    model = sparse.convert_for_training(network, masks, example=images)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)   # state of non-zeros only
    ...
    network = model.to_dense()                                            # plain again, exactly

A gradient, a momentum and a weight decay of a weight that stays zero have no effect in the masked
dense training either, so both compute the same up to rounding.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparse_transfer.errors import UserError
from sparse_transfer.fusion import has_hooks
from sparse_transfer.sparse import drop_in, library, training_regions
from sparse_transfer.sparse.drop_in import SparseConv2d

SIZES = 4  # of images whose regions are kept
DENSEST = 0.5  # a convolution with more of its weights left is multiplied densely


@final
class TrainingModel(nn.Module):
    """What `convert_for_training` returns; called, trained and saved like the network itself.

    In training mode runs of layers are computed as regions (training_regions.py), made at the first
    batch of a size of image; otherwise, and where modules are in different modes (batch norms
    apart, which may be frozen), layer by layer. Parameters are those of `network` either way.

    Attributes:
        network: the network with `SparseConv2d` in the place of convolutions. Another layer with
            zeros keeps its type and makes its weight of its non-zeros at every call.
        masks: what is held, by the names of the plain network's parameters.
        note: why layers are computed one by one, or None where there are regions or no batch yet.
    """

    def __init__(self, network: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.network, self.masks = network, dict(masks)
        self.training = network.training
        self.note: str | None = None
        self._regions: dict[tuple[Any, ...], nn.Module] = {}  # by image and hooks; no submodules

    def forward(self, images: Tensor) -> Any:
        """The network's output for (n, channels, height, width) float32 images.

        Raises:
            UserError: the images are not float32 on the CPU.
        """
        drop_in.check(images, "images", (None, None, None, None))
        if not self.training or not len(images) or not _all_train(self.network):
            return self.network(images)
        return self.prepare(images)(images)

    def prepare(self, example: Tensor) -> nn.Module:
        """The network in regions laid out for such images, made once for a size of image."""
        hooked = tuple(name for name, m in self.network.named_modules() if has_hooks(m))
        size = (example.shape[1:], hooked)
        if size not in self._regions:
            if len(self._regions) >= SIZES:
                self._regions.pop(next(iter(self._regions)))
            # what layers do in training is written into the trace
            with _training(self.network), torch.inference_mode(False):
                self._regions[size], self.note = training_regions.fuse(self.network, example)
        return self._regions[size]

    def to_dense(self) -> nn.Module:
        """The plain network: weights with their zeros, buffers, modes and `requires_grad` as now.

        It shares nothing with this one.
        """
        plain = copy.deepcopy(self.network)
        for name, module in list(plain.named_modules()):
            if isinstance(module, SparseConv2d):
                _replace(plain, name, module.to_dense())
            elif parametrize.is_parametrized(module):
                _make_plain(module)
        return plain


def convert_for_training(
    model: nn.Module, masks: Mapping[str, Tensor], example: Tensor | None = None
) -> TrainingModel:
    """A copy of a network whose parameters are its non-zeros; the network itself is left alone.

    Args:
        model: any module on the CPU in float32, its pruned weights zero.
        masks: `Masks`, or bool tensors (True = kept) by parameter name. A parameter without a mask
            is trained as it is.
        example: (n, channels, height, width) images as they will come; the first batch if None.

    Raises:
        UserError: there are no kernels; a mask does not fit its parameter; a pruned weight is not
            zero; a masked parameter is shared by two layers; device or type are not the CPU's
            float32.
    """
    if not isinstance(model, nn.Module) or not isinstance(masks, Mapping):
        raise UserError(
            "A torch.nn.Module and its masks are needed to convert a model for training.",
            f"These are a {type(model).__name__} and a {type(masks).__name__}.",
            "Pass Masks, or bool tensors by parameter name.",
        )
    reason = library.available() or obstacle(model, masks)
    if reason is not None:
        raise UserError("The model cannot be trained by the sparse engine.", reason)
    _check_fit(model, masks)
    if example is not None:
        drop_in.check(example, "images", (None, None, None, None))
        if not len(example):
            raise UserError(
                "A model cannot be converted for no images.",
                f"The example's shape is {tuple(example.shape)}.",
                "Pass as many images as a batch will have.",
            )
    network = copy.deepcopy(model)
    skipped = set(sparse_layers(model, masks))
    for name, mask in masks.items():
        path, _, tensor = name.rpartition(".")
        module = network.get_submodule(path)
        if bool(mask.all()):
            continue
        if name in skipped:
            assert isinstance(module, nn.Conv2d)
            _replace(network, path, SparseConv2d.from_dense(module, mask))
        else:
            names = list(module._parameters)
            made = _NonZeros(mask, tuple(names[names.index(tensor) + 1 :]))
            parametrize.register_parametrization(module, tensor, made, unsafe=True)
    converted = TrainingModel(network, masks)
    if example is not None:
        converted.prepare(example)
    return converted


def sparse_layers(model: nn.Module, masks: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights whose zeros are skipped, those of convolutions that are sparse enough;
    the other masked layers are multiplied densely."""
    found = []
    for name, mask in masks.items():
        path, _, tensor = name.rpartition(".")
        is_sparse = int(mask.count_nonzero()) <= DENSEST * mask.numel()
        is_weight = bool(path) and tensor == "weight"
        if is_sparse and is_weight and drop_in.obstacle(model.get_submodule(path)) is None:
            found.append(name)
    return found


def obstacle(model: nn.Module, masks: Mapping[str, Tensor]) -> str | None:
    """Why a network with these masks cannot be converted, or None; masks are not checked."""
    found = {f"{p.dtype} on {p.device}" for p in model.parameters()} - {"torch.float32 on cpu"}
    if found:
        return f"Its parameters are {', '.join(sorted(found))}; it takes torch.float32 on the CPU."
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for names in owners.values():
        if len(names) > 1 and any(name in masks for name in names):
            return (
                f"{' and '.join(names)} are one tensor; a masked weight must belong to one layer."
            )
    parametrized = [n for n, m in model.named_modules() if parametrize.is_parametrized(m)]
    if parametrized:
        return f"{parametrized[0]} has a parametrization; remove it first."
    return None


def without_regions(model: nn.Module, masks: Mapping[str, Tensor], image_size: int) -> str | None:
    """Why layers of a network with these masks would be computed one by one, or None."""
    trained = copy.deepcopy(model).train()
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if name in masks:
                parameter.mul_(masks[name])
    example = torch.zeros(1, getattr(model, "in_chans", 3), image_size, image_size)
    return convert_for_training(trained, masks, example).note


class _NonZeros(nn.Module):
    """A weight made of its non-zeros, for a layer that is computed densely.

    `later` are the names of the parameters that come after it in its module.
    """

    kept: Tensor

    def __init__(self, kept: Tensor, later: tuple[str, ...]) -> None:
        super().__init__()
        self.later = later
        self.register_buffer("kept", kept.detach().clone(memory_format=torch.contiguous_format))

    def forward(self, values: Tensor) -> Tensor:
        """(non-zeros,) → the weight."""
        return values.new_zeros(self.kept.shape).masked_scatter(self.kept, values)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight → (non-zeros,)."""
        return weight[self.kept]


def _all_train(network: nn.Module) -> bool:
    """Whether every module is in training mode, batch norms apart."""
    return all(
        module.training or isinstance(module, nn.modules.batchnorm._BatchNorm)
        for module in network.modules()
    )


@contextlib.contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    """Training mode for everything inside; the modes are put back after."""
    modes = [(module, module.training) for module in network.modules()]
    network.train()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _check_fit(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        weight = parameters.get(name)
        if weight is None:
            raise UserError(
                f"There is a mask for '{name}', and no parameter of that name.",
                f"{type(model).__name__} has {', '.join(list(parameters)[:4])}, …",
                "Use the masks that were made for this architecture.",
            )
        if mask.dtype != torch.bool or mask.shape != weight.shape or mask.device != weight.device:
            raise UserError(
                f"The mask of '{name}' does not fit.",
                f"It is {mask.dtype} {tuple(mask.shape)} on {mask.device}; it must be torch.bool "
                f"{tuple(weight.shape)} on {weight.device}.",
                "Use the masks that were made for this architecture.",
            )
        wrong = int(weight.detach().masked_fill(mask, 0.0).count_nonzero())
        if wrong:
            raise UserError(
                f"{wrong} pruned weights of '{name}' are not zero.",
                "The mask belongs to other weights, or was not applied to these.",
                "Multiply the weights by the masks first: masks.apply(model.named_parameters()).",
            )


def _make_plain(module: nn.Module) -> None:
    """Remove our parametrizations, leaving the parameters in their original order.

    Not by torch's own function: it changes the class, which copies of a module share.
    """
    made = module.parametrizations
    assert isinstance(made, nn.ModuleDict)
    weights = {
        name: nn.Parameter(
            getattr(module, name).detach(), each.get_parameter("original").requires_grad
        )
        for name, each in made.items()
    }
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for tensor, each in made.items():
        module.register_parameter(tensor, weights[tensor])
        non_zeros = each.get_submodule("0")
        assert isinstance(non_zeros, _NonZeros)
        for name in non_zeros.later:
            if name in module._parameters:
                module.register_parameter(name, module._parameters.pop(name))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)

"""NVIDIA GPUs in half precision: 2:4 layers on sparse tensor cores, where that is faster.

Linear layers and 1 × 1 convolutions whose weights keep at most two of every four neighbouring input
channels become `torch.sparse.to_sparse_semi_structured` matrix products. Each is timed on its own
input against the dense layer, and the faster one stays. Everything else, such as larger kernels,
runs dense in half precision, channels-last, with batch norms folded; a dense model runs so
altogether.

Source: Mishra et al. 2021, arXiv 2104.08378.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from sparse_transfer import latency
from sparse_transfer.errors import UserError
from sparse_transfer.fusion import fold_batch_norms
from sparse_transfer.latency import BF16_TOLERANCE, Prepared

ALIAS = "two-four"
DTYPE = torch.float16
OLDEST = (8, 0)  # compute capability: Ampere, the first with sparse tensor cores
ROWS, COLUMNS = 32, 64  # what the kernels take multiples of, in half precision


@final
class Backend:
    """Half the products of every 2:4 layer, by the hardware."""

    name = ALIAS
    uses_zeros = "uses zeros"
    tolerance = BF16_TOLERANCE
    device = "cuda"

    def available(self) -> str | None:
        """Why there are no sparse tensor cores, or None."""
        if not torch.cuda.is_available():
            return "PyTorch finds no NVIDIA GPU here"
        found = torch.cuda.get_device_capability()
        if found < OLDEST:
            name, own = torch.cuda.get_device_name(), ".".join(map(str, found))
            return f"{name} has compute capability {own}; sparse tensor cores begin at 8.0"
        return None

    def prepare(self, model: nn.Module, example: Tensor) -> Prepared:
        """Convert and measure; the model is copied.

        Raises:
            UserError: there is no such GPU, or the example is not on it.
        """
        reason = self.available()
        if reason is None and not example.is_cuda:
            reason = "The images are not on the GPU: measure with --device cuda."
        if reason is not None:
            raise UserError(f"The backend {ALIAS} cannot run.", reason)
        folded, note = fold_batch_norms(model)
        # pyright does not know the overload of `to` with a memory format
        half = folded.to(example.device, DTYPE, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        made, chosen, eligible = convert(half, _half(example), sparsify)

        def run(images: Tensor) -> Tensor:
            with torch.inference_mode():
                return made(_half(images)).float()

        return Prepared(run, f"{note}; {chosen} of {eligible} 2:4 layers sparse; float16")


def is_two_four(weight: Tensor) -> bool:
    """Whether at most two of every four neighbouring inputs of each output are kept.

    Args:
        weight: (out, in) or (out, in, 1, 1).
    """
    matrix = weight.flatten(1)
    if matrix.shape[1] % 4:
        return False
    return bool(((matrix != 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all())


def is_eligible(module: nn.Module) -> bool:
    """Whether a layer is a matrix product that sparse tensor cores can do: 2:4, and sizes fit."""
    if isinstance(module, nn.Conv2d):
        pointwise = module.kernel_size == (1, 1) and module.groups == 1
        if not pointwise or module.padding not in ((0, 0), "valid"):
            return False
    elif not isinstance(module, nn.Linear):
        return False
    out, into = module.weight.shape[:2]
    return not out % ROWS and not into % COLUMNS and is_two_four(module.weight)


@final
class Product(nn.Module):
    """A linear layer or 1 × 1 convolution as one matrix product with a weight of any kind.

    Args:
        module: the layer.
        weight: (out, in), what stands for its weight.
    """

    def __init__(self, module: nn.Linear | nn.Conv2d, weight: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), module.bias
        self._stride = module.stride if isinstance(module, nn.Conv2d) else None

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's: (n, in, h, w) → (n, out, h', w'), or (…, in) → (…, out)."""
        if self._stride is None:
            return nn.functional.linear(x, self.weight, self.bias)
        down, right = self._stride
        # of a channels-last tensor this is a view, and so is the way back
        pixels = x[:, :, ::down, ::right].permute(0, 2, 3, 1)
        n, height, width, into = pixels.shape
        made = nn.functional.linear(pixels.reshape(-1, into), self.weight, self.bias)
        return made.view(n, height, width, -1).permute(0, 3, 1, 2)


def sparsify(weight: Tensor) -> Tensor:
    """A 2:4 matrix (out, in) in the form that sparse tensor cores read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*prototype", category=UserWarning)
        return torch.sparse.to_sparse_semi_structured(weight)


def convert(
    model: nn.Module, example: Tensor, pack: Callable[[Tensor], Tensor]
) -> tuple[nn.Module, int, int]:
    """Replace eligible layers where the matrix product is faster on the layer's own input.

    Args:
        model: changed in place.
        example: images as they will come.
        pack: makes the weight of a product from the layer's (out, in) matrix.

    Returns:
        The model, how many layers were replaced, and how many could have been.
    """
    layers = {name: module for name, module in model.named_modules() if is_eligible(module)}
    seen = _inputs(model, layers, example)
    chosen = 0
    for name, x in seen.items():
        dense = layers[name]
        assert isinstance(dense, nn.Linear | nn.Conv2d)
        product = Product(dense, pack(dense.weight.detach().flatten(1).contiguous()))
        with torch.inference_mode():
            medians = latency.medians({"dense": dense, "sparse": product}, x)
        if medians["sparse"] < medians["dense"]:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, product)
            chosen += 1
    return model, chosen, len(layers)


def _inputs(model: nn.Module, layers: dict[str, nn.Module], example: Tensor) -> dict[str, Tensor]:
    """What each layer is given on the example; layers that are not called are left out."""
    seen: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0]

        return hook

    hooks = [module.register_forward_pre_hook(remember(name)) for name, module in layers.items()]
    try:
        with torch.inference_mode():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _half(images: Tensor) -> Tensor:
    return images.to(DTYPE).contiguous(memory_format=torch.channels_last)

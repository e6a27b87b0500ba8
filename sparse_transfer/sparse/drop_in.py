"""Convolutions that are trained with their zeros held: the parameters are the non-zeros alone.

What a gradient, a momentum or a weight decay does to a weight that is held at zero is never
computed and never stored. Tensors between layers are PyTorch's; regions of layers that stay in the
layout of the kernels are built on top (training_regions.py).
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparse_transfer.errors import UserError
from sparse_transfer.fusion import has_hooks
from sparse_transfer.sparse.layer import SparseConvolution, check


@final
class SparseConv2d(nn.Module):
    """A convolution with a fixed mask, in float32 on the CPU, as `nn.Conv2d` would compute it.

    The gradient cannot be differentiated again. A change of `values` is seen by its version
    counter, as by autograd: optimizers and in-place operations count, writes through `.data` do
    not.

    Args:
        values: (non-zeros,) float32, in the order of the flattened weight.
        bias: (out,) float32, or None.
        kept: bool of the weight's shape (out, in / groups, height, width), True at the non-zeros.
        stride, padding, dilation: for y and x.
        groups: of channels.

    Raises:
        UserError: the sizes do not fit each other.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    kept: Tensor

    def __init__(
        self,
        values: nn.Parameter,
        bias: nn.Parameter | None,
        kept: Tensor,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        super().__init__()
        if kept.dim() != 4 or kept.dtype != torch.bool:
            raise UserError(
                "The mask is not that of a convolution.",
                f"It is {kept.dtype} {tuple(kept.shape)}; torch.bool with four sizes is needed.",
            )
        check(values, "values", (int(kept.count_nonzero()),))
        if bias is not None:
            check(bias, "biases", (kept.shape[0],))
        self.values, self.bias = values, bias
        self.register_buffer("kept", kept)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self._convolution: SparseConvolution | None = None
        self._written: tuple[Tensor, int] | None = None

    @staticmethod
    def from_dense(conv: nn.Conv2d, kept: Tensor) -> SparseConv2d:
        """A convolution's non-zeros under a mask; the bias is shared with it.

        Raises:
            UserError: `obstacle` says why it cannot be, or the mask does not fit the weight.
        """
        reason = obstacle(conv)
        if reason is not None:
            raise UserError("The convolution cannot be made sparse.", reason)
        if kept.shape != conv.weight.shape or kept.dtype != torch.bool:
            raise UserError(
                "The mask does not fit the convolution.",
                f"It is {kept.dtype} {tuple(kept.shape)}; it must be torch.bool "
                f"{tuple(conv.weight.shape)}.",
            )
        values = nn.Parameter(conv.weight.detach()[kept], conv.weight.requires_grad)
        padding = _padding(conv)
        assert padding is not None
        layer = SparseConv2d(
            values,
            conv.get_parameter("bias") if conv.bias is not None else None,
            kept.detach().clone(memory_format=torch.contiguous_format),
            stride=_pair(conv.stride),
            padding=padding,
            dilation=_pair(conv.dilation),
            groups=conv.groups,
        )
        return layer.train(conv.training)

    @property
    def weight_shape(self) -> torch.Size:
        """(out, in / groups, height, width)."""
        return self.kept.shape

    def forward(self, images: Tensor) -> Tensor:
        """(n, in, h, w) float32, any strides → (n, out, h', w').

        Raises:
            UserError: the images do not fit, or there are no kernels.
        """
        output: Any = _Convolve.apply(images, self.values, self)
        return output if self.bias is None else output + self.bias[:, None, None]

    def dense_weight(self) -> Tensor:
        """The weight with its zeros, a new tensor through which gradients flow."""
        return self.values.new_zeros(self.weight_shape).masked_scatter(self.kept, self.values)

    def to_dense(self) -> nn.Conv2d:
        """A plain convolution with the same weight; the bias is shared with it."""
        out, into, *kernel = self.weight_shape
        conv = nn.Conv2d(
            into * self.groups,
            out,
            (kernel[0], kernel[1]),
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=False,
            device="meta",
        )
        conv.weight = nn.Parameter(self.dense_weight().detach(), self.values.requires_grad)
        conv.register_parameter("bias", self.bias)
        return conv.train(self.training)

    def convolution(self, values: Tensor) -> SparseConvolution:
        """The kernels, made at the first call, with these values."""
        if self._convolution is None:
            self._convolution = SparseConvolution(
                self.dense_weight().detach(),
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                groups=self.groups,
                kept=self.kept,
            )
        if values.is_inference():  # such tensors have no version
            self._convolution.update(values)
            self._written = None
        elif self._written is None or not _is_same(values, self._written):
            self._convolution.update(values)
            # shares memory and version, and keeps the memory from becoming another tensor's
            self._written = values.detach(), values._version
        return self._convolution

    def extra_repr(self) -> str:
        """Shape, density and how it is laid over the images."""
        density = self.values.numel() / max(1, self.kept.numel())
        return (
            f"{tuple(self.weight_shape)}, density={density:.4f}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the kernels, which a copy makes anew."""
        return {**self.__dict__, "_convolution": None, "_written": None}


@final
class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, values: Tensor, layer: SparseConv2d) -> Tensor:
        ctx.save_for_backward(images, values)
        ctx.layer = layer
        return layer.convolution(values).forward(images)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        images, values = ctx.saved_tensors
        convolution = ctx.layer.convolution(values)
        wants_images, wants_values, _ = ctx.needs_input_grad
        size = (images.shape[2], images.shape[3])
        return (
            convolution.input_gradient(gradient, size) if wants_images else None,
            convolution.value_gradient(images, gradient) if wants_values else None,
            None,
        )


def obstacle(conv: nn.Module) -> str | None:
    """Why a layer cannot become a `SparseConv2d`, or None where it can."""
    if type(conv) is not nn.Conv2d:
        return f"It is a {type(conv).__name__}; only a plain nn.Conv2d can."
    if conv.padding_mode != "zeros":
        return f"Its padding is '{conv.padding_mode}'; the kernels pad with zeros."
    if _padding(conv) is None:
        return "Its padding is 'same' and differs between the sides."
    if conv.weight.dtype != torch.float32 or conv.weight.device.type != "cpu":
        return (
            f"Its weight is {conv.weight.dtype} on {conv.weight.device}; "
            "the kernels compute in float32 on the CPU."
        )
    if has_hooks(conv):
        return "It has hooks, which would be lost."
    return None


def _padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """On both sides in y and x; None where they differ."""
    if conv.padding == "valid":
        return 0, 0
    if not isinstance(conv.padding, str):
        return _pair(conv.padding)
    sums = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(s % 2 for s in sums) else (sums[0] // 2, sums[1] // 2)


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    y, x = numbers
    return y, x


def _is_same(values: Tensor, written: tuple[Tensor, int]) -> bool:
    tensor, version = written
    return tensor.data_ptr() == values.data_ptr() and version == values._version

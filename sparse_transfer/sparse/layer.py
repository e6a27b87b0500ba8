"""One convolution or linear layer with sparse weights: forward and both gradients, as functions.

Tensors come and go in PyTorch's layout, so a call pays for the way into the planes and back, which
engine.py avoids between layers of a network. Convolutions of 1 × 1 work on contiguous tensors as
they lie, where `layout.as_tensor` finds a layout for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sparse_transfer.errors import UserError
from sparse_transfer.sparse import emission, library
from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.layout import Axis, Layout, as_tensor, forward_halo, grid_for
from sparse_transfer.sparse.packing import Packed, PackedDense, Pattern
from sparse_transfer.sparse.program import Program

ALIGNED = 64  # bytes of a vector
PLANS = 8  # sizes of images whose programs a layer keeps


@dataclass(frozen=True)
class _Plan:
    """The program of one kind of call for one size of image.

    `packed` are the matrices in it that hold values.
    """

    program: Program
    packed: tuple[Packed | PackedDense, ...]
    gradient: Tensor | None = None


@final
class SparseConvolution:
    """A two-dimensional convolution whose weight has zeros, without bias, on the CPU, in float32.

    The non-zeros are a vector in the order of the flattened weight (`values`). Results differ from
    float64 by rounding (relative error about 1e-7) and are the same in every run with as many
    threads.

    Args:
        weight: (out, in / groups, height, width) float32.
        stride, padding, dilation: for y and x; padding counts on both sides.
        groups: of channels.
        kept: bool of the weight's shape; what is not zero if None. Values that are kept may be 0.
        level: of instructions, see `library.LEVELS`; the best of float32 if None. `library.BF16`
            and `library.FP16` round weights, inputs and outputs to bfloat16 and float16 (relative
            errors about 3e-3 and 1e-3), take and return float32, and have no gradients.

    Raises:
        UserError: the kernels were not compiled; a tensor or number does not fit.
    """

    def __init__(
        self,
        weight: Tensor,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        kept: Tensor | None = None,
        level: str | None = None,
    ) -> None:
        check(weight, "weight", (None, None, None, None))
        _check_window(stride, padding, dilation)
        if groups < 1 or weight.shape[0] % groups or 0 in weight.shape:
            raise UserError(
                f"A convolution with the weight {tuple(weight.shape)} and {groups} groups "
                "cannot be made.",
                "Sizes must be positive, and the output channels a multiple of the groups.",
            )
        if kept is not None and (kept.shape != weight.shape or kept.dtype != torch.bool):
            raise UserError(
                "The mask does not fit the weight.",
                f"It is {kept.dtype} {tuple(kept.shape)}; it must be torch.bool "
                f"{tuple(weight.shape)}.",
            )
        self.library = library.load(level or library.best_level())
        self.stride, self.padding, self.dilation = stride, padding, dilation
        dense = weight.detach().contiguous().numpy()
        mask = dense != 0 if kept is None else kept.contiguous().numpy()
        self.pattern = Pattern.of(mask, groups)
        self._values = dense[mask]
        self._plans: dict[tuple[object, ...], _Plan] = {}

    @property
    def values(self) -> Tensor:
        """(non-zeros,) float32, a copy."""
        return torch.from_numpy(self._values.copy())

    def update(self, values: Tensor) -> None:
        """Replace the non-zeros; `values` (non-zeros,) float32."""
        check(values, "values", (len(self._values),))
        self._values = values.detach().contiguous().numpy().copy()
        if self.library.dtype != torch.float32:
            self._plans.clear()
        for plan in self._plans.values():
            for packed in plan.packed:
                packed.write(self._values)

    def forward(self, images: Tensor) -> Tensor:
        """(n, in, h, w) float32, any strides → (n, out, h', w')."""
        self._check_images(images)
        axes = self.axes(images.shape[2], images.shape[3])
        images = _aligned(images, axes)
        batch = images.shape[0]
        output = images.new_empty(batch, self.pattern.shape[0], axes[0].output, axes[1].output)
        plan = self._plan("forward", self._forward_plan, axes, (images, output))
        if batch:
            plan.program.run([images, output], batch)
        return output

    def input_gradient(self, gradient: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Gradient of the output (n, out, h', w') → that of the input (n, in, *image_size)."""
        axes = self._check_gradient(gradient, image_size)
        gradient = _aligned(gradient, axes)
        batch = gradient.shape[0]
        output = gradient.new_empty(batch, self.pattern.channels, *image_size)
        plan = self._plan("input", self._input_plan, axes, (gradient, output))
        if batch:
            plan.program.run([gradient, output], batch)
        return output

    def value_gradient(self, images: Tensor, gradient: Tensor) -> Tensor:
        """Input and gradient of the output → gradient of `values`, (non-zeros,) float32."""
        self._check_images(images)
        axes = self._check_gradient(gradient, (images.shape[2], images.shape[3]))
        images, gradient = _aligned(images, axes), _aligned(gradient, axes)
        batch, threads = images.shape[0], torch.get_num_threads()
        if len(gradient) != batch:
            raise UserError(
                "The gradient does not belong to the images.",
                f"There are {batch} images and {len(gradient)} gradients.",
            )
        plan = self._plan("values", self._value_plan, axes, (images, gradient), threads)
        assert plan.gradient is not None
        plan.gradient.zero_()
        if batch:
            plan.program.run([images, gradient], batch, threads, is_fixed=True)
        found = torch.empty(len(self._values))
        found[torch.from_numpy(plan.packed[0].order)] = plan.gradient.sum(
            0, dtype=torch.float64
        ).to(torch.float32)
        return found

    def axes(self, height: int, width: int) -> tuple[Axis, Axis]:
        """Both directions for images of that size.

        Raises:
            UserError: the kernel does not fit into the padded image.
        """
        y, x = (
            Axis(size, kernel, stride, pad, pad, dilation)
            for size, kernel, stride, pad, dilation in zip(
                (height, width),
                self.pattern.shape[2:],
                self.stride,
                self.padding,
                self.dilation,
                strict=True,
            )  # fmt: skip
        )
        if y.output < 1 or x.output < 1:
            raise UserError(
                f"The kernel does not fit into images of {height} × {width} pixels.",
                f"It is {y.kernel} × {x.kernel}, padding {self.padding}, dilation {self.dilation}.",
            )
        return y, x

    def _plan(
        self,
        name: str,
        make: Callable[..., _Plan],
        axes: tuple[Axis, Axis],
        tensors: tuple[Tensor, Tensor],
        *more: int,
    ) -> _Plan:
        layouts = self._in_place(axes, tensors) or self._layouts(axes, len(tensors[0]))
        key = (name, axes, *layouts, *more)
        if key not in self._plans:
            if len(self._plans) >= 3 * PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = make(axes, layouts, *more)
        return self._plans[key]

    def _in_place(
        self, axes: tuple[Axis, Axis], tensors: tuple[Tensor, Tensor]
    ) -> tuple[Layout, Layout] | None:
        """Of the input and the output, where both can be used as they lie in the tensors."""
        if not emission.is_pointwise(axes) or self.library.dtype != torch.float32:
            return None
        if not all(tensor.is_contiguous() for tensor in tensors):
            return None
        source, target = (
            as_tensor(channels, (axes[0].size, axes[1].size), self.library.max_width)
            for channels in (self.pattern.channels, self.pattern.shape[0])
        )
        return (source, target) if source and target else None

    def _layouts(self, axes: tuple[Axis, Axis], batch: int) -> tuple[Layout, Layout]:
        grid = grid_for(axes, max(batch, 1), self.library.lanes)
        y, x = axes
        (in_y, out_y), (in_x, out_x) = y.blocks(grid.rows), x.blocks(grid.columns)
        source = Layout(self.pattern.channels, (y.size, x.size), (in_y, in_x), grid)
        target = Layout(self.pattern.shape[0], (y.output, x.output), (out_y, out_x), grid)
        return source, target

    def _forward_plan(self, axes: tuple[Axis, Axis], layouts: tuple[Layout, Layout]) -> _Plan:
        source, target = layouts
        program = Program(self.library)
        program.segment(source.grid.images)
        images = _read(program, source.with_halo(forward_halo(axes, source.grid)), 0)
        output = Buffer(target, tensor=1 if target.is_planar else None)
        packed = emission.convolve(program, self.pattern, self._values, axes, images, output)
        if not target.is_planar:
            program.store(output, 1)
        return _Plan(program, (packed,))

    def _input_plan(self, axes: tuple[Axis, Axis], layouts: tuple[Layout, Layout]) -> _Plan:
        source, target = layouts
        program = Program(self.library)
        program.segment(source.grid.images)
        gradient = _read(program, target.with_halo(emission.backward_halo(axes, source.grid)), 0)
        output = Buffer(source, tensor=1 if source.is_planar else None)
        matrices = emission.input_gradient(
            program, self.pattern, self._values, axes, gradient, output
        )
        if not source.is_planar:
            program.store(output, 1)
        return _Plan(program, tuple(matrices))

    def _value_plan(
        self, axes: tuple[Axis, Axis], layouts: tuple[Layout, Layout], threads: int
    ) -> _Plan:
        source, target = layouts
        program = Program(self.library)
        program.segment(source.grid.images)
        images = _read(program, source.with_halo(forward_halo(axes, source.grid)), 0)
        gradient = _read(program, target, 1)
        room = -(-max(len(self._values), 1) // 16) * 16  # threads do not share a cache line
        sums = torch.zeros(threads, room)
        packed = emission.value_gradient(
            program, self.pattern, self._values, axes, images, gradient, sums
        )
        return _Plan(program, (packed,), sums[:, : len(self._values)])

    def _check_images(self, images: Tensor) -> None:
        check(images, "images", (None, self.pattern.channels, None, None))

    def _check_gradient(self, gradient: Tensor, image_size: tuple[int, int]) -> tuple[Axis, Axis]:
        if self.library.dtype != torch.float32:
            raise UserError(
                f"A layer of the level {self.library.level} has no gradients.",
                f"It computes in {self.library.dtype}, for inference.",
                f"Make it with level={library.best_level()!r} to train it.",
            )
        axes = self.axes(*image_size)
        shape = (None, self.pattern.shape[0], axes[0].output, axes[1].output)
        check(gradient, "gradient", shape)
        return axes


@final
class SparseLinear:
    """A linear layer whose weight has zeros, without bias, on the CPU, in float32.

    A convolution of 1 × 1 over one image whose pixels are the examples, so that sixteen of them
    share a vector.

    Args:
        weight: (out, in) float32.
        kept, level: as for `SparseConvolution`.
    """

    def __init__(
        self, weight: Tensor, *, kept: Tensor | None = None, level: str | None = None
    ) -> None:
        check(weight, "weight", (None, None))
        kernel = None if kept is None else kept[:, :, None, None]
        self._convolution = SparseConvolution(weight[:, :, None, None], kept=kernel, level=level)

    @property
    def values(self) -> Tensor:
        """(non-zeros,) float32, a copy."""
        return self._convolution.values

    def update(self, values: Tensor) -> None:
        """Replace the non-zeros; `values` (non-zeros,) float32."""
        self._convolution.update(values)

    def forward(self, examples: Tensor) -> Tensor:
        """(…, in) float32 → (…, out)."""
        pixels = _pixels(examples, "examples", self._convolution.pattern.channels)
        return _rows(self._convolution.forward(pixels), examples.shape[:-1])

    def input_gradient(self, gradient: Tensor) -> Tensor:
        """Gradient of the output (…, out) → that of the input (…, in)."""
        pixels = _pixels(gradient, "gradient", self._convolution.pattern.shape[0])
        size = (pixels.shape[2], pixels.shape[3])
        return _rows(self._convolution.input_gradient(pixels, size), gradient.shape[:-1])

    def value_gradient(self, examples: Tensor, gradient: Tensor) -> Tensor:
        """Input (…, in) and gradient of the output (…, out) → gradient of `values`."""
        return self._convolution.value_gradient(
            _pixels(examples, "examples", self._convolution.pattern.channels),
            _pixels(gradient, "gradient", self._convolution.pattern.shape[0]),
        )


def _aligned(tensor: Tensor, axes: tuple[Axis, Axis]) -> Tensor:
    """As torch allocates it where it may be used as it lies: results shall not depend on where the
    caller's memory begins."""
    is_odd = emission.is_pointwise(axes) and tensor.data_ptr() % ALIGNED
    return tensor.clone() if is_odd else tensor


def _read(program: Program, layout: Layout, tensor: int) -> Buffer:
    """A tensor of the call, where it lies or with its halo in planes."""
    if layout.is_planar:
        return Buffer(layout, tensor=tensor)
    buffer = Buffer(layout)
    program.load(tensor, buffer)
    if layout.halo:
        program.halo(buffer)
    return buffer


def check(tensor: Tensor, name: str, shape: tuple[int | None, ...]) -> None:
    """Refuse what the kernels cannot read; None stands for any size.

    Raises:
        UserError: not a strided float32 CPU tensor of that shape.
    """
    if not isinstance(tensor, Tensor):
        found = f"It is a {type(tensor).__name__}."
    elif tensor.device.type != "cpu":
        found = f"They lie on {tensor.device}; the sparse kernels run on the CPU."
    elif tensor.dtype != torch.float32:
        found = f"They are {tensor.dtype}; the sparse kernels compute in float32."
    elif tensor.layout != torch.strided or tensor.is_mkldnn:
        found = f"Their layout is {tensor.layout}; it must be torch.strided."
    elif tensor.dim() != len(shape) or any(
        size is not None and size != found_size
        for size, found_size in zip(shape, tensor.shape, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        found = f"The shape is {tuple(tensor.shape)}; it must be ({wanted})."
    elif tensor.is_conj() or tensor.is_neg():
        found = "They are a lazy view; call resolve_neg() first."
    else:
        return
    raise UserError(f"The sparse kernels cannot use these {name}.", found)


def _check_window(
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    for name, pair, least in (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if len(pair) != 2 or any(not isinstance(n, int) or n < least for n in pair):
            raise UserError(
                f"{name}={pair!r} cannot be used.", f"Two integers of at least {least} are needed."
            )


def _pixels(rows: Tensor, name: str, features: int) -> Tensor:
    """(…, features) as one image (1, features, 1, examples), a view where possible."""
    check(rows, name, (*([None] * (rows.dim() - 1)), features))
    return rows.reshape(-1, features).t()[None, :, None]


def _rows(image: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `_pixels`."""
    return image[0, :, 0].t().reshape(*shape, -1)

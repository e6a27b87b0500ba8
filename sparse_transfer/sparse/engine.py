"""Inference with sparse weights: a traced network whose convolutions run as programs of kernels.

Regions of a network that the kernels know run in their layout from end to end; what lies between
runs in PyTorch. Everything is measured on the example before it is chosen: tiles for each layer,
and the engine as a whole against PyTorch. What is not faster stays dense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, final

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from sparse_transfer import latency
from sparse_transfer.bfloat16 import InBfloat16
from sparse_transfer.errors import UserError
from sparse_transfer.fusion import fold_batch_norms, trace
from sparse_transfer.sparse import library, linears, tuning
from sparse_transfer.sparse.layer import check
from sparse_transfer.sparse.lowering import Step, fuse, steps_of
from sparse_transfer.sparse.planning import Planner, Row
from sparse_transfer.sparse.program import Program
from sparse_transfer.sparse.splitting import Run, runs_of, with_regions
from sparse_transfer.sparse.tuning import Timing

CHECKED = 4  # images of the example whose outputs are compared with PyTorch's: first to last
# of the largest output; more is an error of the engine, and it is not used
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}
# by what may be lost: the types of the engine that lose no more
TYPES = {
    torch.float32: (torch.float32,),
    torch.bfloat16: (torch.bfloat16, torch.float16, torch.float32),
}
GAIN = 1.03  # what the engine must be faster by, lest noise choose it


@final
class Region(nn.Module):
    """Consecutive layers as one program; called with its input tensors, returns its outputs."""

    def __init__(
        self,
        program: Program,
        inputs: Sequence[tuple[int, int, int]],
        outputs: Sequence[tuple[int, int, int]],
    ) -> None:
        super().__init__()
        self.program, self._inputs, self._outputs = program, tuple(inputs), tuple(outputs)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """(n, *shape) float32 tensors → as many as the region has outputs."""
        for tensor, shape in zip(tensors, self._inputs, strict=True):
            check(tensor, "images", (None, *shape))
        batch = tensors[0].shape[0]
        made = [tensors[0].new_empty(batch, *shape) for shape in self._outputs]
        if batch:
            self.program.run([*tensors, *made], batch)
        return tuple(made)


@final
class Compiled:
    """A network made ready: call it with images (n, channels, height, width) float32.

    For inference only: outputs have no gradient, also where the images require one. It cannot be
    copied or pickled, as it holds memory that native programs point into.

    Attributes:
        engine: "sparse", or "dense" where PyTorch alone is used.
        reason: why it is dense, or what was gained.
        rows: what was chosen for each convolution in a region.
        timing: what was measured, or None.
        dtype: what it computes in: of the values between layers; sums are float32.
    """

    def __init__(
        self,
        module: nn.Module,
        engine: str,
        reason: str,
        rows: Sequence[Row] = (),
        timing: Timing | None = None,
        dtype: torch.dtype = torch.float32,
        instead: nn.Module | None = None,
    ) -> None:
        self.module, self.engine, self.reason = module, engine, reason
        self._instead = instead  # what is called where numbers outgrow float16
        self.rows, self.timing, self.dtype = tuple(rows), timing, dtype

    def __call__(self, images: Tensor) -> Tensor:
        """The network's output.

        Raises:
            UserError: the images are not of the size, type or device that it was compiled for.
        """
        with torch.inference_mode():
            if self.engine == "dense":
                images = images.contiguous(memory_format=torch.channels_last)
            if self._instead is None:
                return self.module(images)
            kernels = library.load(library.FP16)
            before = kernels.overflows()
            found = self.module(images)
            if kernels.overflows() != before:  # other threads' too: then for nothing
                found = self._instead(images.contiguous(memory_format=torch.channels_last))
            return found

    def __deepcopy__(self, memo: object) -> NoReturn:
        """Raises UserError."""
        raise _uncopied()

    def __reduce__(self) -> NoReturn:
        """Raises UserError."""
        raise _uncopied()

    def explain(self) -> str:
        """The choices and their times as a table, one line for each convolution."""
        lines = [f"{self.engine}: {self.reason}; in {str(self.dtype).removeprefix('torch.')}"]
        if self.rows:
            lines.append(
                f"{'layer':<32} {'weight':<18} {'density':>7} {'lanes':>8} {'kernel':>7} "
                f"{'tile':>6} {'blocks':>6} {'µs/image':>9} {'dense µs':>9}"
            )
        for row in self.rows:
            grid, choice = row.grid, row.choice
            lines.append(
                f"{row.layer:<32.32} {'×'.join(map(str, row.weight)):<18} {row.density:>7.3f} "
                f"{f'{grid.images}·{grid.rows}·{grid.columns}':>8} {choice.kind:>7} "
                f"{'×'.join(map(str, choice.tile)):>6} {choice.blocks:>6} "
                f"{_micro(choice.seconds):>9} {_micro(choice.dense_seconds):>9}"
            )
        return "\n".join(lines)


def compile(  # noqa: A001
    model: nn.Module, example: Tensor, *, tune: bool = True, dtype: torch.dtype = torch.float32
) -> Compiled:
    """Make a network with zeros fast on this CPU; the model itself is left alone.

    Args:
        model: a timm network (any that torch.fx can trace) on the CPU, in float32.
        example: (n, channels, height, width) images as they will come. Other numbers of images can
            be run, but layouts were chosen for this one.
        tune: measure; without it layouts and kernels are chosen by rule and the engine is used
            wherever it can be.
        dtype: torch.bfloat16 allows values between layers to be rounded to 16 bits where that is
            faster; images and outputs are float32 all the same. Then PyTorch in bfloat16 and the
            engine in bfloat16, float16 (eight times as exact, but not beyond 65504; where a value
            or a sum within any layer is beyond, even one that a ReLU would hide, PyTorch is called
            for these images instead) and float32 are measured, as far as the CPU has them, and the
            fastest is taken. The engine may be off by 1e-2 of the largest output, or by twice what
            PyTorch is off by.

    Raises:
        UserError: the model or the example is not on the CPU in float32, or there are no kernels
            (of that type, for this CPU).
    """
    if dtype not in TYPES:
        raise UserError(
            f"A sparse model cannot be compiled for {dtype}.",
            f"There are kernels for {' and '.join(map(str, TYPES))}.",
        )
    reason = library.available(dtype)
    if reason is not None:
        raise UserError("A sparse model cannot be compiled.", reason)
    if not isinstance(model, nn.Module):
        raise UserError(
            "Only a torch.nn.Module can be compiled.",
            f"This is a {type(model).__name__}.",
            "Pass the network itself.",
        )
    _check_parameters(model)  # before the example: images of the model's type hide its mistake
    check(example, "images", (None, None, None, None))
    if not len(example):
        raise UserError(
            "A sparse model cannot be compiled for no images.",
            f"The example's shape is {tuple(example.shape)}.",
            "Pass as many images as a call will have.",
        )
    folded, note = fold_batch_norms(model)
    dense = folded.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    module = dense if dtype == torch.float32 else InBfloat16(dense)
    plain = Compiled(module, "dense", note, dtype=dtype)
    try:
        graph = trace(dense)
    except Exception as error:  # tracing runs the model's own code on symbols: anything may happen
        words = str(error).partition("\n")[0] or type(error).__name__
        return _instead(plain, f"torch.fx cannot trace the model ({words})")
    with torch.inference_mode():
        checked = torch.linspace(0, len(example) - 1, min(CHECKED, len(example))).long()
        try:
            dense(example[checked])  # ShapeProp would print a traceback
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"{type(model).__name__} cannot be run on the example, {tuple(example.shape)}.",
                str(error).strip().partition("\n")[0],
                "Pass images of the channels and the size that it takes.",
            ) from error
        expected = ShapeProp(graph).propagate(example[checked])  # images do not know of each other
    types = [kind for kind in TYPES[dtype] if library.levels(kind)]
    types = types if tune else types[:1]
    found = [_engine(graph, plain, example, (checked, expected), kind, tune) for kind in types]
    return min(found, key=_relative_time)


def _check_parameters(model: nn.Module) -> None:
    wrong = {str(p.dtype) for p in model.parameters() if p.dtype != torch.float32}
    wrong |= {str(p.device) for p in model.parameters() if p.device.type != "cpu"}
    if wrong:
        raise UserError(
            f"{type(model).__name__} cannot be compiled.",
            f"Its parameters are {', '.join(sorted(wrong))}.",
            "The sparse engine takes float32 on the CPU: call .float().cpu() first.",
        )


def _engine(
    graph: fx.GraphModule,
    plain: Compiled,
    example: Tensor,
    sample: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    tune: bool,
) -> Compiled:
    """The engine in one type, or `plain` where it is wrong or not faster.

    Args:
        sample: numbers of some images of the example, and their right outputs.
    """
    tuner = tuning.Tuner(library.current(dtype), tuning.cache_file() if tune else None)
    runs = regions_of(graph, steps := steps_of(graph))
    linear: dict[fx.Node, linears.SparseLinearModule] = {}
    if dtype == torch.float32:
        inside = {node for run in runs for node in run}
        linear = linears.faster(graph, example.shape[0], tuner, inside)
    module, rows = _with_regions(graph, steps, runs, linear, example.shape[0], tuner)
    sparse = [row for row in rows if row.choice.kind == "sparse" and row.density < 1]
    tuner.save()
    if not sparse and not linear:
        return _instead(plain, f"no layer is faster with its zeros skipped ({plain.reason})", rows)
    words = f"{len(sparse)} of {len(rows)} convolutions skip their zeros; {plain.reason}"
    if linear:
        words = f"{len(linear)} linear layers and {words}"
    checked, expected = sample
    instead = plain.module if dtype == torch.float16 else None
    engine = Compiled(module, "sparse", words, rows, None, dtype, instead)
    with torch.inference_mode():
        error, allowed = _error(module(example)[checked], expected), TOLERANCE[dtype]
    if dtype != torch.float32:  # some networks magnify rounding, whoever rounds
        allowed = max(allowed, 2 * _error(plain(example[checked]), expected))
    if not error <= allowed:  # NaN is not
        return _instead(plain, f"the engine is off by {error:.1e} of the largest output", rows)
    if not tune:
        return engine
    timing = tuner.compare(len(example), plain.dtype, lambda: _compare(plain, engine, example))
    tuner.save()
    gain = f"{timing.dense / timing.sparse:.2f} times as fast as PyTorch"
    if timing.dense < GAIN * timing.sparse:
        return _instead(plain, f"the engine is {gain}", rows, timing)
    return Compiled(module, "sparse", f"{gain}; {words}", rows, timing, dtype, instead)


def _instead(
    plain: Compiled, reason: str, rows: Sequence[Row] = (), timing: Timing | None = None
) -> Compiled:
    return Compiled(plain.module, "dense", reason, rows, timing, plain.dtype)


def _relative_time(compiled: Compiled) -> float:
    """What the engine takes of PyTorch's time; 1 where nothing was measured."""
    return compiled.timing.sparse / compiled.timing.dense if compiled.timing else 1.0


def regions_of(graph: fx.GraphModule, steps: dict[str, Step]) -> list[list[fx.Node]]:
    """Runs of consecutive nodes with steps, those that contain a convolution with zeros.

    A product with a gate stays outside unless the gate is made of means within the region.
    """

    def joins(node: fx.Node, run: Run) -> bool:
        step = steps.get(node.name)
        if step is None or step.gate is None:
            return step is not None
        return _is_pooled(step.gate, steps, {n.name for n in run})

    return runs_of(graph, joins, lambda node: _has_zeros(steps[node.name]))


def _with_regions(
    graph: fx.GraphModule,
    steps: dict[str, Step],
    runs: Sequence[Run],
    linear: Mapping[fx.Node, nn.Module],
    batch: int,
    tuner: tuning.Tuner,
) -> tuple[fx.GraphModule, list[Row]]:
    """A copy of the graph with regions, and linear layers of our own, in the place of layers."""
    rows: list[Row] = []

    def region(run: Run, sources: list[fx.Node], leaving: list[fx.Node]) -> Region:
        outputs = [n.name for n in leaving]
        fused = fuse([steps[n.name] for n in run], set(outputs))
        shapes = {n.name: _image(n) for n in sources}
        planner = Planner(fused, shapes, outputs, batch, tuner)
        made = Region(planner.plan(), list(shapes.values()), [_image(n) for n in leaving])
        rows.extend(planner.rows)
        return made

    return with_regions(graph, graph, runs, region, linear), rows


def _image(node: fx.Node) -> tuple[int, int, int]:
    shape = node.meta["tensor_meta"].shape
    return shape[1], shape[2], shape[3]


def _has_zeros(step: Step) -> bool:
    return step.weight is not None and bool((step.weight == 0).any())


def _is_pooled(name: str, steps: dict[str, Step], inside: set[str]) -> bool:
    """Whether a value of one pixel is made of means by steps that keep it the same in all lanes."""
    while name in inside:
        step = steps[name]
        if step.do == "mean":
            return True
        if step.do not in ("convolve", "pointwise") or step.residual or step.gate:
            return False
        name = step.inputs[0]
    return False


def _error(found: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((found - expected).abs().max() / scale)


def _compare(
    dense: Callable[[Tensor], Tensor], sparse: Callable[[Tensor], Tensor], example: Tensor
) -> tuple[float, float]:
    """Median seconds of both."""
    found = latency.medians({"dense": dense, "sparse": sparse}, example)
    return found["dense"], found["sparse"]


def _uncopied() -> UserError:
    return UserError(
        "A compiled network cannot be copied or pickled.",
        "It was made for this CPU, and its programs point into the memory of this process.",
        "Copy or save the model, and compile it again in the other process.",
    )


def _micro(seconds: float) -> str:
    return f"{1e6 * seconds:.1f}" if seconds else ""

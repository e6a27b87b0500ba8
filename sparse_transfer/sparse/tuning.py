"""Which kernel, tile and blocks a convolution gets: measured once on this CPU, kept on disk."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from sparse_transfer import store
from sparse_transfer.errors import UserError
from sparse_transfer.sparse import arena, emission, library, tiling
from sparse_transfer.sparse.abi import Activation
from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.layout import LANES, Axis, Layout, forward_halo, grid_for
from sparse_transfer.sparse.library import Library
from sparse_transfer.sparse.packing import Pattern, dense_in_type, in_type, pack_dense, pack_forward
from sparse_transfer.sparse.program import Program

CACHES = (24 * 1024, 48 * 1024, 2**30)  # bytes that the inputs of a tile may take
TALL = 3  # tiles of the largest that are tried
REPEATS = 3
DENSEST = 0.7  # above this density the sparse kernel is not tried

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """How one convolution is computed.

    Attributes:
        kind: which kernel.
        tile: positions, (height, width).
        blocks: groups of input channels.
        seconds: for one image on one thread, data in cache; 0 where nothing was measured.
        dense_seconds: the same for the best dense kernel of the engine; 0 where there is none.
    """

    kind: Literal["sparse", "dense"]
    tile: tuple[PositiveInt, PositiveInt]
    blocks: PositiveInt
    seconds: NonNegativeFloat = 0.0
    dense_seconds: NonNegativeFloat = 0.0


@dataclass(frozen=True)
class Timing:
    """Median seconds of a call of a whole network, in PyTorch and by the engine."""

    dense: PositiveFloat
    sparse: PositiveFloat


_ENTRY: TypeAdapter[Choice | Timing] = TypeAdapter(Choice | Timing)


@dataclass(frozen=True)
class Problem:
    """One convolution as the kernels see it."""

    weight: np.ndarray  # (out, in / groups, height, width) float32
    rows: np.ndarray  # output channels that are needed
    groups: int
    axes: tuple[Axis, Axis]
    source: Layout
    target: Layout
    activation: Activation
    has_residual: bool

    @cached_property
    def density(self) -> float:
        """Share of the weights that are not zero, (0, 1]."""
        return np.count_nonzero(self.weight) / self.weight.size

    @cached_property
    def pattern(self) -> tuple[Pattern, np.ndarray]:
        """Where the needed rows have weights, and the weights."""
        kept = self.weight != 0
        pattern, which = Pattern.of(kept, self.groups).only(self.rows)
        return pattern, self.weight[kept][which]

    def _step(self) -> int:
        """Densities within about 15 % of each other are one."""
        return round(math.log(max(self.density, 1e-4)) / math.log(1.15))

    def key(self) -> str:
        """Equal for problems that take the same time."""
        y, x = self.axes
        layout = (self.source.block, self.source.halo, self.source.grid, self.target.block)
        sizes = (self.weight.shape, len(self.rows), self.groups, y, x, layout)
        return store.digest([repr(sizes), self._step()])[:24]


def problem_of(
    weight: np.ndarray, axes: tuple[Axis, Axis], batch: int, lanes: int = LANES
) -> Problem:
    """A convolution by itself, laid out as suits it best."""
    grid = grid_for(axes, batch, lanes)
    (in_y, out_y), (in_x, out_x) = axes[0].blocks(grid.rows), axes[1].blocks(grid.columns)
    out, into = weight.shape[:2]
    sizes = (axes[0].size, axes[1].size), (axes[0].output, axes[1].output)
    source = Layout(into, sizes[0], (in_y, in_x), grid, forward_halo(axes, grid))
    target = Layout(out, sizes[1], (out_y, out_x), grid)
    return Problem(weight, np.arange(out), 1, axes, source, target, Activation.NONE, False)


@final
class Tuner:
    """Chooses, and remembers.

    Args:
        library: the kernels.
        cache: a JSON file; None measures nothing and chooses by density alone.
    """

    def __init__(self, library: Library, cache: Path | None) -> None:
        self.library, self._cache = library, cache
        self._known = {} if cache is None else _read(cache)
        self._is_new = False
        self._asked: list[str] = []

    def choose(self, problem: Problem) -> Choice:
        """The fastest way to compute it."""
        if self._cache is None:
            return _guess(self.library, problem)
        key = f"{self.library.level} {problem.key()}"
        self._asked.append(key)
        found = self._known.get(key)
        if not isinstance(found, Choice):
            self._known[key] = found = self._measure(problem)
            self._is_new = True
        return found

    def compare(
        self, batch: int, dtype: torch.dtype, measure: Callable[[], tuple[float, float]]
    ) -> Timing:
        """Seconds of a network in PyTorch, in that type, and by the engine, measured once.

        The network is known by the problems that were asked for so far; the number of threads is
        part of the key.
        """
        key = [self._asked, batch, torch.get_num_threads(), str(dtype)]
        return self.timed("network", key, lambda: Timing(*measure()))

    @property
    def measures(self) -> bool:
        """Whether it measures at all."""
        return self._cache is not None

    def timed(self, what: str, key: list[Any], measure: Callable[[], Timing]) -> Timing:
        """What `measure` returns, once for each key (JSON values) on this level of instructions."""
        name = f"{what} {store.digest([self.library.level, key])[:24]}"
        found = self._known.get(name)
        if not isinstance(found, Timing):
            self._known[name] = found = measure()
            self._is_new = True
        self._asked.append(name)
        return found

    def save(self) -> None:
        """Write what was learnt, beside what other processes wrote meanwhile.

        Where the file cannot be written, that is logged: it is measured again next time.
        """
        if self._cache is None or not self._is_new:
            return
        self._known = _read(self._cache) | self._known
        text = json.dumps({key: asdict(entry) for key, entry in self._known.items()})
        try:
            with store.replacing(self._cache) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except (UserError, OSError) as error:
            logger.warning(
                "What was measured of the kernels is not kept (%s). SPARSE_TRANSFER_CACHE names "
                "another folder.",
                error,
            )
        self._is_new = False

    def _measure(self, problem: Problem) -> Choice:
        if not self._is_new:
            arena.clear()  # zeros stay zeros in all that is measured from here on
        timed = [(self._time(problem, choice), choice) for choice in self._candidates(problem)]
        dense = [seconds for seconds, choice in timed if choice.kind == "dense"]
        seconds, best = min(timed, key=lambda pair: pair[0])
        return Choice(best.kind, best.tile, best.blocks, seconds, min(dense, default=0.0))

    def _candidates(self, problem: Problem) -> Iterator[Choice]:
        step = (problem.axes[0].stride, problem.axes[1].stride)
        reach = tuple(axis.dilation * (axis.kernel - 1) for axis in problem.axes)
        reach = (reach[0], reach[1])
        caches = CACHES if self.library.lanes == LANES else CACHES[-1:]  # no sums in 16 bits
        if problem.density <= DENSEST or problem.groups > 1:
            tiles = tiling.tiles(self.library, problem.target.block, step[1])
            flat = next(tile for tile in tiles if tile[0] == 1)  # more channels stay in the cache
            for tile in dict.fromkeys((*tiles[:TALL], flat)):
                each = {tiling.blocks(problem.source, tile, step, reach, c) for c in caches}
                for blocks in {1} if problem.groups == problem.source.channels else each:
                    yield Choice("sparse", tile, blocks)
        if problem.groups == 1:
            tile = tiling.dense_tile(self.library, problem.target.block[1])
            for blocks in {
                tiling.blocks(problem.source, tile, step, reach, c) for c in caches[-2:]
            }:
                yield Choice("dense", tile, blocks)

    def _time(self, problem: Problem, choice: Choice) -> float:
        source, target = Buffer(problem.source), Buffer(problem.target)
        residual = Buffer(problem.target) if problem.has_residual else None
        grid = problem.target.grid
        program = Program(self.library)
        program.segment(grid.images)
        emit(program, problem, choice, source, target, residual, None)
        program.run([], grid.images, 1)
        taken = []
        for _ in range(REPEATS):
            began = time.thread_time()  # what others do on the machine meanwhile is not counted
            program.run([], grid.images, 1)
            taken.append(time.thread_time() - began)
        return min(taken) / grid.images


def emit(
    program: Program,
    problem: Problem,
    choice: Choice,
    source: Buffer,
    target: Buffer,
    residual: Buffer | None,
    bias: np.ndarray | None,
) -> None:
    """Append a convolution to a program, as it was chosen."""
    step = (problem.axes[0].stride, problem.axes[1].stride)
    more = {
        "bias": bias,
        "residual": residual,
        "activation": problem.activation,
        "is_pointwise": emission.is_pointwise(problem.axes),
    }
    if choice.kind == "dense":
        weights, offsets = pack_dense(
            problem.weight, problem.axes, source.layout, program.library.dense_rows
        )
        weights, offsets = dense_in_type(weights, offsets, program.library.dtype)
        program.dense(
            weights, offsets, source, target, tile=choice.tile, blocks=choice.blocks, step=step,
            **more,
        )  # fmt: skip
        return
    pattern, values = problem.pattern
    packed = pack_forward(pattern, values, problem.axes, source.layout, choice.blocks)
    packed = in_type(packed, program.library.dtype)
    program.sparse(
        packed,
        source,
        target,
        tile=choice.tile,
        blocks=choice.blocks,
        channels=problem.rows.astype(np.int32),
        step=step,
        count=target.layout.block,
        **more,
    )


def _read(path: Path) -> dict[str, Choice | Timing]:
    """What a cache file holds; what does not fit only costs the time to measure it again."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, it is cut off or edited
        return {}
    found = {}
    for key, entry in content.items() if isinstance(content, dict) else ():
        with contextlib.suppress(ValidationError):
            found[key] = _ENTRY.validate_python(entry)
    return found


def cache_file() -> Path:
    """Where the measurements of this CPU are kept: SPARSE_TRANSFER_CACHE, else the user's cache.

    Those of other kernels, or among other candidates, are in files of other names.
    """
    place = os.environ.get("SPARSE_TRANSFER_CACHE")
    folder = Path(place) if place else Path.home() / ".cache" / "sparse-transfer"
    known = [library.cpu_name(), torch.__version__, library.digest(), _candidates_digest()]
    return folder / f"sparse-kernels-{store.digest(known)[:16]}.json"


@cache
def _candidates_digest() -> str:
    """Of the sources that say what is tried, and how it is run."""
    files = (__file__, tiling.__file__, emission.__file__)
    return store.digest([store.file_digest(Path(name)) for name in files])


def _guess(library: Library, problem: Problem) -> Choice:
    step = (problem.axes[0].stride, problem.axes[1].stride)
    reach = tuple(axis.dilation * (axis.kernel - 1) for axis in problem.axes)
    reach = (reach[0], reach[1])
    is_sparse = problem.groups > 1 or problem.density <= 0.4
    if is_sparse:
        tile = tiling.tiles(library, problem.target.block, step[1])[0]
    else:
        tile = tiling.dense_tile(library, problem.target.block[1])
    is_depthwise = problem.groups == problem.source.channels and is_sparse
    is_one = is_depthwise or library.lanes > LANES  # see `Tuner`
    blocks = 1 if is_one else tiling.blocks(problem.source, tile, step, reach)
    return Choice("sparse" if is_sparse else "dense", tile, blocks)

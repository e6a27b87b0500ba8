"""The compiled kernels: one shared library per instruction level, chosen by CPU at run time.

setuptools builds them at install (setup.py) where there is a C++ compiler. They have a plain C
interface and know nothing of torch; OpenMP is the copy that torch has loaded, so that one pool of
threads serves both. `SPARSE_TRANSFER_KERNELS` (a name of `LEVELS`) asks for a lower level.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch  # loads its OpenMP before the kernels look for one

from sparse_transfer import store
from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.sparse import abi

LEVELS = ("portable", "avx2", "avx512")  # of float32; each contains those before it
# of 16 bits: each contains all before it, and has kernels of one type alone
BF16, FP16 = "avx512bf16", "avx512fp16"
HALVES = {BF16: torch.bfloat16, FP16: torch.float16}
_NAMES = (*LEVELS, *HALVES)
CHOICE = "SPARSE_TRANSFER_KERNELS"


@dataclass(frozen=True)
class Library:
    """One loaded library.

    Attributes:
        level: its name in `LEVELS` or `HALVES`.
        handle: the functions.
        lanes: elements of a position: 16 of float32 or 32 of 16 bits.
        vector: floats of a register.
        max_tile: positions of a tile of a sparse convolution.
        max_width, max_height: positions of such a tile along a row, and rows.
        dense_rows, dense_width: channels and positions of a tile of a dense convolution.
        gradient_tile: positions of a tile of a gradient to the non-zeros.
    """

    level: str
    handle: ctypes.CDLL
    lanes: int
    vector: int
    max_tile: int
    max_width: int
    max_height: int
    dense_rows: int
    dense_width: int
    gradient_tile: int

    @property
    def dtype(self) -> torch.dtype:
        """What planes hold. Tensors that come and go, biases and sums are float32.

        In float16 up to 64 products are summed in float16; only more are added up in float32.
        """
        return HALVES.get(self.level, torch.float32)


def available(dtype: torch.dtype = torch.float32) -> str | None:
    """Why there are no kernels of that type here, or None where there are."""
    if _file("portable") is not None:
        if dtype == torch.float32 or levels(dtype):
            return None
        (level,) = (name for name, kind in HALVES.items() if kind == dtype)
        if _open("portable").sparse_cpu_level() < _NAMES.index(level):
            return f"this CPU has no instructions for {dtype} ({level})."
        return f"the sparse kernels of the level {level} were not compiled at install."
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    found = (
        f"A compiler is there now ({compiler}): install the package again."
        if compiler
        else "Install g++ or clang++, then install the package again."
    )
    return f"the sparse kernels were not compiled when the package was installed. {found}"


def levels(dtype: torch.dtype = torch.float32) -> list[str]:
    """The levels of that type that this CPU has and that were compiled, lowest first.

    Raises:
        UserError: nothing was compiled.
    """
    cpu = _NAMES[: _open("portable").sparse_cpu_level() + 1]
    of_type = [name for name in cpu if HALVES.get(name, torch.float32) == dtype]
    return [name for name in of_type if _file(name) is not None]


def best_level(dtype: torch.dtype = torch.float32) -> str:
    """The highest of them, or the one that `SPARSE_TRANSFER_KERNELS` asks for.

    Raises:
        UserError: nothing was compiled, or what is asked for is not here.
    """
    usable, wanted = levels(dtype), os.environ.get(CHOICE)
    is_lower = wanted is not None and wanted not in HALVES
    if dtype != torch.float32 and (not usable or is_lower):
        raise UserError(
            f"The sparse kernels cannot compute in {dtype}.",
            available(dtype) or f"{CHOICE}={wanted} asks for a level that has only float32.",
            "Use torch.float32.",
        )
    if wanted is None or not is_lower:
        return usable[-1]
    if wanted not in LEVELS:
        raise unknown_name("level of the sparse kernels", wanted, _NAMES)
    if wanted not in usable:
        raise UserError(
            f"{CHOICE}={wanted} cannot be used.", f"This machine has {', '.join(usable)}."
        )
    return wanted


@cache
def load(level: str) -> Library:
    """The library of a level, its structures checked against ours.

    Raises:
        UserError: it was not compiled here, or from other sources than these.
    """
    handle = _open(level)
    facts = (ctypes.c_int32 * 64)()  # room for those of other versions
    handle.sparse_facts(facts)
    entry = abi.Pair if level == BF16 else abi.Entry
    sizes = [ctypes.sizeof(kind) for kind in (abi.Planes, abi.Op, abi.Segment, entry)]
    version, *found = facts[: 1 + len(sizes)]
    if version != abi.VERSION or found != sizes:
        raise UserError(
            "The sparse kernels do not fit the package.",
            f"Version {version} of their interface has structures of {found} bytes, version "
            f"{abi.VERSION} of Python's {sizes}.",
            "They were compiled from other sources: install the package again.",
        )
    return Library(level, handle, *facts[5:13])


def current(dtype: torch.dtype = torch.float32) -> Library:
    """The library for this CPU."""
    return load(best_level(dtype))


@cache
def digest() -> str:
    """Of the compiled files, as they are when it is first asked for; names the tuning cache."""
    return store.digest([store.file_digest(path) for name in _NAMES if (path := _file(name))])


def cpu_name() -> str:
    """The CPU, as far as the system says; names the tuning cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    keys = ("vendor_id", "cpu family", "model", "model name", "stepping", "CPU implementer")
    found = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {key.strip(): value.strip() for key, value in found.items()}
    return " ".join(known[key] for key in keys if key in known) or platform.machine()


def _file(level: str) -> Path | None:
    return next(iter(sorted(Path(__file__).parent.glob(f"_kernels_{level}.*so"))), None)


@cache
def _open(level: str) -> ctypes.CDLL:
    path = _file(level)
    if path is None:
        raise UserError(
            "The sparse kernels cannot be used.",
            available() or f"The level {level} was not compiled here.",
        )
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise UserError(
            f"{path.name} cannot be loaded.", str(error), "Install the package again."
        ) from error
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    arenas = [pointer, i64, pointer, pointer]
    handle.sparse_run.argtypes = [pointer, i32, pointer, pointer, i64, *arenas, i32, i32]
    handle.sparse_run.restype = None
    handle.sparse_team.argtypes, handle.sparse_team.restype = [i32], i32
    handle.sparse_advise.argtypes, handle.sparse_advise.restype = [pointer, i64], None
    handle.sparse_facts.argtypes, handle.sparse_facts.restype = [pointer], None
    handle.sparse_cpu_level.argtypes, handle.sparse_cpu_level.restype = [], i32
    return handle

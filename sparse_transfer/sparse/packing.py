"""Weights as the kernels stream them: a value and where its input lies, row after row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from sparse_transfer.sparse.layout import Axis, Layout

ENTRY = np.dtype([("value", np.float32), ("offset", np.int32)])  # abi.Entry
PAIR = np.dtype([("values", np.uint16, 2), ("offsets", np.int32, 2)])  # abi.Pair


@dataclass(frozen=True)
class Pattern:
    """Where a convolution's weight (out, in / groups, height, width) is not zero.

    Attributes:
        shape: of the weight.
        groups: of the convolution.
        out, into, y, x: (n,) output channel, input channel (of all, not of the group), and tap of
            every non-zero, in the order of the flattened weight.
        channels: input channels of all groups.
    """

    shape: tuple[int, int, int, int]
    groups: int
    out: np.ndarray
    into: np.ndarray
    y: np.ndarray
    x: np.ndarray
    channels: int

    @staticmethod
    def of(kept: np.ndarray, groups: int) -> Pattern:
        """From a bool array of the weight's shape."""
        flat = np.flatnonzero(kept)  # several times as fast as numpy.nonzero of four dimensions
        out, into, y, x = (i.astype(np.int32) for i in np.unravel_index(flat, kept.shape))
        per_group = kept.shape[0] // groups
        into = into + out // per_group * kept.shape[1]
        channels = kept.shape[1] * groups
        return Pattern(kept.shape, groups, out, into.astype(np.int32), y, x, channels)

    @property
    def is_dense(self) -> bool:
        """Whether every output channel has all weights, of all input channels."""
        return self.groups == 1 and len(self.out) == math.prod(self.shape)

    def only(self, rows: np.ndarray) -> tuple[Pattern, np.ndarray]:
        """The pattern of some output channels alone, renumbered, and which non-zeros it has."""
        number = np.full(self.shape[0], -1, dtype=np.int32)
        number[rows] = np.arange(len(rows))
        which = number[self.out] >= 0
        shape = (len(rows), *self.shape[1:])
        out = number[self.out[which]]
        pattern = Pattern(
            shape, self.groups, out, self.into[which], self.y[which], self.x[which], self.channels
        )
        return pattern, which


@dataclass(frozen=True)
class Packed:
    """A sparse matrix in blocks of columns.

    Attributes:
        entries: (n,) of `ENTRY`, or of `PAIR`.
        pointers: (blocks × (rows + 1),) int32: where each row of each block begins.
        order: (n,) int: which non-zero of the pattern every entry is.
    """

    entries: np.ndarray
    pointers: np.ndarray
    order: np.ndarray

    def write(self, values: np.ndarray) -> None:
        """Replace the values; they come in the pattern's order, (non-zeros of the pattern,)."""
        self.entries["value"] = values[self.order]


@dataclass(frozen=True)
class PackedDense:
    """A matrix without zeros, whose rows share what they load.

    Attributes:
        weights: (groups of rows, columns, rows of a group) float32.
        offsets: (columns,) int32: where their inputs lie.
        order: (all,) int: which weight of the pattern each of `weights` is.
    """

    weights: np.ndarray
    offsets: np.ndarray
    order: np.ndarray

    def write(self, values: np.ndarray) -> None:
        """Replace the values; they come in the pattern's order."""
        self.weights.reshape(-1)[:] = values[self.order]

    @staticmethod
    def of(
        pattern: Pattern, values: np.ndarray, axes: tuple[Axis, Axis], source: Layout, rows: int
    ) -> PackedDense:
        """From a dense pattern whose output channels are whole groups of so many rows."""
        columns = math.prod(pattern.shape[1:])
        number = np.arange(len(values)).reshape(-1, rows, columns).transpose(0, 2, 1)
        every = slice(columns)  # of the first row
        y, x = axes[0].taps()[pattern.y[every]], axes[1].taps()[pattern.x[every]]
        offsets = source.offset(pattern.into[every], y, x)
        weights = np.ascontiguousarray(values[number], dtype=np.float32)
        return PackedDense(weights, offsets, number.reshape(-1))


def pack_forward(
    pattern: Pattern, values: np.ndarray, axes: tuple[Axis, Axis], source: Layout, blocks: int
) -> Packed:
    """The matrix that makes outputs of inputs that lie in `source`."""
    y, x = axes[0].taps()[pattern.y], axes[1].taps()[pattern.x]
    offsets = source.offset(pattern.into, y, x)
    every = np.arange(len(values))
    size = (pattern.shape[0], pattern.channels)
    return _pack(every, pattern.out, pattern.into, offsets, values, size, blocks)


def pack_backward(
    pattern: Pattern,
    values: np.ndarray,
    phases: tuple[tuple[int, np.ndarray, np.ndarray], tuple[int, np.ndarray, np.ndarray]],
    source: Layout,
    blocks: int,
) -> Packed:
    """The matrix that makes the input's gradient, at one remainder of y and x by the stride, of
    the output's gradient, which lies in `source`."""
    shifts = []
    chosen = np.ones(len(values), dtype=bool)
    for (_, taps, shift), tap, kernel in zip(
        phases, (pattern.y, pattern.x), pattern.shape[2:], strict=True
    ):
        table, reached = np.zeros(kernel, dtype=np.int64), np.zeros(kernel, dtype=bool)
        table[taps], reached[taps] = shift, True
        shifts.append(table[tap])
        chosen &= reached[tap]
    (which,) = np.nonzero(chosen)
    out, into = pattern.out[which], pattern.into[which]
    offsets = source.offset(out, shifts[0][which], shifts[1][which])
    size = (pattern.channels, pattern.shape[0])
    return _pack(which, into, out, offsets, values[which], size, blocks)


def pack_dense(
    weight: np.ndarray, axes: tuple[Axis, Axis], source: Layout, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (groups of `rows` channels, taps, rows) float32 and (taps,) int32 offsets.

    Taps that no channel uses are left out, and the last group is filled up with zeros.
    """
    out = len(weight)
    channel, y, x = np.nonzero(weight.any(axis=0))
    groups = -(-out // rows)
    padded = np.zeros((groups * rows, len(channel)), dtype=np.float32)
    padded[:out] = weight[:, channel, y, x]
    offsets = source.offset(channel, axes[0].taps()[y], axes[1].taps()[x])
    grouped = padded.reshape(groups, rows, len(channel)).transpose(0, 2, 1)
    return np.ascontiguousarray(grouped), offsets


def rounded(values: np.ndarray) -> np.ndarray:
    """Finite float32 → the bits of the nearest bfloat16 (ties to even), uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def halves(values: np.ndarray) -> np.ndarray:
    """Finite float32 → the nearest float16, twice in one uint32."""
    bits = values.astype(np.float16).view(np.uint16).astype(np.uint32)
    return bits | bits << 16


def in_type(packed: Packed, dtype: torch.dtype) -> Packed:
    """Entries of float32 as the kernels of another type take them; one block for bfloat16."""
    if dtype == torch.bfloat16:
        return pairs(packed)
    if dtype == torch.float16:
        entries = packed.entries.copy()
        entries["value"] = halves(packed.entries["value"]).view(np.float32)
        return Packed(entries, packed.pointers, packed.order)
    return packed


def dense_in_type(
    weights: np.ndarray, offsets: np.ndarray, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """The same for what `pack_dense` gives."""
    if dtype == torch.bfloat16:
        return dense_pairs(weights, offsets)
    return (halves(weights), offsets) if dtype == torch.float16 else (weights, offsets)


def pairs(packed: Packed) -> Packed:
    """One block of entries as pairs of bfloat16; a row of odd length ends with a weight of zero."""
    counts = np.diff(packed.pointers)
    doubled = np.concatenate([[0], np.cumsum((counts + 1) // 2 * 2)])
    row = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(row)) + (doubled[:-1] - packed.pointers[:-1])[row]
    values, offsets = np.zeros(doubled[-1], np.uint16), np.zeros(doubled[-1], np.int32)
    values[place], offsets[place] = rounded(packed.entries["value"]), packed.entries["offset"]
    odd = doubled[1:][counts % 2 == 1] - 1
    offsets[odd] = offsets[
        odd - 1
    ]  # what is multiplied by zero is there, and finite if its pair is
    entries = np.empty(len(values) // 2, PAIR)
    entries["values"], entries["offsets"] = values.reshape(-1, 2), offsets.reshape(-1, 2)
    return Packed(entries, (doubled // 2).astype(np.int32), packed.order)


def dense_pairs(weights: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `pack_dense` gives in bfloat16: (groups, taps / 2, rows, 2) uint16, and the offsets."""
    if len(offsets) % 2:
        weights = np.pad(weights, ((0, 0), (0, 1), (0, 0)))
        offsets = np.append(offsets, offsets[-1])
    groups, taps, rows = weights.shape
    paired = rounded(weights).reshape(groups, taps // 2, 2, rows).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(paired), offsets


def _pack(
    which: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    offsets: np.ndarray,
    values: np.ndarray,
    size: tuple[int, int],
    blocks: int,
) -> Packed:
    n_rows, n_columns = size
    block = columns.astype(np.int64) * blocks // n_columns
    key = block * n_rows + rows
    order = np.argsort(key, kind="stable")
    entries = np.empty(len(which), dtype=ENTRY)
    entries["value"], entries["offset"] = values[order], offsets[order]
    counts = np.bincount(key, minlength=blocks * n_rows).reshape(blocks, n_rows)
    pointers = np.zeros(blocks * n_rows + 1, dtype=np.int64)
    np.cumsum(counts.reshape(-1), out=pointers[1:])
    begins = np.stack([pointers[i * n_rows : (i + 1) * n_rows + 1] for i in range(blocks)])
    return Packed(entries, begins.astype(np.int32).reshape(-1), which[order])

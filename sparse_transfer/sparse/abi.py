"""The structures that Python hands to the kernels; the mirror of native/program.h."""

from __future__ import annotations

import ctypes
import enum
from ctypes import c_double, c_float, c_int32, c_int64, c_uint16, c_void_p

VERSION = 4  # ABI of native/program.h: libraries of another one are refused


class Kind(enum.IntEnum):
    """What an operation does."""

    LOAD = 0
    STORE = 1
    HALO = 2
    SPARSE = 3
    DENSE = 4
    GRADIENT = 5
    MAX_POOL = 6
    AVERAGE_POOL = 7
    MEAN = 8
    POINTWISE = 9
    REGRID = 10
    SUMS = 11
    NORM = 12
    GRADIENT_SUMS = 13
    FINISH_NORM_GRADIENT = 14
    NORM_GRADIENT = 15
    LARGEST_TAP = 16
    POOL_GRADIENT = 17
    WRITE_VALUES = 18
    COLLECT_GRADIENT = 19
    SAMPLE = 20
    JOIN = 21


class Turns(enum.IntEnum):
    """Whether an operation takes turns with that before it."""

    NONE = 0
    BY_ROWS = 1
    BY_CHANNELS = 2


class Activation(enum.IntEnum):
    """What an operation applies last."""

    NONE = 0
    RELU = 1
    RELU6 = 2
    HARD_SWISH = 3
    HARD_SIGMOID = 4
    SILU = 5
    SIGMOID = 6


class Planes(ctypes.Structure):
    """A buffer; see layout.py."""

    _fields_ = [
        ("at", c_int64),
        ("item", c_int64),
        ("channels", c_int32),
        ("height", c_int32),
        ("width", c_int32),
        ("top", c_int32),
        ("left", c_int32),
        ("pitch", c_int32),
        ("size", c_int32),
        ("image_height", c_int32),
        ("image_width", c_int32),
        ("images", c_int32),
        ("rows", c_int32),
        ("columns", c_int32),
        ("is_saved", c_int32),
        ("tensor", c_int32),
    ]


class Entry(ctypes.Structure):
    """A weight that is not zero, and where its input lies."""

    _fields_ = [("value", c_float), ("offset", c_int32)]


class Pair(ctypes.Structure):
    """Two of them in bfloat16, which are multiplied at once."""

    _fields_ = [("values", c_uint16 * 2), ("offsets", c_int32 * 2)]


class Op(ctypes.Structure):
    """An operation; what is not named is zero or null."""

    _fields_ = [
        ("kind", c_int32),
        ("activation", c_int32),
        ("input", Planes),
        ("output", Planes),
        ("other", Planes),
        ("tensor", c_int32),
        ("blocks", c_int32),
        ("strides", c_int64 * 4),
        ("entries", c_void_p),
        ("pointers", c_void_p),
        ("channels", c_void_p),
        ("weights", c_void_p),
        ("offsets", c_void_p),
        ("permutations", c_void_p),
        ("bias", c_void_p),
        ("scale", c_void_p),
        ("gradient", c_void_p),
        ("gradient_stride", c_int64),
        ("n_rows", c_int32),
        ("n_offsets", c_int32),
        ("n_moves", c_int32),
        ("tile_height", c_int32),
        ("tile_width", c_int32),
        ("step_y", c_int32),
        ("step_x", c_int32),
        ("first_y", c_int32),
        ("first_x", c_int32),
        ("out_step_y", c_int32),
        ("out_step_x", c_int32),
        ("count_y", c_int32),
        ("count_x", c_int32),
        ("kernel_y", c_int32),
        ("kernel_x", c_int32),
        ("pad_y", c_int32),
        ("pad_x", c_int32),
        ("gate", c_int32),
        ("fill", c_float),
        ("is_frozen", c_int32),
        ("epsilon", c_double),
        ("sums", c_void_p),
        ("sums_stride", c_int64),
        ("state", c_void_p),
        ("order", c_void_p),
        ("n_entries", c_int32),
        ("n_copies", c_int32),
        ("follows", c_int32),
    ]


class Segment(ctypes.Structure):
    """Operations that one item (`images` images) goes through without waiting for others."""

    _fields_ = [("first", c_int32), ("count", c_int32), ("images", c_int32)]

"""A checkpoint folder as one file: a bit for every weight, and the values that are not zero.

The file is a safetensors file, so nothing in it is executed. Its tensors are

    as_is/NAME      a tensor whose zeros are too few to save anything, or that is not float32
    kept/NAME       one bit for every value, 1 where it is not zero (first value: highest bit)
    values/NAME     the values that are not zero, (kept,) float32
    signs/NAME      one bit for every zero, 1 where it is minus zero; only where one is
    masks/NAME      a packed mask, only where it differs from kept/NAME: a kept weight may be zero

and its metadata holds the JSON files of the folder and the headers of its two safetensors files,
so that unpacking gives back every file of the folder byte for byte.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from sparse_transfer.errors import UserError
from sparse_transfer.store import digest, file_digest, replacing

FORMAT = "sparse-transfer packed 1"
SUFFIX = ".packed"
TEXTS = ("config.json", "sparsity.json", "shrink.json")
WEIGHTS, MASK = "model.safetensors", "mask.safetensors"
MAGNITUDE, SIGN = np.uint32(0x7FFFFFFF), np.uint32(0x80000000)
_LENGTH = 8  # bytes that state a header's length


class Raw(NamedTuple):
    """A tensor as a safetensors file has it: its type by their name, its shape, its bytes."""

    dtype: str
    shape: list[int]
    data: np.ndarray  # (bytes,) uint8


def is_packed(path: Path) -> bool:
    """Whether a file is a packed checkpoint, or says so by its name."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as file:
            said = (file.metadata() or {}).get("format", "")
    except (SafetensorError, OSError):
        said = ""
    return path.suffix == SUFFIX or said.startswith(FORMAT.rpartition(" ")[0])


def write(folder: Path, path: Path) -> None:
    """Write a complete checkpoint folder as one file, kept if it gives the same folder back.

    Raises:
        UserError: the disk is full, the file may not be written, or it came back otherwise.
    """
    with replacing(path) as temporary, tempfile.TemporaryDirectory() as back:
        pack(folder, temporary)
        unpack(temporary, Path(back) / folder.name)
        for name in (*TEXTS, WEIGHTS, MASK):
            here, there = folder / name, Path(back) / folder.name / name
            if here.is_file() and file_digest(here) != file_digest(there):
                raise UserError(
                    f"{path} was not written.",
                    f"{name} does not come back from it as it is.",
                    "The disk may be damaged; try again, or with another --out.",
                )


def pack(folder: Path, path: Path) -> None:
    """Write a complete checkpoint folder as one file, in place."""
    header, weights = _read(folder / WEIGHTS)
    texts = {n: (folder / n).read_bytes().decode("utf-8") for n in TEXTS if (folder / n).is_file()}
    metadata = {"format": FORMAT, "files": json.dumps(texts), "weights": header}
    tensors: dict[str, Raw] = {}
    for name, raw in weights.items():
        tensors |= {f"{part}/{name}": found for part, found in packed_tensor(raw).items()}
    if (folder / MASK).is_file():
        metadata["masks"], masks = _read(folder / MASK)
        for name, raw in masks.items():
            kept = tensors.get(f"kept/{name}")
            if kept is None or not np.array_equal(kept.data, raw.data):
                tensors[f"masks/{name}"] = raw
    _write(path, tensors, metadata | {"sha256": digest(metadata)})


def unpack(path: Path, folder: Path) -> None:
    """Make the folder that `pack` was given, in place.

    Raises:
        UserError: the file is cut off, damaged, or no packed checkpoint.
    """
    try:
        with safe_open(path, framework="np") as file:  # checks that all of it is there
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _refused(path, f"it is cut off or damaged ({error})") from error
    said = metadata.get("format", "")
    if said != FORMAT:
        raise _refused(path, f"its format is {said or 'not stated'}; this version reads {FORMAT}")
    stated = metadata.pop("sha256", None)
    if stated != digest(metadata):  # tensors are checked by the record's own digests
        raise _refused(path, "it is damaged (the digest of its metadata is another)")
    _, tensors = _read(path)
    try:
        texts: dict[str, str] = json.loads(metadata["files"])
        weights = {
            name: unpacked_tensor(_parts(tensors, name), expected)
            for name, expected in _described(metadata["weights"]).items()
        }
        masks = {
            name: tensors.get(f"masks/{name}") or tensors[f"kept/{name}"]
            for name in _described(metadata.get("masks", "{}"))
        }
        _check_sizes(weights, metadata["weights"])
        _check_sizes(masks, metadata.get("masks", "{}"))
    except (KeyError, ValueError, TypeError) as error:
        raise _refused(path, f"its parts do not fit each other ({error})") from error
    folder.mkdir()
    for name in TEXTS:
        if name in texts:
            (folder / name).write_bytes(texts[name].encode("utf-8"))  # ends of lines stay
    _rebuild(folder / WEIGHTS, metadata["weights"], weights)
    if masks:
        _rebuild(folder / MASK, metadata["masks"], masks)


def packed_tensor(raw: Raw) -> dict[str, Raw]:
    """The smallest form of a tensor: `as_is`, or `kept` and `values` (and `signs`)."""
    if raw.dtype != "F32":
        return {"as_is": raw}
    words = raw.data.view("<u4")
    is_kept = (words & MAGNITUDE) != 0
    values = words[is_kept]
    made = {"kept": _bits(is_kept), "values": Raw("F32", [len(values)], values.view(np.uint8))}
    zeros = words[~is_kept]
    if zeros.any():
        made["signs"] = _bits(zeros != 0)
    size = sum(part.data.nbytes for part in made.values())
    return made if size < raw.data.nbytes else {"as_is": raw}


def unpacked_tensor(parts: Mapping[str, Raw], size: int) -> Raw:
    """The inverse of `packed_tensor`, for a tensor of `size` bytes; its shape is left to others.

    Raises:
        KeyError, ValueError: parts are missing, or do not fit each other.
    """
    if "as_is" in parts:
        return parts["as_is"]
    is_kept = _flags(parts["kept"], size // 4)
    words = np.zeros(size // 4, "<u4")
    values = parts["values"].data.view("<u4")
    if len(values) != int(is_kept.sum()):  # a single one would be put everywhere
        raise ValueError(f"{len(values)} values for {int(is_kept.sum())} bits")
    words[is_kept] = values
    if "signs" in parts:
        signs = _flags(parts["signs"], int((~is_kept).sum()))
        words[~is_kept] = signs * SIGN
    return Raw("F32", [], words.view(np.uint8))


def _bits(flags: np.ndarray) -> Raw:
    packed = np.packbits(flags)
    return Raw("U8", [len(packed)], packed)


def _flags(bits: Raw, count: int) -> np.ndarray:
    if len(bits.data) != -(-count // 8):
        raise ValueError(f"{len(bits.data)} bytes of bits for {count} values")
    return np.unpackbits(bits.data, count=count).astype(bool)


def _parts(tensors: Mapping[str, Raw], name: str) -> dict[str, Raw]:
    found = {part: tensors.get(f"{part}/{name}") for part in ("as_is", "kept", "values", "signs")}
    return {part: raw for part, raw in found.items() if raw is not None}


def _described(header: str) -> dict[str, int]:
    """Bytes of each tensor by name, in the order of the file."""
    entries: dict[str, Any] = json.loads(header)
    entries.pop("__metadata__", None)
    ranges = {name: entry["data_offsets"] for name, entry in entries.items()}
    ordered = sorted(ranges, key=lambda name: ranges[name])
    return {name: ranges[name][1] - ranges[name][0] for name in ordered}


def _check_sizes(tensors: Mapping[str, Raw], header: str) -> None:
    for name, size in _described(header).items():
        if len(tensors[name].data) != size:
            raise ValueError(f"{name} has {len(tensors[name].data)} bytes and not {size}")


def _read(path: Path) -> tuple[str, dict[str, Raw]]:
    """A safetensors file: its header as it stands there, and its tensors, mapped from the disk."""
    content = np.memmap(path, np.uint8, "r")
    start = _LENGTH + int(content[:_LENGTH].view("<u8")[0])
    header = content[_LENGTH:start].tobytes().decode("utf-8")
    entries: dict[str, Any] = json.loads(header)
    entries.pop("__metadata__", None)
    return header, {
        name: Raw(
            entry["dtype"],
            entry["shape"],
            # a copy starts at an aligned address, whatever the place in the file
            np.array(content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]),
        )
        for name, entry in entries.items()
    }


def _write(path: Path, tensors: Mapping[str, Raw], metadata: Mapping[str, str]) -> None:
    """A safetensors file; float32 before bytes, so that every tensor is aligned."""
    ordered = sorted(tensors, key=lambda name: (tensors[name].dtype in ("U8", "BOOL"), name))
    ordered.sort(key=lambda name: tensors[name].dtype not in ("I64", "F64", "U64"))
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name in ordered:
        raw = tensors[name]
        end = at + len(raw.data)
        entries[name] = {"dtype": raw.dtype, "shape": raw.shape, "data_offsets": [at, end]}
        at = end
    header = json.dumps(entries, separators=(",", ":"))
    header += " " * (-len(header.encode("utf-8")) % _LENGTH)
    _put(path, header, [tensors[name] for name in ordered])


def _rebuild(path: Path, header: str, tensors: Mapping[str, Raw]) -> None:
    _put(path, header, [tensors[name] for name in _described(header)])


def _put(path: Path, header: str, tensors: list[Raw]) -> None:
    encoded = header.encode("utf-8")
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(_LENGTH, "little"))
        file.write(encoded)
        for raw in tensors:
            file.write(raw.data.tobytes())


def _refused(path: Path, reason: str) -> UserError:
    return UserError(
        f"The packed checkpoint {path} cannot be opened.",
        f"{reason[0].upper()}{reason[1:]}.",
        "Copy it again, or export the checkpoint again.",
    )

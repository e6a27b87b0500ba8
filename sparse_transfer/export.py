"""A checkpoint as one file: packed, for keeping and sending, or ONNX, for other engines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sparse_transfer import checkpoint, onnx_export, packed
from sparse_transfer.checkpoint import Checkpoint
from sparse_transfer.errors import UserError

Format = Literal["packed", "onnx"]


@dataclass(frozen=True)
class Exported:
    """A written file.

    Attributes:
        bytes, dense_bytes: of the file, and of the checkpoint's own weight file.
        note: what was checked.
    """

    path: Path
    bytes: int
    dense_bytes: int
    note: str


def export(
    source: Path,
    to: Format,
    out: Path | None = None,
    *,
    image_size: int | None = None,
    replace_existing: bool = False,
) -> Exported:
    """Write a checkpoint as one file, which is opened and compared before it is kept.

    Args:
        source: a checkpoint folder; for ONNX a packed file, too.
        out: the file; None puts it beside the source, under its name with the format's ending.
        image_size: pixels that the ONNX graph takes; None takes the checkpoint's own.

    Raises:
        UserError: there is no such checkpoint, or another file in the place; a package is missing;
            the file does not give back what it was made of.
    """
    source = source.expanduser()
    if to == "packed" and image_size is not None:
        raise UserError("--image-size belongs to --to onnx.", hint="Leave it out.")
    if to == "packed" and packed.is_packed(source):
        raise UserError(
            f"{source} is packed already.",
            hint="Copy it, or make a folder of it by `sparse-transfer import`.",
        )
    resolved = source.resolve()  # "." has no name
    path = out or resolved.with_name(f"{resolved.name.removesuffix(packed.SUFFIX)}.{to}")
    if path.is_dir() or (path.exists() and not replace_existing):
        found = "It is a folder." if path.is_dir() else "Nothing was written."
        hint = "" if path.is_dir() else ", or say --force"
        raise UserError(f"{path} exists already.", found, f"Choose another --out{hint}.")
    opened = checkpoint.open_checkpoint(source)
    if to == "onnx":
        own = opened.loaded.spec["pretrained_cfg"]["input_size"][-1]
        size = own if image_size is None else image_size
        note = onnx_export.write(opened.model, size, path, describe(opened, size))
        dense_bytes = sum(t.numel() * t.element_size() for t in opened.model.state_dict().values())
    else:
        packed.write(source, path)
        note = "every file of the folder comes back byte for byte"
        dense_bytes = (source / checkpoint.WEIGHTS).stat().st_size
    return Exported(path, path.stat().st_size, dense_bytes, note)


def describe(opened: Checkpoint, image_size: int) -> dict[str, str]:
    """What an ONNX file says of itself; values that are no plain words are JSON.

    Class names are there where the checkpoint recorded the task that its classifier was trained on.
    """
    own = opened.loaded.spec["pretrained_cfg"]
    summary = opened.facts.get("summary", {})
    trained_on = opened.loaded.trained_on or {}
    said = {
        "title": opened.loaded.title,
        "architecture": opened.loaded.spec["architecture"],
        "method": opened.facts.get("method"),
        "sparsity": opened.masks.sparsity() if opened.masks is not None else 0.0,
        "mask_digest": summary.get("digest"),
        "image_size": image_size,
        "mean": own.get("mean"),
        "std": own.get("std"),
        "interpolation": own.get("interpolation"),
        "crop_pct": own.get("crop_pct"),
        "task": trained_on.get("name"),
        "class_names": trained_on.get("names"),
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in said.items()
        if value is not None
    }

"""Small image files and Parquet files for the tests of data loading."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sparse_transfer.cards import TaskCard


def picture(seed: int, size: tuple[int, int] = (12, 9)) -> Image.Image:
    """A noisy RGB image of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The image as a file's content."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def parquet(
    path: Path,
    labels: Sequence[Any],
    *,
    names: Sequence[str] | None = ("cat", "dog"),
    images: Sequence[bytes | None] | None = None,
    paths: Sequence[str | None] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    row_group: int | None = None,
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> Path:
    """A Parquet file in the Hugging Face layout."""
    images = images or [png(picture(index)) for index in range(len(labels))]
    paths = paths or [None] * len(labels)
    column = [{"bytes": data, "path": name} for data, name in zip(images, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: dict[str, Any] = {name: pa.array(values) for name, values in (extra or {}).items()}
    columns |= {image_column: pa.array(column, kind), label_column: pa.array(labels)}
    table = pa.table(columns)
    if names is not None:
        features = {
            image_column: {"_type": "Image"},
            label_column: {"_type": "ClassLabel", "names": list(names)},
        }
        text = json.dumps({"info": {"features": features}}).encode()
        table = table.replace_schema_metadata({b"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group)
    return path


def folder(root: Path, layout: Mapping[str, int], size: tuple[int, int] = (12, 9)) -> Path:
    """PNG files: `{"train/cat": 3}` makes root/train/cat/0.png to 2.png."""
    seed = 0
    for name, count in layout.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture(seed, size).save(root / name / f"{index}.png")
            seed += 1
    return root


def card(**fields: Any) -> TaskCard:
    """A card named `made`."""
    return TaskCard.model_validate({"name": "made", **fields})

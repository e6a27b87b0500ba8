"""Local Parquet files in the Hugging Face image layout, one or more per part.

Files are named after their part (`train-00000-of-00001.parquet`, `test.parquet`); they may lie one
folder deeper, as in a Hub repository. Class names are read from the `huggingface` metadata of the
schema; without it, labels are sorted. Images are read row group by row group.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, final

from sparse_transfer.cards import SourceSpec, TaskCard
from sparse_transfer.errors import UserError
from sparse_transfer.examples import (
    AbstractSource,
    Columns,
    Listing,
    Part,
    Place,
    Presence,
    encode_labels,
    file_fingerprint,
    find_columns,
    part_name,
    schema_features,
    unique_ids,
)

ENCODED_BYTES_KEPT = 2 * 2**30  # of encoded images in memory, per part


@final
class ParquetSource(AbstractSource):
    """Parquet files below one folder."""

    def __init__(self, spec: SourceSpec, card: TaskCard, place: Place) -> None:
        self.spec, self.card, self.place = spec, card, place

    def presence(self) -> Presence:
        folder = self.place.find(self.spec.location)
        if folder is None:
            return Presence("missing", self.place.missing(self.spec.location))
        count = sum(len(files) for files in self._files(folder).values())
        if not count:
            return Presence("missing", f"{folder} holds no Parquet files of named parts")
        return Presence("here", f"{count} files in {folder}")

    def fingerprint(self) -> Any:
        return file_fingerprint(path for files in self._here().values() for path in files)

    def listing(self) -> Listing:
        import pyarrow as pa

        try:
            tables = {name: _Files(files, self.card) for name, files in self._here().items()}
            labels = {name: table.labels() for name, table in tables.items()}
            paths = {name: table.paths() for name, table in tables.items()}
        except (pa.ArrowInvalid, pa.ArrowIOError, OSError) as error:
            raise UserError(
                f"The Parquet files of task `{self.card.name}` cannot be read.",
                str(error),
                "If a download was cut off, fetch them again.",
            ) from error
        first = next(iter(tables.values()))
        classes, numbers = encode_labels(
            labels, first.columns.names, origin=str(first.files[0].parent)
        )
        ids = unique_ids(paths)
        return Listing(
            classes,
            {name: Part(ids[name], numbers[name], table.image) for name, table in tables.items()},
        )

    def _here(self) -> dict[str, list[Path]]:
        folder = self.place.find(self.spec.location)
        if folder is None:
            raise UserError(f"Task `{self.card.name}`: {self.place.missing(self.spec.location)}.")
        return self._files(folder)

    def _files(self, folder: Path) -> dict[str, list[Path]]:
        """Our part name → its files in order."""
        if folder.is_file():
            return {"all": [folder]}
        if self.spec.subset:
            folder = folder / self.spec.subset
        found = sorted(folder.glob("*.parquet"))
        if not found:
            deeper = [child for child in sorted(folder.glob("*/")) if any(child.glob("*.parquet"))]
            if len(deeper) > 1:
                raise UserError(
                    f"The Parquet files of task `{self.card.name}` cannot be chosen.",
                    f"Several folders hold some: {', '.join(str(child) for child in deeper)}.",
                    "Name one with `subset:` in the card's source.",
                )
            found = sorted(deeper[0].glob("*.parquet")) if deeper else []
        by_stem: dict[str, list[Path]] = {}
        for path in found:
            by_stem.setdefault(path.stem.partition("-")[0], []).append(path)
        if self.spec.parts:
            chosen = {
                ours: by_stem.get(str(theirs), []) for ours, theirs in self.spec.parts.items()
            }
        else:
            chosen = {part_name(stem) or stem: files for stem, files in by_stem.items()}
        return {name: files for name, files in chosen.items() if files}


class _Files:
    """The files of one part as one table; keeps the encoded images that were read last."""

    def __init__(self, files: list[Path], card: TaskCard) -> None:
        import pyarrow.parquet as pq

        self.files = files
        self._readers = [pq.ParquetFile(path) for path in files]
        self.columns = _columns(self._readers[0], files[0], card)
        self._groups = [
            (reader, group)
            for reader in self._readers
            for group in range(reader.metadata.num_row_groups)
        ]
        starts = [0]
        for reader, group in self._groups:
            starts.append(starts[-1] + reader.metadata.row_group(group).num_rows)
        self._starts = starts
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()

    def labels(self) -> list[Any]:
        """The label column as it is stored."""
        column = self.columns.label
        return [
            value
            for reader in self._readers
            for value in reader.read(columns=[column]).column(column).to_pylist()
        ]

    def paths(self) -> list[str | None]:
        """The path inside each image, where the column has one."""
        import pyarrow as pa

        column = self.columns.image
        kind = self._readers[0].schema_arrow.field(column).type
        if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
            return [None] * self._starts[-1]
        return [
            value
            for reader in self._readers
            for value in reader.read(columns=[f"{column}.path"])
            .flatten()
            .column(f"{column}.path")
            .to_pylist()
        ]

    def image(self, row: int) -> bytes | Path | None:
        """The encoded image of one row, or the file that it names."""
        index = bisect.bisect_right(self._starts, row) - 1
        value = self._group(index)[row - self._starts[index]].as_py()
        if not isinstance(value, dict):
            return value
        if value.get("bytes") is not None:
            return value["bytes"]
        path = value.get("path")
        return self.files[0].parent / path if path else None

    def _group(self, index: int) -> Any:
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
            reader, group = self._groups[index]
            column = reader.read_row_group(group, columns=[self.columns.image]).column(0)
            self._kept[index] = column = column.combine_chunks()
            self._kept_bytes += column.nbytes
            while self._kept_bytes > ENCODED_BYTES_KEPT and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
            return column


def _columns(reader: Any, path: Path, card: TaskCard) -> Columns:
    import pyarrow as pa

    def kind(field: Any) -> str:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return "image"
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            return "binary"
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            return "string"
        return "integer" if pa.types.is_integer(field.type) else "other"

    schema = reader.schema_arrow
    return find_columns(
        {field.name: kind(field) for field in schema},
        schema_features(schema.metadata),
        image=card.image,
        label=card.label,
        origin=str(path),
    )


def open_source(spec: SourceSpec, card: TaskCard, place: Place) -> AbstractSource:
    """The source of a card's entry `parquet: FOLDER`."""
    return ParquetSource(spec, card, place)

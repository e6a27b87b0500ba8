"""Per-example predictions of one evaluation: what every metric is computed from.

One Parquet file per evaluation, one row per test example. Metrics can be added later without
running a model again, and paired statistics (bootstrap over examples) become possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from sparse_transfer.errors import UserError

TOP = 5
LOGITS_KEPT_UP_TO = 128  # classes; beyond it the logits of a test set outweigh everything else


@dataclass(frozen=True)
class Predictions:
    """Predictions of one model on one test set, `n` examples.

    Attributes:
        example: (n,) str, the example's id in its task.
        label: (n,) int32, the true class.
        prediction: (n,) int32, the class of the largest logit (lowest index on ties).
        log_prob: (n,) float32, log-probability of the true class.
        top: (n, min(5, classes)) int32, most probable classes, best first.
        top_log_prob: (n, min(5, classes)) float32, their log-probabilities.
        logits: (n, classes) float16 (float32 where one is too large for that), or None where there
            are many classes.
    """

    example: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    log_prob: np.ndarray
    top: np.ndarray
    top_log_prob: np.ndarray
    logits: np.ndarray | None

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def from_logits(cls, example: np.ndarray, label: np.ndarray, logits: np.ndarray) -> Predictions:
        """Build from logits, (n, classes) float32 or float64, rows in the order of `example`."""
        logits = np.asarray(logits, dtype=np.float64)
        if not len(example) == len(label) == len(logits):
            raise ValueError(f"lengths differ: {len(example)}, {len(label)}, {len(logits)}")
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        top = np.argsort(-log_probs, axis=1, kind="stable")[:, :TOP]
        keep_logits = logits.shape[1] <= LOGITS_KEPT_UP_TO
        return cls(
            example=np.asarray(example, dtype=str),
            label=np.asarray(label, dtype=np.int32),
            prediction=top[:, 0].astype(np.int32),
            log_prob=np.take_along_axis(log_probs, np.asarray(label, int)[:, None], 1)[:, 0].astype(
                np.float32
            ),
            top=top.astype(np.int32),
            top_log_prob=np.take_along_axis(log_probs, top, 1).astype(np.float32),
            logits=_compact(logits) if keep_logits else None,
        )

    def save(self, path: Path) -> None:
        """Write the Parquet file (temporary name, then rename)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from sparse_transfer.store import replacing

        columns = {
            "example": pa.array(self.example.tolist(), pa.string()),
            "label": pa.array(self.label),
            "prediction": pa.array(self.prediction),
            "log_prob": pa.array(self.log_prob),
            "top": _rows(self.top),
            "top_log_prob": _rows(self.top_log_prob),
        }
        if self.logits is not None:
            columns["logits"] = _rows(self.logits)
        with replacing(path) as temporary:
            pq.write_table(pa.table(columns), temporary, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Open a file written by `save`.

        Example, label and prediction are read now, the other columns when they are first used:
        they are most of the file, and a report of thousands of files needs few of them. Files with
        equal ids share one array of them.

        Raises:
            UserError: the file is missing or is not a predictions file; a column read later, too.
        """
        made = object.__new__(_Stored)
        object.__setattr__(made, "_path", path)
        for name, values in _read(path, ("example", "label", "prediction")).items():
            object.__setattr__(made, name, values)
        return made


class _Stored(Predictions):
    """Predictions whose other columns are still in their file."""

    _path: Path

    def __getattr__(self, name: str) -> np.ndarray | None:
        if name not in {field.name for field in fields(Predictions)}:
            raise AttributeError(name)
        value = _read(self._path, (name,)).get(name)
        object.__setattr__(self, name, value)
        return value


def _compact(logits: np.ndarray) -> np.ndarray:
    """In half precision, unless a number would become infinite by that."""
    fits = np.abs(logits).max(initial=0, where=np.isfinite(logits)) <= np.finfo(np.float16).max
    return logits.astype(np.float16 if fits else np.float32)


def _read(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some columns of a file; `logits` is absent where there are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # without its own threads and buffers: these files are small and many
        with pq.ParquetFile(path, memory_map=True) as file:
            table = file.read([*names], use_threads=False)  # drops names that are not there
        absent = {*names} - {"logits", *table.column_names}
        if absent:
            raise KeyError(f"It has no column {min(absent)}.")
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise UserError(
            f"The predictions file {path} cannot be read.",
            str(error.args[0]) if isinstance(error, KeyError) else str(error),
            "Delete the run folder that holds it and run the experiment again.",
        ) from error
    return {name: _array(table.column(name)) for name in table.column_names}


def _array(column) -> np.ndarray:  # noqa: ANN001 - a pyarrow chunked array
    import pyarrow as pa

    if pa.types.is_string(column.type):
        array = column.combine_chunks()
        _, offsets, text = array.buffers()
        if not array.offset and offsets and text:
            return _strings(offsets.to_pybytes(), text.to_pybytes(), len(array))
        return np.array(array.to_pylist(), dtype=str)
    return _matrix(column) if pa.types.is_fixed_size_list(column.type) else column.to_numpy()


@lru_cache(maxsize=64)
def _strings(offsets: bytes, text: bytes, count: int) -> np.ndarray:
    """The strings of Arrow's buffers, read-only: the same array for the same ids."""
    import pyarrow as pa

    array = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))
    values = np.array(array.to_pylist(), dtype=str)
    values.flags.writeable = False
    return values


def _rows(matrix: np.ndarray):  # noqa: ANN202 - a pyarrow array, imported late
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def _matrix(column) -> np.ndarray:  # noqa: ANN001 - a pyarrow chunked array
    array = column.combine_chunks()
    return array.values.to_numpy(zero_copy_only=False).reshape(len(column), -1)

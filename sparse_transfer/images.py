"""Images as tensors: decoded once, kept as uint8 on disk, augmented and normalised by batch.

Where the transform is fixed (`none`, `flip`, `crop_flip`), every image is resized once and the
(n, 3, S, S) uint8 array is memory-mapped from the cache. `random_resized_crop` needs the originals:
they are held decoded up to a stated memory, the rest is decoded anew each time.

What is done to an image is in `transforms.py`. Augmentation parameters are a function of
(seed, epoch, example), so neither the batch nor a resume changes them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from filelock import FileLock
from PIL import Image

from sparse_transfer.config import Preprocess
from sparse_transfer.decoding import DamagedImage
from sparse_transfer.errors import UserError
from sparse_transfer.store import digest, read_json, replacing, write_json
from sparse_transfer.transforms import (
    CROP_ATTEMPTS,
    PADDING,
    RESAMPLING,
    Augment,
    Interpolation,
    crop_box,
    draws,
    fixed_transform,
    flipped,
    shifted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sparse_transfer.data import Split

Stats = tuple[tuple[float, float, float], tuple[float, float, float]]  # mean, std in [0, 1]

ORIGINAL_BYTES_KEPT = 2 * 2**30
# A few damaged images are left out and counted; more than both limits is another problem.
SKIPPED_AT_MOST, SKIPPED_SHARE = 8, 0.1

_VERSION = 1  # raised when the same file becomes other pixels
_CHUNK = 256
_log = logging.getLogger(__name__)


@final
class Images:
    """The usable images of a split, ready for `batch`.

    Rows are the split's examples without those that cannot be decoded: take `ids` and `labels` from
    here, not from the split. What was left out stands in `skipped` and in the split's own.

    Args:
        split: which examples.
        preprocess: size and crop; its `interpolation` and `normalise` are resolved by the caller.
        stats: channel means and standard deviations in [0, 1] that `batch` normalises with, or
            None where it is given them each time.
        cache: folder of decoded images.
        augment: what `batch(..., train=True)` does.
        interpolation: of every resize.
        memory: bytes of decoded originals to hold, for `random_resized_crop`.

    Attributes:
        ids: (n,) str.
        labels: (n,) int64 tensor.
        key: hash of the examples, the state of their files and the transform without augmentation;
            names anything computed from `batch(..., train=False)` up to normalisation.
        skipped: id → reason.

    Raises:
        UserError: too many images are damaged, or a class loses its last one.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        stats: Stats | None,
        cache: Path,
        augment: Augment = "none",
        *,
        interpolation: Interpolation = "bilinear",
        memory: int = ORIGINAL_BYTES_KEPT,
    ) -> None:
        self.split, self.preprocess, self.stats = split, preprocess, stats
        self.augment: Augment = augment
        self.interpolation: Interpolation = interpolation
        self.key = digest(
            {
                "version": _VERSION,
                "split": split.key,
                "size": preprocess.image_size,
                "resize": preprocess.shorter_side if preprocess.crop == "center" else None,
                "interpolation": interpolation,
            }
        )
        self._pixels: np.ndarray | None = None
        self._originals: _Originals | None = None
        if augment == "random_resized_crop":
            self._originals = _Originals(split, memory)
            self.skipped = self._originals.damaged
        else:
            self._pixels, self.skipped = self._materialised(cache / "images")
        split.skipped.update(self.skipped)
        self._rows = np.flatnonzero([name not in self.skipped for name in split.ids])
        self.ids, labels = split.ids[self._rows], split.labels[self._rows]
        _check_skipped(split, self.skipped, labels)
        import torch

        self.labels: Tensor = torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self._rows)

    def pixels(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Images without augmentation: (b, 3, S, S) uint8."""
        rows = self._rows[np.asarray(indices, dtype=np.int64)]
        if self._pixels is not None:
            return self._pixels[rows]
        return np.stack([self._fixed(self._original(int(row))) for row in rows])

    def cropped(self, indices: Sequence[int] | np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Random crops of the originals: (b, 3, S, S) uint8; `draws` as `crop_boxes` takes them."""
        rows = self._rows[np.asarray(indices, dtype=np.int64)]
        size, method = self.preprocess.image_size, RESAMPLING[self.interpolation]
        out = np.empty((len(rows), 3, size, size), dtype=np.uint8)
        for place, row in enumerate(rows):
            image = self._original(int(row))
            left, top, width, height = crop_box(image.width, image.height, draws[place])
            crop = image.crop((left, top, left + width, top + height)).resize((size, size), method)
            out[place] = np.asarray(crop).transpose(2, 0, 1)
        return out

    def _original(self, row: int) -> Image.Image:
        assert self._originals is not None
        return self._originals.image(row)

    def _fixed(self, image: Image.Image) -> np.ndarray:
        return fixed_transform(image, self.preprocess, self.interpolation)

    def _materialised(self, folder: Path) -> tuple[np.ndarray, dict[str, str]]:
        """The pixels of every row and the damaged ones (left black), made if not in the cache."""
        array, facts = folder / f"{self.key}.npy", folder / f"{self.key}.json"
        if not facts.is_file():
            _make_folder(folder)
            with FileLock(folder / f"{self.key}.lock"):
                if not facts.is_file():
                    damaged = self._write(array)
                    write_json(facts, {"examples": len(self.split), "skipped": damaged})
        size = self.preprocess.image_size
        if not len(self.split):
            return np.zeros((0, 3, size, size), np.uint8), {}
        try:
            pixels = np.asarray(np.load(array, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise UserError(
                f"The decoded images {array} cannot be read.",
                str(error),
                "Delete the cache folder.",
            ) from error
        return pixels, dict(read_json(facts)["skipped"])

    def _write(self, path: Path) -> dict[str, str]:
        """Decode everything in threads; sequential writes, so that a full disk is an error."""
        size = self.preprocess.image_size
        shape = (len(self.split), 3, size, size)
        damaged: dict[str, str] = {}
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for row, pixels in enumerate(_threaded(self._decoded, len(self.split))):
                if isinstance(pixels, str):
                    damaged[str(self.split.ids[row])] = pixels
                    pixels = np.zeros(shape[1:], np.uint8)
                file.write(pixels.tobytes())
        return damaged

    def _decoded(self, row: int) -> np.ndarray | str:
        try:
            return self._fixed(self.split.decoded(row))
        except DamagedImage as error:
            return str(error)


def batch(
    images: Images,
    indices: Sequence[int] | np.ndarray | Tensor,
    train: bool = False,
    seed: int = 0,
    epoch: int = 0,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Some of the images, augmented if `train`, normalised.

    The augmentation of an example is a function of (seed, epoch, its index): the rest of the batch
    and the batches before it do not matter.

    Args:
        images: which to take from.
        indices: (b,) rows of `images`.
        train: whether to augment; False gives the fixed transform.
        seed: the run's seed.
        epoch: counted from 0.
        mean, std: three channels in [0, 1]; default: the `stats` of `images`.

    Returns:
        (b, 3, S, S) float32, (value / 255 - mean) / std.
    """
    import torch

    if images.stats is not None:
        mean = images.stats[0] if mean is None else mean
        std = images.stats[1] if std is None else std
    if mean is None or std is None:
        raise ValueError("batch needs mean and std: the images carry no statistics")
    rows = np.asarray(indices, dtype=np.int64)
    pixels = _augmented(images, rows, seed, epoch) if train else images.pixels(rows)
    values = torch.from_numpy(np.ascontiguousarray(pixels)).to(torch.float32)
    scale = torch.tensor([mean, std], dtype=torch.float32).view(2, 1, 3, 1, 1) * 255
    return values.sub_(scale[0]).div_(scale[1])


def statistics(images: Images) -> Stats:
    """Channel means and standard deviations over all pixels of all images, in [0, 1]."""
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(images), _CHUNK):
        pixels = images.pixels(np.arange(start, min(start + _CHUNK, len(images)))) / 255.0
        total += pixels.sum(axis=(0, 2, 3))
        squares += np.square(pixels).sum(axis=(0, 2, 3))
        count += pixels.shape[0] * pixels.shape[2] * pixels.shape[3]
    if not count:
        raise UserError("Channel statistics cannot be computed.", "There are no images.")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-12))
    return _three(mean), _three(std)


def _augmented(images: Images, rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    kind = images.augment
    columns = {"none": 0, "flip": 1, "crop_flip": 3, "random_resized_crop": 4 * CROP_ATTEMPTS + 1}
    drawn = draws(len(images), columns[kind], seed, epoch)[rows]
    if kind == "none":
        return images.pixels(rows)
    if kind == "random_resized_crop":
        pixels = images.cropped(rows, drawn)
    elif kind == "crop_flip":
        offsets = (drawn[:, :2] * (2 * PADDING + 1)).astype(np.int64)
        pixels = shifted(images.pixels(rows), offsets[:, 0], offsets[:, 1])
    else:
        pixels = images.pixels(rows)
    return flipped(pixels, drawn[:, -1] < 0.5) if images.split.hflip else pixels


@final
class _Originals:
    """Decoded originals of a split, held up to a memory limit and decoded anew beyond it."""

    def __init__(self, split: Split, memory: int) -> None:
        self._split = split
        self._held: dict[int, Image.Image] = {}
        self.damaged: dict[str, str] = {}
        left = memory
        for row, image in enumerate(_threaded(self._decoded, len(split))):
            if isinstance(image, str):
                self.damaged[str(split.ids[row])] = image
                continue
            left -= image.width * image.height * 3
            if left >= 0:
                self._held[row] = image
        if left < 0:
            _log.info(
                "%d of %d images are held decoded (%d MiB); the others are decoded in every epoch",
                len(self._held),
                len(split),
                memory >> 20,
            )

    def image(self, row: int) -> Image.Image:
        """An original that is known to be sound."""
        return self._held.get(row) or self._split.decoded(row)

    def _decoded(self, row: int) -> Image.Image | str:
        try:
            return self._split.decoded(row)
        except DamagedImage as error:
            return str(error)


def _threaded(function, count: int) -> Iterator:  # noqa: ANN001 - row → result
    """`function` of 0..count-1 in order, computed by threads (PIL decodes outside the GIL)."""
    with ThreadPoolExecutor(_cores()) as pool:
        for start in range(0, count, _CHUNK):
            yield from pool.map(function, range(start, min(start + _CHUNK, count)))


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(
            f"Decoded images cannot be kept in {folder}.",
            "The folder cannot be made or written.",
            "Choose another place with --runs.",
        )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_skipped(split: Split, skipped: dict[str, str], labels: np.ndarray) -> None:
    if not skipped:
        return
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
    _log.warning(
        "%d of %d %s images are left out (%s%s)",
        len(skipped),
        len(split),
        split.name,
        shown,
        " …" if len(skipped) > 3 else "",
    )
    if len(skipped) > max(SKIPPED_AT_MOST, SKIPPED_SHARE * len(split)):
        raise UserError(
            f"{len(skipped)} of {len(split)} {split.name} images cannot be used.",
            shown,
            "So many are not a few damaged files; check the data.",
        )
    lost = set(np.unique(split.labels)) - set(np.unique(labels))
    if lost:
        raise UserError(
            f"{len(lost)} classes have no usable {split.name} image left.",
            shown,
            "Replace the images.",
        )


def _three(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])

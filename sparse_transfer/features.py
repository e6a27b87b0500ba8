"""Features and logits of whole image sets, one row per example, and a cache that names content.

Extraction is sharded: process r of w takes the examples r, r+w, r+2w, … and every process ends
with the whole table. The cache key is the SHA-256 of everything that defines the numbers (weights,
model structure, transform, split, precision), never a name: weights that change behind the same
name change the key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor, nn

from sparse_transfer import data, devices, models, signals, store
from sparse_transfer.cost import evaluating
from sparse_transfer.errors import UserError
from sparse_transfer.inference import Engine, structure_digest, weights_digest

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


def extract(
    model: nn.Module,
    images: data.Images,
    *,
    accelerator: Accelerator,
    batch_size: int,
    precision: devices.Precision = "fp32",
    engine: Engine | None = None,
) -> np.ndarray:
    """Pooled features before the classifier: (n, d) float32, row i belonging to example i.

    Every process returns the whole table. The model runs in eval mode and is given back in the
    modes that its modules had; it is left on the accelerator's device, channels-last.

    Args:
        model: a timm model, or one that `models.features` knows.
        images: the examples, decoded, with their normalisation; no augmentation is applied.
        batch_size: examples per forward pass and process.
        engine: what computes them, from `inference.engine` for "features"; None is PyTorch.
    """
    own = engine.run if engine is not None else None
    return _rows(
        own or (lambda x: models.features(model, x)),
        model,
        images,
        accelerator=accelerator,
        batch_size=batch_size,
        precision=precision,
    )


def logits(
    model: nn.Module,
    images: data.Images,
    *,
    accelerator: Accelerator,
    batch_size: int,
    precision: devices.Precision = "fp32",
    engine: Engine | None = None,
) -> np.ndarray:
    """Outputs of the whole classifier: (n, classes) float32; else as `extract`."""
    own = engine.run if engine is not None else None
    return _rows(
        own or model,
        model,
        images,
        accelerator=accelerator,
        batch_size=batch_size,
        precision=precision,
    )


def key_parts(
    model: nn.Module,
    *,
    preprocess: Mapping[str, JsonValue],
    mean: Sequence[float],
    std: Sequence[float],
    split_hash: str,
    part: str,
    images: int,
    precision: devices.Precision,
    engine: Engine | None = None,
) -> dict[str, JsonValue]:
    """Everything that defines a feature table, for `cached`.

    Args:
        preprocess: the resolved transform: sizes, crop, and the interpolation by name.
        mean, std: the images' normalisation.
        split_hash: of the task's frozen split.
        part: "train", "validation" or "test".
        images: rows of the table.
        engine: what computes it; PyTorch's tables are named as if there were no other.
    """
    return {
        "version": 1,
        "weights": weights_digest(model),
        "structure": structure_digest(model),
        "preprocess": dict(preprocess),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "split_hash": split_hash,
        "part": part,
        "images": images,
        "precision": precision,
        **(engine.key() if engine is not None else {}),
    }


def cached(
    key_parts: Mapping[str, JsonValue], cache_dir: Path, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """The table stored under these key parts, else what `compute` returns, which is then stored.

    Every process of a launch must call this. A table is `<key>.npy` beside `<key>.json`, which
    holds the key parts and the checksum of the table's file. A file that is cut off, damaged or
    has no valid partner is computed again. The folder can be deleted at any time.

    Args:
        key_parts: JSON values, usually from the function of that name.
        compute: returns (n, d) float32, where n is `images` of the key parts if they state it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = cache_dir / f"{store.digest(dict(key_parts))}.npy"
    found = _read_table(path)
    # `compute` is collective: either all processes run it or none does.
    if devices.all_agree(found is not None):
        assert found is not None
        return found
    table = np.ascontiguousarray(compute(), dtype=np.float32)
    if len(table) != key_parts.get("images", len(table)):
        raise ValueError(f"{len(table)} rows computed for {key_parts['images']} images")
    if devices.rank() == 0:
        _write_table(path, table, key_parts)
    return table


def _rows(
    forward: Callable[[Tensor], Tensor],
    model: nn.Module,
    images: data.Images,
    *,
    accelerator: Accelerator,
    batch_size: int,
    precision: devices.Precision,
) -> np.ndarray:
    n, device = len(images), accelerator.device
    if n == 0:
        raise ValueError("there are no images to run")
    mine = torch.arange(accelerator.process_index, n, accelerator.num_processes)
    layout = torch.channels_last  # faster than the default layout, on CPUs and GPUs alike
    model.to(device=device, memory_format=layout)  # pyright: ignore[reportCallIssue]
    outputs = []
    with evaluating(model), torch.inference_mode(), devices.autocast(precision):
        # With more processes than images one runs an example for its width alone.
        for batch in (mine if len(mine) else torch.zeros(1, dtype=torch.long)).split(batch_size):
            if accelerator.num_processes == 1:
                signals.raise_if_stopped()
            x = data.batch(images, batch)
            x = x.to(device, memory_format=layout, non_blocking=True)
            outputs.append(forward(x).float())
        table = torch.cat(outputs)[: len(mine)]
        return _gathered(table, mine, n, accelerator).cpu().numpy()


def _gathered(table: Tensor, mine: Tensor, n: int, accelerator: Accelerator) -> Tensor:
    """All processes' rows in the order of the examples, each exactly once: (n, d)."""
    world = accelerator.num_processes
    longest = -(-n // world)
    # Accelerate gathers equal shapes only. The filling rows are marked, not repeated examples.
    filled = table.new_zeros(longest, table.shape[1])
    filled[: len(mine)] = table
    index = torch.full((longest,), -1, device=table.device)
    index[: len(mine)] = mine.to(table.device)
    everything, order = accelerator.gather((filled, index))  # type: ignore[misc]
    # Row p of process r is example p·world + r.
    everything = everything.view(world, longest, -1).transpose(0, 1).flatten(0, 1)[:n]
    order = order.view(world, longest).T.flatten()[:n].cpu()
    if not torch.equal(order, torch.arange(n)):
        raise RuntimeError(f"the processes did not return each of {n} examples once: {order}")
    return everything


def _read_table(path: Path) -> np.ndarray | None:
    """The table if it and its partner are whole, else None."""
    facts_path = path.with_suffix(".json")
    if not (path.is_file() and facts_path.is_file()):
        return None
    try:
        facts = store.read_json(facts_path)
        if store.file_digest(path) == facts["sha256"]:
            return np.load(path, allow_pickle=False)
        reason = "its checksum is wrong"
    except (OSError, KeyError, TypeError, ValueError, UserError) as error:
        reason = str(error).partition("\n")[0]
    log.warning("The cached features %s are computed again: %s.", path, reason)
    return None


def _write_table(path: Path, table: np.ndarray, key_parts: Mapping[str, JsonValue]) -> None:
    with store.replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.save(file, table, allow_pickle=False)
        checksum = store.file_digest(temporary)
    # Last, so that a kill between the two leaves a table without a partner: computed again.
    facts = {"sha256": checksum, "shape": list(table.shape), "of": dict(key_parts)}
    store.write_json(path.with_suffix(".json"), facts)

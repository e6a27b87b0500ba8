"""Images for backends that round to integers: to calibrate them on, and to score them with.

Calibration sees the training part alone; the test part says what rounding costs. Both are random
subsets of a fixed seed, so that all models of a task see the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_transfer import checkpoint, config, data, inputs, models
from sparse_transfer.images import Images, batch
from sparse_transfer.seeds import derive

CALIBRATION = 128  # training images; ranges of activations settle with fewer
SCORED = 1000  # test images


@dataclass(frozen=True)
class Samples:
    """Images of one task as a checkpoint takes them.

    Attributes:
        train: what to calibrate on.
        test: what to score on.
        labelled: whether the model tells the task's classes apart, so that its accuracy means
            something; otherwise predictions are compared with those of the float32 model.
    """

    train: Images
    test: Images
    labelled: bool

    def calibration(self) -> Tensor:
        """(m, 3, h, w) float32 training images, m at most `CALIBRATION`."""
        return batch(self.train, _subset(self.train, CALIBRATION))

    def score(
        self,
        rounded: Callable[[Tensor], Tensor],
        exact: Callable[[Tensor], Tensor],
        size: int,
        device: torch.device | str = "cpu",
    ) -> dict[str, Any]:
        """Test accuracies of both, or the share of equal predictions.

        Args:
            rounded, exact: the two callables, (size, 3, h, w) → (size, classes).
            size: images per call, of the last one too.

        Returns:
            `scored_images`, and either `accuracy` and `accuracy_float32` or `agreement`, shares.
        """
        rows = _subset(self.test, SCORED)
        found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for part, count in _filled(rows, size):
            images = batch(self.test, part).to(device)
            for predicted, run in zip(found, (rounded, exact), strict=True):
                with torch.inference_mode():
                    predicted.append(run(images).argmax(1)[:count].cpu().numpy())
        own, reference = (np.concatenate(predicted) for predicted in found)
        if not self.labelled:
            return {"scored_images": len(rows), "agreement": float((own == reference).mean())}
        labels = self.test.labels.numpy()[rows]
        return {
            "scored_images": len(rows),
            "accuracy": float((own == labels).mean()),
            "accuracy_float32": float((reference == labels).mean()),
        }


def open_samples(
    opened: checkpoint.Checkpoint,
    task: config.TaskRef,
    preprocess: config.Preprocess,
    data_root: Path | None,
    cache: Path,
) -> Samples:
    """The images of a task under a checkpoint's own statistics.

    Raises:
        UserError: the data is not here, or is damaged.
    """
    found = data.open_task(task, data_root=data_root, cache=cache)
    transform = inputs.transform(preprocess, opened.loaded, None, cache)
    # a label of several right classes is not one number to compare with
    labelled = (
        models.model_classes(opened.model) == len(found.classes) and found.test.accepted is None
    )
    return Samples(
        transform.images(found.train, cache), transform.images(found.test, cache), labelled
    )


def _subset(images: Images, count: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(derive(0, "bench", images.split.name))
    return torch.randperm(len(images), generator=generator)[:count].sort().values.numpy()


def _filled(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Parts of exactly `size` rows, the last one filled up, with how many of them count."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        yield np.resize(part, size), len(part)

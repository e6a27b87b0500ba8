"""Images per second of the loader beside those of the model that it feeds.

    OMP_NUM_THREADS=2 python benchmarks/data_loading.py [--data-root DIR] [--seconds 3]

Each row is one way of loading as training uses it: the augmented batches of an epoch in shuffled
order, after the images were decoded once (the time of that is the column `decode once`). Beside it
stands the training step (forward, backward, SGD) of the smallest model that this project trains at
that size, on the same machine and threads. The loader runs in the training process, so what it
costs is its share of the sum; the exit code is 1 if it exceeds 10 % in any row.

At 32 px the images are the drawn shapes. The 224 px rows need `caltech101_8shot` below the data
root and are left out without it.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

import sparse_transfer.models  # noqa: F401 - registers the small architectures with timm
from sparse_transfer import data
from sparse_transfer.config import Preprocess, TaskRef
from sparse_transfer.errors import UserError
from sparse_transfer.images import Augment

LIMIT = 0.10
STATS = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@dataclass(frozen=True)
class Case:
    """One way of loading, and the model beside it."""

    task: str
    image_size: int
    augment: Augment
    batch_size: int
    model: str
    memory: int = 2 * 2**30


CASES = (
    Case("shapes", 32, "crop_flip", 128, "resnet20_cifar"),
    Case("shapes", 32, "random_resized_crop", 128, "resnet20_cifar"),
    Case("caltech101_8shot", 224, "flip", 64, "resnet18"),
    Case("caltech101_8shot", 224, "random_resized_crop", 64, "resnet18"),
    Case("caltech101_8shot", 224, "random_resized_crop", 64, "resnet18", memory=0),
)


def rate(step: Callable[[int], int], seconds: float) -> float:
    """Images per second of calls that each return how many they did; the first call is warm-up."""
    step(0)
    images, calls, started = 0, 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        calls += 1
        images += step(calls)
    return images / (time.perf_counter() - started)


def loader_rate(case: Case, images: data.Images, seconds: float) -> float:
    """Augmented, normalised batches of shuffled epochs."""
    size = min(case.batch_size, len(images))
    per_epoch = len(images) // size

    def step(call: int) -> int:
        epoch, place = divmod(call, per_epoch)
        order = np.random.default_rng(epoch).permutation(len(images))
        rows = order[place * size : (place + 1) * size]
        return len(data.batch(images, rows, train=True, seed=0, epoch=epoch))

    return rate(step, seconds)


def model_rate(case: Case, seconds: float) -> float:
    """Training steps on random pixels."""
    model = timm.create_model(case.model, num_classes=10).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(case.batch_size, 3, case.image_size, case.image_size)
    y = torch.arange(case.batch_size) % 10

    def step(_: int) -> int:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        return case.batch_size

    return rate(step, seconds)


def main() -> int:
    """Print one row per case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data-root", type=Path, default=os.environ.get("SPARSE_TRANSFER_DATA"))
    parser.add_argument("--seconds", type=float, default=3.0, help="time per measurement")
    options = parser.parse_args()
    root = Path(options.data_root) if options.data_root else None
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{'task':18}{'px':>4} {'augment':24}{'decode once s':>14}{'loader img/s':>14}"
        f"{'model':>16}{'model img/s':>13}{'loader share':>14}"
    )
    worst = 0.0
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            try:
                task = data.open_task(TaskRef(name=case.task), data_root=root, cache=cache)
            except UserError as error:
                print(f"{case.task:18}{case.image_size:>4} left out: {error.what}")
                continue
            crop = "none" if case.image_size == 32 else "center"
            preprocess = Preprocess(image_size=case.image_size, crop=crop)
            started = time.perf_counter()
            images = data.Images(
                task.train, preprocess, STATS, cache, case.augment, memory=case.memory
            )
            decoding = time.perf_counter() - started
            loader = loader_rate(case, images, options.seconds)
            model = model_rate(case, options.seconds)
        share = (1 / loader) / (1 / loader + 1 / model)
        worst = max(worst, share)
        kept = "" if case.memory else ", decoded anew"
        print(
            f"{case.task:18}{case.image_size:>4} {case.augment + kept:24}{decoding:>14.1f}"
            f"{loader:>14.0f}{case.model:>16}{model:>13.0f}{share:>13.1%}"
        )
    print(f"largest share of the loader: {worst:.1%} (limit {LIMIT:.0%})")
    return int(worst > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())

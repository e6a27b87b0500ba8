"""Cost of training the linear heads as a share of extracting the features they are trained on.

    OMP_NUM_THREADS=2 python benchmarks/linear_probe.py [--images 64] [--models resnet18 …]

Extraction is timed on `--images` random images of 224 px (after one warm-up batch) and scaled to
the whole task: weights and pixels are random, because neither changes the time. The heads are
trained on drawn features of the model's width, at full size: `sgd` for five seeds and 150 epochs,
`lbfgs` over the default grid. The exit code is 1 if `sgd` takes more than 10 % of extraction.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np
import timm
import torch

from sparse_transfer import models, probes
from sparse_transfer.config import LinearProfile

SEEDS = (21, 51, 81, 111, 141)
MODELS = ("mobilenetv2_100", "resnet18", "resnet50")
LIMIT = 0.10


def extraction_seconds_per_image(model: torch.nn.Module, images: int) -> float:
    """Forward passes in batches of 32, eval mode, fp32."""
    x = torch.randn(32, 3, 224, 224)
    batches = max(1, images // len(x))
    with torch.inference_mode():
        models.features(model, x)
        started = time.perf_counter()
        for _ in range(batches):
            models.features(model, x)
    return (time.perf_counter() - started) / (batches * len(x))


def drawn_features(rows: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features like those after a ReLU, around one centre per class."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(classes, width))
    labels = np.arange(rows) % classes
    x = np.maximum(0.3 * centres[labels] + generator.normal(size=(rows, width)), 0) * 0.5
    return x.astype(np.float32), labels


def main() -> int:
    """Print one row per model and number of classes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=64, help="images to time extraction with")
    parser.add_argument("--train", type=int, default=800, help="training images of the task")
    parser.add_argument("--test", type=int, default=400, help="test images of the task")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, {options.train} + {options.test} images of 224 px, fp32"
    )
    print("model             width classes  extraction  sgd ×5    share   lbfgs    share")
    is_within = True
    for name in options.models:
        model = timm.create_model(name).eval()
        per_image = extraction_seconds_per_image(model, options.images)
        extraction = per_image * (options.train + options.test)
        width = int(model.num_features)  # pyright: ignore[reportArgumentType]
        for classes in options.classes:
            x, y = drawn_features(options.train + options.test, width, classes)
            parts = x[: options.train], y[: options.train], x[options.train :]
            sgd = probes.sgd(*parts, classes, LinearProfile(), SEEDS).seconds
            lbfgs = probes.lbfgs(*parts, classes, LinearProfile()).seconds
            is_within &= sgd <= LIMIT * extraction
            print(
                f"{name:<17} {width:>5} {classes:>7} {extraction:>9.1f} s {sgd:>6.2f} s "
                f"{sgd / extraction:>7.1%} {lbfgs:>6.2f} s {lbfgs / extraction:>7.1%}"
            )
    return 0 if is_within else 1


if __name__ == "__main__":
    raise SystemExit(main())

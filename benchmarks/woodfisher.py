"""Seconds and peak memory of one-shot WoodFisher on MobileNetV2 at 224 px, with default options.

    OMP_NUM_THREADS=2 python benchmarks/woodfisher.py [--weights model.safetensors]

timm's `mobilenetv2_100` (3.47 million prunable weights) and random images: neither the weights nor
the pixels change the work. Memory is the peak resident size of the process, torch included. The
exit code is 1 beyond 10 minutes or 8 GiB. `--gradients` takes fewer than the default number, for a
look at the parts: the printed line gives the seconds of the backward passes alone, too.
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
import time
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from sparse_transfer import plugins
from sparse_transfer.pruning.driver import Pruner
from sparse_transfer.pruning.layers import prunable

SECONDS_LIMIT, BYTES_LIMIT = 600.0, 8 * 2**30
MODEL, PIXELS, CLASSES = "mobilenetv2_100", 224, 1000


def examples(step: int, number: int, count: int) -> tuple[Tensor, Tensor]:
    """Random images and labels, a function of the number."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(count, 3, PIXELS, PIXELS, generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def backward_seconds(model: nn.Module, gradients: int) -> float:
    """Seconds of as many plain backward passes of one image."""
    model.eval()
    began = time.perf_counter()
    for number in range(gradients):
        images, labels = examples(0, number, 1)
        nn.functional.cross_entropy(model(images), labels).backward()
        model.zero_grad()
    return time.perf_counter() - began


def main() -> int:
    """Print the time of the one event and the peak memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--weights", type=Path, help="a checkpoint that timm can read")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--gradients", type=int, help="instead of the default number")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(
        MODEL, num_classes=CLASSES, checkpoint_path=str(options.weights or "")
    )
    method = plugins.load("pruner", "woodfisher")
    chosen = {} if options.gradients is None else {"gradients": options.gradients}
    settings = method.Options(one_shot=True, **chosen)
    layers = prunable(model)
    pruner = Pruner(
        model,
        method=method(settings),
        sparsity=options.sparsity,
        layers=layers,
        total_steps=0,
        steps_per_epoch=1,
        seed=0,
        examples=examples,
        image_size=PIXELS,
    )
    pruner.bind(torch.optim.SGD(model.parameters(), lr=0.01))
    plain = backward_seconds(model, settings.gradients)
    began = time.perf_counter()
    pruner.start()
    seconds = time.perf_counter() - began
    pruner.finish()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    machine = platform.processor() or platform.machine()
    weights = sum(layer.numel() for layer in layers.values())
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32")
    print(f"one-shot woodfisher to {options.sparsity:g}: {MODEL}, {PIXELS} px, {settings}")
    print(
        f"{weights / 1e6:.2f} M weights, {seconds:.1f} s, of which the backward passes alone take "
        f"{plain:.1f} s; peak {peak / 2**30:.2f} GiB"
    )
    return 0 if seconds <= SECONDS_LIMIT and peak <= BYTES_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())

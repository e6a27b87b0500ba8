"""What holding a mask adds to a training step, and what one update of the masks takes.

    OMP_NUM_THREADS=2 python benchmarks/pruning_overhead.py [--steps 15] [--json out.json]

Step: timm's ResNet-18, random 32 px images, batch 128, plain training and training under a fixed
90 % mask in turn, so that both see the same machine; the ratio is that of the medians. "held" is
the time spent on holding the mask alone, inside the same steps. Update: timm's ResNet-50 (25.5
million prunable weights) with random gradients, everything that the driver does at the steps of
the second to fourth of 50 updates. The exit code is 1 if a median step takes more than 5 % longer,
or a median update a second or more.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import nn

from sparse_transfer import plugins
from sparse_transfer.pruning.driver import Pruner
from sparse_transfer.pruning.layers import prunable

STEP_LIMIT, UPDATE_LIMIT = 0.05, 1.0
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
    ),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
}


def pruner_of(
    model: nn.Module, name: str, sparsity: float, steps: int, **options: object
) -> Pruner:
    """The driver with every layer prunable."""
    method = plugins.load("pruner", name)
    return Pruner(
        model,
        method=method(method.Options(**options)),
        sparsity=sparsity,
        layers=prunable(model),
        total_steps=steps,
        steps_per_epoch=steps,
        seed=0,
    )


def step_seconds(optimizer_name: str, steps: int) -> tuple[float, float, float]:
    """Median seconds of a plain step, of a step under a mask, and of holding the mask."""
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    plain, sparse = (timm.create_model("resnet18", num_classes=10) for _ in range(2))
    optimizers = [OPTIMIZERS[optimizer_name](model) for model in (plain, sparse)]
    pruner = pruner_of(sparse, "magnitude", 0.9, steps + 2)
    pruner.bind(optimizers[1])
    pruner.start()

    def backward(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()

    times: list[tuple[float, float, float]] = []
    for step in range(1, steps + 3):
        began = time.perf_counter()
        backward(plain, optimizers[0])
        optimizers[0].step()
        plain_done = time.perf_counter()
        backward(sparse, optimizers[1])
        before_masking = time.perf_counter()
        pruner.after_backward(step)
        masked = time.perf_counter() - before_masking
        optimizers[1].step()
        before_enforcing = time.perf_counter()
        pruner.after_step(step)
        ended = time.perf_counter()
        held = masked + ended - before_enforcing
        times.append((plain_done - began, ended - plain_done, held))
    timed = times[2:]  # the first steps make the optimizer state and the multipliers
    plain_s, sparse_s, held_s = (statistics.median(column) for column in zip(*timed, strict=True))
    return plain_s, sparse_s, held_s


def update_seconds(name: str, repeats: int, **options: object) -> tuple[float, int]:
    """Median seconds of what the driver does at an update, and the number of weights."""
    model = timm.create_model("resnet50")
    times = []
    for _ in range(repeats):
        pruner = pruner_of(model, name, 0.9, 50, start=0.0, end=1.0, updates=50, **options)
        optimizer = OPTIMIZERS["sgd"](model)
        pruner.bind(optimizer)
        pruner.start()
        for step in range(1, 5):
            for parameter in model.parameters():
                nn.init.normal_(parameter)
                parameter.grad = torch.randn_like(parameter)
            began = time.perf_counter()
            pruner.after_backward(step)
            pruner.after_step(step)
            times.append(time.perf_counter() - began)
    timed = [seconds for i, seconds in enumerate(times) if i % 4]  # the first makes the buffers
    return statistics.median(timed), sum(layer.numel() for layer in prunable(model).values())


def main() -> int:
    """Print one row per optimizer and per kind of update."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=15, help="timed pairs of steps")
    parser.add_argument("--repeats", type=int, default=1, help="timed runs of three updates")
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    torch.manual_seed(0)
    machine = (
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, fp32"
    )
    figures: dict[str, object] = {"machine": machine}
    is_within = True
    print(machine)
    print("training step (ResNet-18, 32 px, batch 128; medians)")
    print("optimizer      plain     masked    ratio     held    held/plain")
    for name in options.optimizers:
        plain, masked, held = step_seconds(name, options.steps)
        is_within &= masked <= (1 + STEP_LIMIT) * plain
        figures[f"step/{name}"] = {"plain_s": plain, "masked_s": masked, "held_s": held}
        print(
            f"{name:<9} {1e3 * plain:>8.1f} ms {1e3 * masked:>7.1f} ms {masked / plain:>7.3f} "
            f"{1e3 * held:>7.1f} ms {held / plain:>8.1%}"
        )
    print("mask update (ResNet-50; medians)")
    kinds: list[tuple[str, dict[str, object]]] = [
        ("gmp", {"allocation": "global"}),
        ("gmp", {"allocation": "erk"}),
        ("fggp", {}),
    ]
    for name, method_options in kinds:
        seconds, weights = update_seconds(name, options.repeats, **method_options)
        is_within &= seconds < UPDATE_LIMIT
        label = " ".join([name, *map(str, method_options.values())])
        figures[f"update/{label}"] = {"seconds": seconds, "weights": weights}
        print(f"{label:<12} {weights / 1e6:>6.1f} M weights {seconds:>7.3f} s")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())

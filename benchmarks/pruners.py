"""What each unstructured pruner adds to training: time per step and peak memory, against dense.

    OMP_NUM_THREADS=2 python benchmarks/pruners.py [--methods gmp rigl ...] [--json out.json]

timm's ResNet-18, random 32 px images, batch 128, SGD with momentum, 90 % (2:4 where nothing else is
possible). Dense and pruned training run in turn, step by step, in one process; the step ratio is
that of the medians of steps without an event. An event's cost is the median time of its steps above
that. "amortised" spreads the events over a training of 160 epochs of CIFAR-10 (62,560 steps): as
many as the method's defaults make of it, except that rigl, set and granet update every 100 steps.
Memory is the peak of a fresh process for each method minus that of a dense one, over the number of
prunable weights, events included; the net is `resnet18_cifar` there, whose activations at 32 px are
those of a real training (timm's shrinks the image eightfold at once). Limits, as exit code 1: 5 %
for methods that only hold a mask between events, 8 % for rigl and granet; one byte per weight for
those that look at nothing but weights.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

import sparse_transfer.models  # noqa: F401 - registers resnet18_cifar
from sparse_transfer import plugins
from sparse_transfer.pruning.driver import Pruner
from sparse_transfer.pruning.layers import prunable

FULL_TRAINING = 62_560
PEAK_STEPS = 8
OPTIMIZER = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
# Options that bring a few events into a short run, and events of the full training.
METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "random": ({}, 1),
    "magnitude": ({}, 1),
    "gmp": ({"updates": 3}, 50),
    "gmp_star": ({"updates": 3}, 7),
    "lamp": ({"updates": 3}, 50),
    "fggp": ({"updates": 3, "rate": 0.8}, 50),
    "acdc": ({"compress": (0.2, 0.8), "decompress": (0.5,)}, 15),
    "imp": ({"rounds": 2}, 12),
    "lth_t": ({"rounds": 3}, 11),
    "nm": ({}, 1),
    "set": ({"updates": 3}, 469),
    "rigl": ({"updates": 3}, 469),
    "rigl_itop": ({"updates": 3}, 24),
    "granet": ({"updates": 2, "end": 0.6}, 625),
    "snip": ({}, 1),
    "grasp": ({}, 1),
    "synflow": ({}, 1),
    "woodfisher": ({"updates": 2, "gradients": 16}, 5),
    "str": ({}, 0),
    "sr_ste": ({}, 0),
    "l1": ({}, 0),
    "group_lasso": ({}, 0),
}
HOLDS_ONLY = (
    "random",
    "magnitude",
    "gmp",
    "gmp_star",
    "lamp",
    "fggp",
    "acdc",
    "nm",
    "imp",
    "lth_t",
) + (
    "set",
    "rigl_itop",
    "snip",
    "grasp",
    "synflow",
)  # between events; set and rigl_itop by their own frequency of updates
LIMITS = {**dict.fromkeys(HOLDS_ONLY, 0.05), "rigl": 0.08, "granet": 0.08}
LOOKS_AT_WEIGHTS = ("random", "magnitude", "gmp", "gmp_star", "lamp", "acdc", "nm", "set")
BYTES_LIMIT = dict.fromkeys(LOOKS_AT_WEIGHTS, 1.0)


class Training:
    """One model in training under a method, or dense; a call of `step` is an optimizer step."""

    def __init__(self, name: str | None, total: int, network: str = "resnet18") -> None:
        torch.manual_seed(0)
        self.images, self.labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
        self.model = timm.create_model(network, num_classes=10)
        self.model.to(memory_format=torch.channels_last)
        layers = prunable(self.model, ["first_conv"])
        self.weights = sum(layer.numel() for layer in layers.values())
        self.pruner = self._pruner(name, layers, total) if name else None
        self.optimizer = torch.optim.SGD(self.model.parameters(), **OPTIMIZER)
        if self.pruner is not None:
            self.pruner.bind(self.optimizer)
        self.done = 0

    def _pruner(self, name: str, layers: dict[str, nn.Parameter], total: int) -> Pruner:
        method = plugins.load("pruner", name)
        sparsity = (0.5 if name in ("nm", "sr_ste") else 0.9) if method.has_target else 0.0
        return Pruner(
            self.model,
            method=method(method.Options(**METHODS[name][0])),
            sparsity=sparsity,
            layers=layers,
            total_steps=total,
            steps_per_epoch=total,
            seed=0,
            examples=lambda step, number, count: (self.images[:count], self.labels[:count]),
            image_size=32,
        )

    def start(self) -> float:
        """Seconds of what happens before training."""
        began = time.perf_counter()
        if self.pruner is not None:
            self.pruner.start()
        return time.perf_counter() - began

    def step(self) -> float:
        """Seconds of one step."""
        self.done += 1
        self.model.train()
        began = time.perf_counter()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        penalty = self.pruner.penalty() if self.pruner is not None else None
        (loss if penalty is None else loss + penalty).backward()
        if self.pruner is None:
            self.optimizer.step()
        else:
            self.pruner.after_backward(self.done)
            if not self.pruner.skips_optimizer(self.done):
                self.optimizer.step()
            self.pruner.after_step(self.done)
        return time.perf_counter() - began


def timed(name: str, steps: int) -> dict[str, float]:
    """Medians: dense step, pruned step without an event, and what an event adds."""
    total = 3 * steps
    dense, pruned = Training(None, total), Training(name, total)
    assert pruned.pruner is not None
    plain, quiet, busy = [], [], []
    started = pruned.start()
    events = {event["step"] for event in pruned.pruner.summary()["events"]}
    for step in range(1, total + 1):
        plain.append(dense.step())
        seconds = pruned.step()
        has_event = step in {e["step"] for e in pruned.pruner.summary()["events"]} - events
        (busy if has_event else quiet).append(seconds)
    warm = min(3, len(quiet) - 1)
    step_s = statistics.median(quiet[warm:])
    extra = statistics.median(busy) - step_s if busy else started
    return {"dense_s": statistics.median(plain[3:]), "step_s": step_s, "event_s": max(0.0, extra)}


def peak_bytes(name: str) -> int:
    """Peak resident bytes of a fresh process that trains for a few steps."""
    command = [sys.executable, __file__, "--peak", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def peak(name: str) -> int:
    """Train here and tell the peak; called in a process of its own."""
    training = Training(None if name == "dense" else name, PEAK_STEPS, "resnet18_cifar")
    training.start()
    for _ in range(PEAK_STEPS):
        training.step()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> int:
    """Print one row per method."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--steps", type=int, default=9, help="a third of the timed steps")
    parser.add_argument("--memory-of", nargs="*", help="measure only these; default: all")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak))
        return 0
    threads = torch.get_num_threads()
    print(f"{platform.processor() or platform.machine()}, {threads} threads, fp32,")
    print(f"torch {torch.__version__}; ResNet-18, 32 px, batch 128")
    print("method        dense ms   step ms  ratio   event ms  events  amortised  bytes/weight")
    figures: dict[str, dict[str, float]] = {}
    of_memory = options.methods if options.memory_of is None else options.memory_of
    dense_peak = peak_bytes("dense") if of_memory else 0
    weights = Training(None, 1, "resnet18_cifar").weights
    is_within = True
    for name in options.methods:
        row = timed(name, options.steps)
        events = METHODS[name][1]
        row["events"] = events
        ratio = row["step_s"] / row["dense_s"]
        row["amortised"] = ratio - 1 + row["event_s"] * events / FULL_TRAINING / row["dense_s"]
        row["bytes_per_weight"] = math.nan
        if name in of_memory:
            row["bytes_per_weight"] = (peak_bytes(name) - dense_peak) / weights
        figures[name] = row
        is_within &= row["amortised"] <= LIMITS.get(name, float("inf"))
        is_within &= not row["bytes_per_weight"] > BYTES_LIMIT.get(name, math.inf)
        print(
            f"{name:<12} {1e3 * row['dense_s']:>9.1f} {1e3 * row['step_s']:>9.1f} {ratio:>6.3f} "
            f"{1e3 * row['event_s']:>10.1f} {events:>7} {row['amortised']:>10.1%} "
            f"{row['bytes_per_weight']:>13.2f}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())

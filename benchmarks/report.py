"""Time and size of the report of a large study: 2,000 runs and more, all of them made up.

    OMP_NUM_THREADS=1 python benchmarks/report.py [--seeds 5] [--examples 1.0] [--keep DIR]

Makes a results store as `run` leaves it behind: 5 methods × 3 sparsities and dense, 5 upstream
seeds, 12 tasks of the study's test sizes by linear probes and full fine-tuning, latency of every
checkpoint: 2,080 runs with 2,960 files of predictions (without logits, which no part of a report
reads). Then it times `sparse-transfer report` in a process of its own, the start of Python
included. The exit code is 1 if that takes 20 s or more, or if the page has 5 MB or more.

Nothing in such a report is a measurement; it is deleted afterwards unless `--keep` names a folder
(with `--keep` an existing store is used again).
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparse_transfer import config, evaluation, experiment_file, plan, record
from sparse_transfer.predictions import Predictions
from sparse_transfer.seeds import derive
from sparse_transfer.store import Store, write_json

SECONDS, BYTES = 20.0, 5_000_000
SPARSITIES = (0.8, 0.9, 0.95)
# pruner → relative error increase at 80 %, invented
METHODS = {"acdc": 0.05, "gmp": 0.09, "magnitude": 0.3, "rigl": 0.12, "woodfisher": 0.06}
# task → classes, test images, metric, error of the dense model (invented)
TASKS = {
    "aircraft": (100, 3333, "mean_per_class", 0.17),
    "birdsnap": (500, 8171, "top1", 0.27),
    "caltech101": (101, 5647, "mean_per_class", 0.06),
    "caltech256": (257, 15187, "mean_per_class", 0.16),
    "cars": (196, 8041, "top1", 0.1),
    "cifar10": (10, 10000, "top1", 0.03),
    "cifar100": (100, 10000, "top1", 0.14),
    "dtd": (47, 1880, "top1", 0.25),
    "flowers": (102, 6149, "mean_per_class", 0.05),
    "food101": (101, 25250, "top1", 0.13),
    "pets": (37, 3669, "mean_per_class", 0.07),
    "sun397": (397, 19850, "top1", 0.36),
}
MODES = {"linear-sgd": 1.25, "linear-lbfgs": 1.2, "full": 1.0}  # times the error
LAYERS = 53


def main() -> int:
    """Make, measure, say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="upstream seeds")
    parser.add_argument("--examples", type=float, default=1.0, help="times the study's test sizes")
    parser.add_argument("--keep", type=Path, help="folder of the store")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(given.keep or Path(folder))
        if not (store.root / "experiments").is_dir():
            make(store, given.seeds, given.examples)
        command = [sys.executable, "-m", "sparse_transfer", "report", "made-up"]
        started = time.perf_counter()
        subprocess.run([*command, "--runs", store.root], check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        page = store.root / "report" / "made-up" / "index.html"
        size = page.stat().st_size
        files = [one.stat().st_size for one in page.parent.iterdir()]
        runs = len(list(store.root.glob("*/*/result.json")))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = spent.ru_utime + spent.ru_stime
    print(f"{runs} runs: {seconds:.1f} s (limit {SECONDS:g}), {cpu:.1f} s of a processor")
    print(f"page {size / 1e6:.2f} MB (limit {BYTES / 1e6:g})")
    print(f"{len(files) - 1} files beside it, {(sum(files) - size) / 1e6:.1f} MB")
    return int(seconds >= SECONDS or size >= BYTES)


def make(store: Store, seeds: int, examples: float) -> None:
    """Fill a store with finished runs."""
    experiment = experiment_file.build(study(seeds))
    runs = tuple(all_runs(experiment.arms[0]))
    record.save(plan.Plan(experiment, {"main": runs}, ()), store)
    tests = {name: TestSet(name, examples) for name in TASKS}
    for run in runs:
        write_run(store, run, tests)


def all_runs(arm: config.Arm) -> Iterator[plan.Run]:
    """The runs as `expansion.make` orders them, without asking for data, models or cards."""
    transfer = arm.transfer
    assert transfer and transfer.full and arm.bench
    cells = [("dense", 0.0), *((method, level) for level in SPARSITIES for method in METHODS)]
    for method, sparsity in cells:
        for seed in arm.prune.seeds:
            subject = plan.Subject("resnet50", method, sparsity, seed)
            spec = plan.PruneSpec(
                arm.upstream.models[0],
                arm.upstream.task,
                arm.upstream.preprocess,
                arm.recipe,
                config.MethodSpec(name=method),
                sparsity,
                seed,
                None,
            )
            pruned = plan.Run("prune", subject, spec, {"made up": str(subject)})
            yield pruned
            for task in transfer.tasks:
                linear = plan.LinearSpec(task, transfer.preprocess, transfer.linear, (0,))
                full = plan.FullSpec(task, transfer.preprocess, transfer.full, 0)
                yield _child("linear", linear, pruned, task.name)
                yield _child("full", full, pruned, task.name)
            yield _child("bench", plan.BenchSpec(arm.bench, 224), pruned)


def _child(stage: plan.Stage, spec: plan.Spec, pruned: plan.Run, task: str = "") -> plan.Run:
    identity = {"made up": [stage, str(pruned.subject), task]}
    return plan.Run(stage, pruned.subject, spec, identity, {"checkpoint": pruned})


def study(seeds: int) -> dict[str, Any]:
    """The experiment, as a file would say it."""
    return {
        "name": "made-up",
        "title": "A made-up study of 2,000 runs",
        "notes": "Invented numbers that only measure how long a report takes.",
        "upstream": {
            "models": [{"name": "resnet50", "weights": "random"}],
            "task": {"name": "pictures"},
        },
        "recipe": {"name": "made-up", "epochs": 100},
        "prune": {
            "methods": list(METHODS),
            "sparsities": list(SPARSITIES),
            "seeds": list(range(seeds)),
        },
        "transfer": {
            "tasks": list(TASKS),
            "linear": {"name": "made-up"},
            "full": {"name": "made-up", "epochs": 150},
        },
        "bench": {"backends": ["dense", "onnxruntime"]},
    }


class TestSet:
    """The examples of one task: ids, labels, and how hard each is for every model."""

    def __init__(self, task: str, examples: float) -> None:
        self.task = task
        self.classes, size, self.metric, self.error = TASKS[task]
        n = max(self.classes, round(size * examples))
        generator = np.random.default_rng(derive(0, task))
        self.label = (np.arange(n) % self.classes).astype(np.int32)
        self.ids = np.array([f"test/{c:03d}/{i:06d}.jpg" for i, c in enumerate(self.label)])
        self.hardness = generator.random(n)

    def answered(self, error: float, seed: int) -> Predictions:
        """A model that errs about so often, mostly on what is hard."""
        generator = np.random.default_rng(seed)
        n = len(self.label)
        right = self.hardness + generator.normal(0, 0.05, n) < 1 - error
        wrong = (self.label + generator.integers(1, self.classes, n)) % self.classes
        prediction = np.where(right, self.label, wrong).astype(np.int32)
        best = np.arange(min(5, self.classes), dtype=np.int32)
        return Predictions(
            example=self.ids,
            label=self.label,
            prediction=prediction,
            log_prob=np.where(right, -0.2, -3.0).astype(np.float32),
            top=(prediction[:, None] + best) % self.classes,
            top_log_prob=np.tile(-0.2 - best.astype(np.float32), (n, 1)),
            logits=None,
        )


def write_run(store: Store, run: plan.Run, tests: dict[str, TestSet]) -> None:
    """What a finished run leaves in its folder."""
    out = store.folder(run.stage, run.id)
    subject = run.subject
    result: dict[str, Any] = {"title": run.title, "stage": run.stage, "rows": []}
    if run.stage == "prune":
        result |= _pruned(subject, derive(subject.seed, run.id))
    elif run.stage == "bench":
        result["bench"] = [_timed(subject, backend) for backend in ("dense", "onnxruntime")]
    else:
        spec = run.spec
        assert isinstance(spec, plan.LinearSpec | plan.FullSpec)
        modes = ("linear-sgd", "linear-lbfgs") if run.stage == "linear" else ("full",)
        result["rows"] = [_row(out, tests[spec.task.name], mode, subject) for mode in modes]
    write_json(
        out / "manifest.json",
        {
            "id": run.id,
            "versions": {"python": platform.python_version()},
            "machine": {"system": "made up"},
            "device": "cpu",
            "threads": 1,
            "parents": {role: {"stage": p.stage, "id": p.id} for role, p in run.parents.items()},
        },
    )
    write_json(out / "result.json", result)


def _increase(subject: plan.Subject) -> float:
    return METHODS.get(subject.method, 0.0) * (subject.sparsity / 0.8) ** 6


def _row(out: Path, test: TestSet, mode: str, subject: plan.Subject) -> dict[str, Any]:
    error = min(0.95, test.error * MODES[mode] * (1 + _increase(subject)))
    names = (subject.method, str(subject.sparsity), test.task, mode)
    predictions = test.answered(error, derive(subject.seed, *names))
    predictions.save(out / "predictions" / f"{mode}.parquet")
    return {
        "task": test.task,
        "metric": test.metric,
        "mode": mode,
        "transfer_seed": 0,
        "profile": "made-up",
        "image_size": 224,
        "split_hash": f"{derive(0, test.task):016x}",
        "measured_sparsity": subject.sparsity,
        "classes": test.classes,
        "n_test": len(predictions),
        "metrics": evaluation.measure(predictions, test.classes),
        "predictions": f"predictions/{mode}.parquet",
    }


def _pruned(subject: plan.Subject, seed: int) -> dict[str, Any]:
    kept = 1 - subject.sparsity
    generator = np.random.default_rng(seed)
    layers = [
        {
            "layer": f"layer{place // 14 + 1}.{place % 14}.conv",
            "weights": 4096 * (place + 1),
            "density": float(min(1.0, kept * generator.uniform(0.6, 1.8))),
            "channels": 64 * (1 + place // 14),
            "dead_channels": int(generator.integers(0, 1 + place // 5)),
        }
        for place in range(LAYERS)
    ]
    return {
        "measured_sparsity": subject.sparsity,
        "macs": 4.1e9 * min(1.0, 1.4 * kept),
        "macs_dense": 4.1e9,
        "layers": layers if subject.sparsity else [],
    }


def _timed(subject: plan.Subject, backend: str) -> dict[str, Any]:
    return {
        "backend": backend,
        "uses_zeros": "does not use zeros",
        "device": "cpu",
        "threads": 1,
        "batch_size": 16,
        "image_size": 224,
        "median_s": 0.4 + 0.001 * subject.seed,
        "p10_s": 0.39,
        "p90_s": 0.42,
        "speedup": 1.0,
        "speedup_low": 0.99,
        "speedup_high": 1.01,
    }


if __name__ == "__main__":
    sys.exit(main())

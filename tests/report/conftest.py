"""A made-up study, for testing the report only: nothing here is a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sparse_transfer.predictions import Predictions
from sparse_transfer.seeds import derive

METHODS = ("gmp", "fggp", "acdc")
TASKS = {"birds": (0.62, 500), "digits": (0.985, 360), "fabrics": (0.71, 400), "leaves": (0.9, 300)}
TASKS["signs"] = (0.95, 420)
MODES = {"linear-sgd": -0.03, "linear-lbfgs": -0.02, "full": 0.02}
COST = {"gmp": 0.035, "fggp": 0.03, "acdc": 0.022}
CLASSES = 6


@dataclass
class Study:
    """A made-up results frame, bench frame, facts and its predictions by path."""

    frame: pd.DataFrame
    bench: pd.DataFrame
    facts: dict[str, Any]
    stored: dict[str, Predictions]

    def predictions(self, row: Any) -> Predictions:
        return self.stored[str(row["predictions"])]


def made_study(
    *,
    methods: tuple[str, ...] = METHODS,
    sparsities: tuple[float, ...] = (0.8, 0.95),
    seeds: tuple[int, ...] = (0, 1, 2),
    tasks: tuple[str, ...] = tuple(TASKS),
    modes: tuple[str, ...] = tuple(MODES),
    dense: bool = True,
    arm: str = "main",
) -> Study:
    """Build a study of plausible shape: pruned models lose more at higher sparsity."""
    cells = [("dense", 0.0)] if dense else []
    cells += [(method, sparsity) for sparsity in sparsities for method in methods]
    rows: list[dict[str, Any]] = []
    stored: dict[str, Predictions] = {}
    for method, sparsity in cells:
        for seed in seeds:
            loss = COST.get(method, 0.0) * (sparsity / 0.8) ** 6
            rows.append(
                _row(arm, method, sparsity, seed, "pictures", "upstream", 0.88, loss, stored)
            )
            for task in tasks:
                for mode in modes:
                    base = TASKS[task][0] + MODES[mode]
                    rows.append(_row(arm, method, sparsity, seed, task, mode, base, loss, stored))
    frame = pd.DataFrame(rows)
    return Study(frame, _bench(arm, cells, seeds), _facts(arm, cells, seeds), stored)


def _row(
    arm: str,
    method: str,
    sparsity: float,
    seed: int,
    task: str,
    mode: str,
    base: float,
    loss: float,
    stored: dict[str, Predictions],
) -> dict[str, Any]:
    n = TASKS.get(task, (0, 600))[1]
    shared = np.random.default_rng(derive(0, "examples", task, mode))
    own = np.random.default_rng(derive(seed, method, str(sparsity), task, mode))
    label = shared.integers(0, CLASSES, n)
    hard = shared.random(n) + own.normal(0, 0.04, n)
    right = hard < base - loss * own.uniform(0.8, 1.2)
    logits = own.normal(0, 0.5, (n, CLASSES))
    logits[np.arange(n), np.where(right, label, (label + 1) % CLASSES)] += 4
    made = Predictions.from_logits(np.array([f"{task}-{i}" for i in range(n)]), label, logits)
    path = f"{arm}-{method}-{sparsity}-{seed}-{task}-{mode}.parquet"
    stored[path] = made
    hit = made.prediction == made.label
    top1 = float(hit.mean())
    per_class = float(np.mean([hit[label == k].mean() for k in np.unique(label)]))
    metric = "mean_per_class" if task == "leaves" else "top1"
    return {
        "stage": {"upstream": "prune", "full": "full"}.get(mode, "linear"),
        "run": f"{derive(seed, arm, method, str(sparsity), task, mode):016x}"[:12],
        "arm": arm,
        "model": "made_net",
        "method": method,
        "sparsity": sparsity,
        "measured_sparsity": sparsity and sparsity + 0.0004,
        "upstream_seed": seed,
        "recipe": "made-recipe",
        "task": task,
        "mode": mode,
        "transfer_seed": None if mode == "upstream" else 0,
        "profile": "short",
        "image_size": 32,
        "split_hash": f"{derive(0, task):016x}",
        "n_test": n,
        "metric": metric,
        "value": per_class if metric == "mean_per_class" else top1,
        "top1": top1,
        "mean_per_class": per_class,
        "log_loss": float(-made.log_prob.mean()),
        "ece": 0.03,
        "mac_ratio": (share := _mac_share(method, sparsity)),
        "macs": 4e7 * share,
        "predictions": path,
    }


def _mac_share(method: str, sparsity: float) -> float:
    return 1.0 if not sparsity else (1 - sparsity) * (1.5 if method == "gmp" else 1.2)


def _costs(arm: str, cells: list[tuple[str, float]], seeds: tuple[int, ...]) -> list[dict]:
    """Upstream 100 s dense, 160 s pruned; gmp saves 4 s of 20 s per task, the others nothing."""
    made = []
    for method, sparsity in cells:
        for seed in seeds:
            subject = {"arm": arm, "model": "made_net", "method": method, "sparsity": sparsity}
            subject["upstream_seed"] = seed
            upstream = 100.0 if method == "dense" else 160.0
            made.append({"stage": "prune", **subject, "task": "", "seconds": upstream})
            for place, task in enumerate(TASKS):
                own = 16.0 if method == "gmp" else 20.0
                wobble = (place % 2) * (0.3 if method == "fggp" else -0.1)
                seconds = own + wobble + seed
                made.append({"stage": "full", **subject, "task": task, "seconds": seconds})
    return made


def _bench(arm: str, cells: list[tuple[str, float]], seeds: tuple[int, ...]) -> pd.DataFrame:
    rows = []
    for method, sparsity in cells:
        for seed in seeds:
            for backend, words in (("dense", "does not use zeros"), ("skipper", "uses zeros")):
                skips = words == "uses zeros"
                ratio = 1.0 if not (skips and sparsity) else 1 + 2.2 * sparsity**4 + 0.05 * seed
                rows.append(
                    {
                        "arm": arm,
                        "model": "made_net",
                        "method": method,
                        "sparsity": sparsity,
                        "upstream_seed": seed,
                        "backend": backend,
                        "uses_zeros": words,
                        "device": "cpu",
                        "threads": 1,
                        "batch_size": 16,
                        "image_size": 32,
                        "median_s": 0.04 / ratio,
                        "p10_s": 0.038 / ratio,
                        "p90_s": 0.045 / ratio,
                        "speedup": ratio,
                        "speedup_low": ratio * 0.97,
                        "speedup_high": ratio * 1.03,
                        "mac_ratio": 1.0 if not sparsity else 1 - sparsity,
                    }
                )
    return pd.DataFrame(rows)


def _facts(arm: str, cells: list[tuple[str, float]], seeds: tuple[int, ...]) -> dict[str, Any]:
    layers = []
    for method, sparsity in cells:
        for seed in seeds:
            rng = np.random.default_rng(derive(seed, "layers", method, str(sparsity)))
            for place in range(12):
                spread = (0.5 + place / 12) * (1 - sparsity) * rng.uniform(0.9, 1.1)
                layers.append(
                    {
                        "arm": arm,
                        "model": "made_net",
                        "method": method,
                        "sparsity": sparsity,
                        "upstream_seed": seed,
                        "layer": f"layer{place}.conv.weight",
                        "density": 1.0 if not sparsity else min(1.0, spread * 1.2),
                        "weights": 1000 * (place + 1),
                        "channels": 16 * (place + 1),
                        "dead_channels": int(sparsity * 4 * place * (1 + (method == "acdc"))),
                    }
                )
    return {
        "experiment": "made-up",
        "title": "A made-up study",
        "notes": "Made-up numbers that only test the page.",
        "labels": ["made up: not a measurement"],
        "held_fixed": {
            arm: [
                "last epoch, no selection; recipe shared by all methods",
                "first convolution and classifier dense; batch norm in train mode",
                "32 px, bilinear; mean of ratios over tasks",
            ]
        },
        "layers": layers,
        "costs": _costs(arm, cells, seeds),
        "skipped": {"birds": {"corrupt": 2}},
        "failures": [
            {"stage": "full", "run": "0badc0ffee00", "error": "UserError: <the disk is full>"}
        ],
        "versions": {"sparse-transfer": "0.1.0", "torch": "2.x"},
        "machine": {"processor": "made-up processor", "threads": 1},
    }


@pytest.fixture(scope="session")
def study() -> Study:
    """3 methods × 2 sparsities × 3 seeds × 5 tasks × 3 modes, all made up."""
    return made_study()


@pytest.fixture(scope="session")
def make_study() -> Callable[..., Study]:
    """The builder itself, for studies of odd shapes."""
    return made_study

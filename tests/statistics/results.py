"""A results frame for tests: made errors of a few methods, tasks and upstream seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

TASKS = ("digits", "dtd", "pets")


def row(method: str, sparsity: float, task: str, seed: int, value: float, **other: Any) -> dict:
    """One row of the results frame."""
    return {
        "stage": "linear",
        "run": f"{method}-{sparsity}-{task}-{seed}",
        "arm": "main",
        "model": "resnet20",
        "method": method,
        "sparsity": sparsity,
        "measured_sparsity": sparsity,
        "upstream_seed": seed,
        "recipe": "small",
        "task": task,
        "mode": "linear-sgd",
        "transfer_seed": 0,
        "profile": "paper-linear",
        "image_size": 32,
        "split_hash": f"hash-of-{task}",
        "n_test": 200,
        "metric": "top1",
        "value": value,
        "top1": value,
        "mac_ratio": 1 - sparsity,
        **other,
    }


def made(
    effects: dict[tuple[str, float], float],
    *,
    seeds: Sequence[int] = range(4),
    tasks: Sequence[str] = TASKS,
    noise: float = 0.02,
    **other: Any,
) -> pd.DataFrame:
    """Dense and sparse methods; `effects` are their true relative error increases.

    The dense error of a seed is shared by the sparse models of that seed, as in reality.
    """
    generator = np.random.default_rng(11)
    rows = []
    for number, task in enumerate(tasks):
        base = 0.2 + 0.15 * number
        for seed in seeds:
            dense = base * (1 + 5 * noise * generator.normal())
            rows.append(row("dense", 0.0, task, seed, 1 - dense, **other))
            for (method, sparsity), effect in effects.items():
                error = dense * (1 + effect + noise * generator.normal())
                rows.append(row(method, sparsity, task, seed, 1 - error, **other))
    return pd.DataFrame(rows)

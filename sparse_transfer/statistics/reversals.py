"""Whether two methods change places between two modes of transfer, as an interaction.

The study's reversal: with frozen features one method is ahead, with full fine-tuning the other. Its
size is (first − second) in one mode minus the same in the other, per task, in relative error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from sparse_transfer.statistics.intervals import t_interval
from sparse_transfer.statistics.paired_tests import wilcoxon_test

TASK = ["sparsity", "task", "split_hash"]


def reversals(
    one: pd.DataFrame, other: pd.DataFrame, pairs: Iterable[tuple[str, str]]
) -> pd.DataFrame:
    """The interaction of every pair of methods with the mode, at every sparsity.

    Args:
        one, other: rows of `Comparison.tasks` of two groups that differ in their mode.
        pairs: methods (first, second); a pair that either side lacks is left out.

    Returns:
        One row per pair and sparsity with at least 2 shared tasks: first, second, sparsity,
        n_tasks, difference_1 and difference_2 (mean of first − second in each mode, relative
        error), interaction (their difference) with interaction_low/high (t over tasks),
        n_positive (tasks on which it is above 0), p (Wilcoxon over tasks), changes_places (the two
        differences have opposite signs).
    """
    tables = [_increase(one), _increase(other)]
    rows: list[dict[str, Any]] = []
    for first, second in pairs:
        if any(name not in table.columns for table in tables for name in (first, second)):
            continue
        sides = [(table[first] - table[second]).dropna() for table in tables]
        both = pd.concat(sides, axis=1, join="inner", keys=["difference_1", "difference_2"])
        both["interaction"] = both["difference_1"] - both["difference_2"]
        for sparsity, part in both.groupby(level="sparsity"):
            if len(part) < 2:
                continue
            found = t_interval(part["interaction"].to_numpy())
            means = {name: float(part[name].mean()) for name in ("difference_1", "difference_2")}
            rows.append(
                {"first": first, "second": second, "sparsity": sparsity, "n_tasks": len(part)}
                | means
                | {"interaction": found.estimate}
                | {"interaction_low": found.low, "interaction_high": found.high}
                | {"n_positive": int((part["interaction"] > 0).sum())}
                | {"p": wilcoxon_test(part["interaction"].to_numpy())}
                | {"changes_places": bool(np.prod(list(means.values())) < 0)}
            )
    return pd.DataFrame(rows)


def _increase(tasks: pd.DataFrame) -> pd.DataFrame:
    sparse = tasks[~tasks["is_dense"].astype(bool)]
    return sparse.pivot_table(index=TASK, columns="method", values="r")

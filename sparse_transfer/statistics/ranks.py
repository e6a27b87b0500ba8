"""Ranks of methods over tasks, at each sparsity: who is best, how often, and whether it is chance.

A rank compares methods on the same tasks only. A method that lacks a task of the others is not
ranked at that sparsity, and is named with what it lacks; nobody's rank is a mean over fewer tasks.
Source: Demšar 2006, "Statistical Comparisons of Classifiers over Multiple Data Sets".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import pandas as pd
from scipy import stats

from sparse_transfer.statistics.cells import GROUP
from sparse_transfer.statistics.paired_tests import NAN, friedman

TASK = ["task", "split_hash"]
ROUNDING = 1e-12


@dataclass(frozen=True)
class Ranking:
    """Ranks of every group and sparsity.

    Attributes:
        methods: one row per group × sparsity × method: mean_rank (1 is best), best_on (tasks on
            which no other method is better; a tie counts for both), better_than_dense (tasks; NaN
            without dense), n_tasks, missing (tasks that the method lacks, in words; then it has
            no rank).
        tests: one row per group × sparsity: n_methods, n_tasks, best (lowest mean rank; several
            if they tie), statistic and p (Friedman), critical_difference (Nemenyi, 5 %).
    """

    methods: pd.DataFrame
    tests: pd.DataFrame


def rank_methods(tasks: pd.DataFrame) -> Ranking:
    """Rank the pruned methods of every group and sparsity over their tasks.

    Args:
        tasks: `Comparison.tasks`; the task's own metric, mean over seeds, is what is ranked.

    Returns:
        Empty frames where no sparsity has two methods with the same two tasks.
    """
    methods: list[dict[str, Any]] = []
    tests: list[dict[str, Any]] = []
    sparse = tasks[~tasks["is_dense"].astype(bool)] if len(tasks) else tasks
    for values, part in sparse.groupby([*GROUP, "sparsity"], sort=True):
        key = dict(zip([*GROUP, "sparsity"], cast("tuple[Any, ...]", values), strict=True))
        table = part.pivot_table(index=TASK, columns="method", values="value")
        complete = table.loc[:, table.notna().all()]
        if complete.shape[1] < 2 or len(complete) < 2:
            continue
        ranks = friedman(complete.to_numpy())
        names = [str(name) for name in complete.columns]
        lowest = ranks.mean_ranks.min() + ROUNDING
        best = [name for name, rank in zip(names, ranks.mean_ranks, strict=True) if rank <= lowest]
        scores = complete.to_numpy()
        wins = (scores >= scores.max(axis=1, keepdims=True) - ROUNDING).sum(axis=0)
        # Each method beside the dense models of its own seeds.
        dense = part.pivot_table(index=TASK, columns="method", values="dense_value")
        dense = dense.reindex_like(complete).to_numpy()
        above = (scores > dense + ROUNDING).sum(axis=0)
        ranked = zip(names, ranks.mean_ranks, wins, above, strict=True)
        no_dense = bool(np.isnan(dense).any())
        for name, rank, best_on, better in ranked:
            row = {"method": name, "n_tasks": ranks.blocks, "mean_rank": float(rank)}
            row |= {"best_on": int(best_on), "missing": ""}
            methods.append({**key, **row, "better_than_dense": NAN if no_dense else int(better)})
        for name in table.columns[table.isna().any()]:
            absent = ", ".join(str(task) for task, _ in table.index[table[name].isna()])
            row = {"method": str(name), "n_tasks": int(table[name].notna().sum())}
            methods.append({**key, **row, "mean_rank": NAN, "missing": absent})
        tests.append(
            {
                **key,
                "n_methods": len(names),
                "n_tasks": ranks.blocks,
                "best": ", ".join(best),
                "statistic": ranks.statistic,
                "p": ranks.p,
                "critical_difference": critical_difference(len(names), ranks.blocks),
            }
        )
    return Ranking(pd.DataFrame(methods), pd.DataFrame(tests))


@lru_cache(maxsize=256)
def critical_difference(methods: int, blocks: int, *, significance: float = 0.05) -> float:
    """The smallest difference of two mean ranks that the Nemenyi test finds.

    Source: Nemenyi 1963, as in Demšar 2006, equation 4: q √(k (k + 1) / 6 N), where q is the
    quantile of the studentised range with infinite freedom over √2.

    Args:
        methods: k, at least 2.
        blocks: N, at least 1.
    """
    quantile = float(stats.studentized_range.ppf(1 - significance, methods, np.inf))
    return quantile / np.sqrt(2) * np.sqrt(methods * (methods + 1) / (6 * blocks))

"""Contrasts of methods and of modes, and what may explain them: difficulty and seed noise.

As in the comparison with dense, contrasts stay inside groups, are paired by upstream seed and task,
and call the upstream seed the unit of replication.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_transfer.errors import unknown_name
from sparse_transfer.statistics.cells import (
    CELL,
    GROUP,
    NAN,
    Cell,
    Group,
    PairedErrors,
    checked,
    groups,
    is_dense,
    limits,
    refuse_missing,
)
from sparse_transfer.statistics.comparison import MARGIN, Comparison
from sparse_transfer.statistics.correlations import correlation
from sparse_transfer.statistics.intervals import t_interval
from sparse_transfer.statistics.paired_tests import (
    MOST_SIGNS,
    minimum_detectable_effect,
    sign_flip_test,
    wilcoxon_test,
)
from sparse_transfer.statistics.relative_error import signs_agree
from sparse_transfer.statistics.verdicts import verdict

# What two modes of the same checkpoints share.
CHECKPOINT = ["arm", "model", "recipe", "image_size"]
TASK = ["task", "split_hash"]
NO_INTERVAL = "no interval could be computed"


def contrast(
    frame: pd.DataFrame,
    first: str,
    second: str,
    *,
    margin: float = MARGIN,
    confidence: float = 0.95,
    allow_unequal: bool = False,
) -> pd.DataFrame:
    """The difference between two methods, first − second, paired by task and upstream seed.

    Methods without a common upstream seed (imported ones beside our own) are paired by task alone.

    It is the difference of their mean relative error increases over the same dense models; below
    zero, `first` is better. Neither method may be dense: that comparison is `compare`.

    Args:
        frame: see `compare`.
        first, second: labels in the column `method`.
        margin, confidence, allow_unequal: see `compare`.

    Returns:
        One row per group × sparsity that both methods have: the columns of `GROUP`, first, second,
        sparsity, n_tasks, n_seeds, difference (of mor), low, high, interval_over ("upstream seeds",
        with one seed "tasks", else ""), seeds_low/high, tasks_low/high, rom_difference,
        geometric_difference, sign_agreed, seeds_p (exact sign flips over upstream seeds), tasks_p
        (Wilcoxon over tasks), mde, verdict and verdict_text (of `first` against `second`;
        `NO_INTERVAL` where a single difference leaves nothing to decide by), conditional, winner
        (a label where the verdict is decided and the three aggregates agree in sign, else ""),
        missing. Empty where they share no sparsity.

    Raises:
        UserError: a method that is not there, or whatever `compare` would refuse of the results of
            these two and dense.
    """
    table = checked(frame)
    methods = set(table["method"].astype(str))
    for method in (first, second):
        if method not in methods:
            raise unknown_name("method with results", method, methods)
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    for group in groups(table[table["method"].isin([first, second]) | is_dense(table)]):
        sparsities = [s for method, s in group.cells() if method == first]
        for sparsity in sparsities:
            cells: list[Cell] = [(first, sparsity), (second, sparsity)]
            if cells[1] not in group.errors:
                continue
            pair = _paired(group, cells)
            missing += pair[0].missing
            if pair[0].by_seed().size:
                rows.append(_contrast_row(group, cells, pair, margin, confidence))
    if missing and not allow_unequal:
        refuse_missing(missing)
    return pd.DataFrame(rows)


def worse_than_linear(frame: pd.DataFrame, *, probe: str = "linear-sgd") -> pd.DataFrame:
    """The cells in which full fine-tuning ends below the linear probe of the same checkpoints.

    That speaks of the full profile (a rate that does not suit the backbone) rather than of
    sparsity; in the study it never happens to the dense model.

    Args:
        frame: see `compare`.
        probe: the linear mode to compare with; of several linear profiles the best.

    Returns:
        arm, model, recipe, image_size, method, sparsity, task, split_hash, full, linear (means over
        all seeds), difference (full − linear, below 0).
    """
    both = _full_beside_linear(checked(frame), [*CHECKPOINT, *CELL, *TASK], probe)
    both["difference"] = both["full"] - both["linear"]
    return both[both["difference"] < 0].reset_index(drop=True)


def difficulty(frame: pd.DataFrame, *, probe: str = "linear-sgd") -> pd.DataFrame:
    """How much the dense model gains from training its features: full − linear, per task.

    Args:
        frame: see `compare`.
        probe: the linear mode that is subtracted.

    Returns:
        arm, model, recipe, image_size, task, split_hash, full, linear, difficulty, for the tasks
        that the dense model has in both modes.
    """
    table = checked(frame)
    both = _full_beside_linear(table[is_dense(table)], [*CHECKPOINT, *TASK], probe)
    both["difficulty"] = both["full"] - both["linear"]
    return both


def difficulty_correlation(comparison: Comparison, difficulties: pd.DataFrame) -> pd.DataFrame:
    """Pearson correlation of r_t with the difficulty of the tasks.

    Args:
        comparison: of the same frame as the difficulties.
        difficulties: see `difficulty`.

    Returns:
        One row per group × method × sparsity with at least 3 tasks: …, r (NaN where either side
        does not vary), r_low, r_high (Fisher's z, from 4 tasks on), n (tasks).
    """
    joined = beside_difficulty(comparison, difficulties)
    rows: list[dict[str, Any]] = []
    for values, part in joined.groupby([*GROUP, *CELL]):
        if len(part) < 3:
            continue
        found = correlation(part["difficulty"], part["r"])
        identity = zip([*GROUP, *CELL], cast("tuple[Any, ...]", values), strict=True)
        limits_ = {"r": found.r, "r_low": found.low, "r_high": found.high, "n": found.n}
        rows.append({**dict(identity), **limits_})
    return pd.DataFrame(rows)


def beside_difficulty(comparison: Comparison, difficulties: pd.DataFrame) -> pd.DataFrame:
    """The pruned rows of `Comparison.tasks` that have an increase, with their task's difficulty."""
    joined = comparison.tasks.merge(
        difficulties[[*CHECKPOINT, *TASK, "difficulty"]], on=[*CHECKPOINT, *TASK]
    )
    return joined[~joined["is_dense"].astype(bool) & joined["r"].notna()]


def seed_noise(frame: pd.DataFrame) -> pd.DataFrame:
    """Spread over transfer seeds of one checkpoint on one task.

    It measures the head's initialisation and the order of examples, never the choice of the
    upstream checkpoint.

    Args:
        frame: see `compare`.

    Returns:
        One row per group × method × sparsity × upstream seed × task: n, mean, sd (ddof = 1; NaN
        for n = 1); `pooled_sd` sums them up.
    """
    key = [*GROUP, *CELL, "upstream_seed", *TASK]
    values = checked(frame).groupby(key)["value"]
    return values.agg(n="count", mean="mean", sd="std").reset_index()


def pooled_sd(sd: Sequence[float] | pd.Series, n: Sequence[int] | pd.Series) -> float:
    """The standard deviation within groups, √(Σ (n−1) sd² / Σ (n−1)); n = 1 adds nothing.

    Args:
        sd: (groups,) standard deviations (ddof = 1).
        n: (groups,) values in each group.
    """
    deviations, freedom = np.asarray(sd, dtype=np.float64), np.asarray(n, dtype=np.float64) - 1
    known = freedom > 0
    if not known.any():
        return NAN
    return float(np.sqrt(np.average(deviations[known] ** 2, weights=freedom[known])))


def seed_noise_of_mean(frame: pd.DataFrame) -> pd.DataFrame:
    """Standard error of the mean of ratios that comes from transfer seeds, first order.

    Args:
        frame: see `compare`; every cell has one upstream seed.

    Returns:
        One row per group × sparse method × sparsity: n_tasks, error (noise of the sparse runs,
        dense means taken as known), error_with_dense (that of the dense runs added), both in
        relative error. NaN where a cell has one seed.
    """
    noise = seed_noise(frame)
    noise["variance"] = noise["sd"] ** 2 / noise["n"]
    noise["error"] = 1 - noise["mean"]
    key = [*GROUP, *TASK]
    dense = noise[is_dense(noise)].set_index(key)[["error", "variance"]].add_prefix("dense_")
    sparse = noise[~is_dense(noise)].merge(dense.reset_index(), on=key)
    sparse = sparse[sparse["dense_error"] > 0].copy()  # a task without dense errors has no ratio
    sparse["own"] = sparse["variance"] / sparse["dense_error"] ** 2
    ratio = sparse["error"] / sparse["dense_error"]
    sparse["both"] = (
        sparse["own"] + ratio**2 * sparse["dense_variance"] / sparse["dense_error"] ** 2
    )
    rows: list[dict[str, Any]] = []
    for values, part in sparse.groupby([*GROUP, *CELL]):
        identity = zip([*GROUP, *CELL], cast("tuple[Any, ...]", values), strict=True)
        errors = np.sqrt(part[["own", "both"]].to_numpy().sum(axis=0)) / len(part)
        rows.append(
            {
                **dict(identity),
                "n_tasks": len(part),
                "error": float(errors[0]),
                "error_with_dense": float(errors[1]),
            }
        )
    return pd.DataFrame(rows)


def _paired(group: Group, cells: Sequence[Cell]) -> list[PairedErrors]:
    """Two cells paired by task and upstream seed; by task alone if they have no seed in common.

    Checkpoints of another source share no seed with ours. Each is then held against the dense
    models of its own seeds, and only tasks are pairs: one value per task, conditional on the
    checkpoints.
    """
    seeds = [{seed for row in group.errors[cell].values() for seed in row} for cell in cells]
    if seeds[0] & seeds[1]:
        return group.paired(cells, own_tasks=True)
    apart = [group.paired([cell], own_tasks=True)[0] for cell in cells]
    shared = [task for task in apart[0].tasks if task in set(apart[1].tasks)]
    missing = [text for one in apart for text in one.missing]
    for task in sorted({task for one in apart for task in one.tasks} - set(shared)):
        missing.append(f"{task[0]} for both {cells[0][0]} and {cells[1][0]}")
    pairs = []
    for one in apart:
        rows = [one.tasks.index(task) for task in shared]
        dense, sparse = (
            errors[rows].mean(axis=1, keepdims=True) for errors in (one.dense, one.sparse)
        )
        pairs.append(PairedErrors(shared, [0], dense, sparse, missing))
    return pairs


def _contrast_row(
    group: Group,
    cells: Sequence[Cell],
    pair: Sequence[PairedErrors],
    margin: float,
    confidence: float,
) -> dict[str, Any]:
    values = pair[0].by_seed() - pair[1].by_seed()  # (tasks, seeds)
    by_seed, by_task = values.mean(axis=0), values.mean(axis=1)
    over_seeds = t_interval(by_seed, confidence=confidence)
    over_tasks = t_interval(by_task, confidence=confidence)
    conditional = by_seed.size < 2
    chosen, sample = (over_tasks, by_task) if conditional else (over_seeds, by_seed)
    mde = minimum_detectable_effect(_sd(sample), sample.size)
    found = verdict(chosen.low, chosen.high, margin, mde, conditional=conditional)
    one, two = pair[0].aggregates(), pair[1].aggregates()
    rom = one.ratio_of_means - two.ratio_of_means
    geometric = one.geometric_mean - two.geometric_mean
    agreed = signs_agree(chosen.estimate, rom, geometric)
    decided = {"better": cells[0][0], "worse": cells[1][0]}.get(found.word, "")
    over = "tasks" if conditional else "upstream seeds"
    # undecided is what an interval says; one difference has none
    is_known = not np.isnan(chosen.low)
    return {
        **group.key,
        "first": cells[0][0],
        "second": cells[1][0],
        "sparsity": cells[0][1],
        "n_tasks": by_task.size,
        "n_seeds": by_seed.size,
        "difference": chosen.estimate,
        "low": chosen.low,
        "high": chosen.high,
        "interval_over": over if is_known else "",
        **limits("seeds", over_seeds),
        **limits("tasks", over_tasks),
        "rom_difference": rom,
        "geometric_difference": geometric,
        "sign_agreed": agreed,
        "seeds_p": sign_flip_test(by_seed) if 2 <= by_seed.size <= MOST_SIGNS else NAN,
        "tasks_p": wilcoxon_test(by_task),
        "mde": mde,
        "verdict": found.word if is_known else NO_INTERVAL,
        "verdict_text": found.text if is_known else f"{NO_INTERVAL} from one difference",
        "conditional": conditional,
        "winner": decided if agreed else "",
        "missing": "; ".join(pair[0].missing),
    }


def _sd(sample: NDArray[np.float64]) -> float:
    return float(sample.std(ddof=1)) if sample.size > 1 else NAN


def _full_beside_linear(table: pd.DataFrame, key: list[str], probe: str) -> pd.DataFrame:
    """Means over seeds in both modes; of several profiles the lowest full, the highest linear."""
    means = table.groupby(["mode", *key, "profile"])["value"].mean()
    by_mode = means.reset_index()
    full = by_mode[by_mode["mode"] == "full"].groupby(key)["value"].min().rename("full")
    linear = by_mode[by_mode["mode"] == probe].groupby(key)["value"].max().rename("linear")
    return pd.concat([full, linear], axis=1, join="inner").reset_index()

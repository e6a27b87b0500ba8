"""The comparison of sparse models with dense ones, from the frame of all results.

The unit of replication is the upstream seed; with one checkpoint per method every statement is
conditional on it. Order of averaging: transfer seeds within an upstream seed, upstream seeds within
a task, tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from sparse_transfer.predictions import Predictions
from sparse_transfer.seeds import derive
from sparse_transfer.statistics.cells import (
    CELL,
    GROUP,
    NAN,
    Cell,
    Group,
    PairedErrors,
    Task,
    checked,
    groups,
    limits,
    refuse_missing,
)
from sparse_transfer.statistics.examples import (
    AccuracyMetric,
    ExampleBootstrap,
    ExampleOrder,
    percentile_limits,
    ratio_of_errors,
    resampled_errors,
)
from sparse_transfer.statistics.intervals import Interval, t_interval
from sparse_transfer.statistics.paired_tests import (
    holm,
    minimum_detectable_effect,
    wilcoxon_test,
)
from sparse_transfer.statistics.relative_error import relative_error_by_seed
from sparse_transfer.statistics.verdicts import verdict

MARGIN = 0.01  # relative error; what lies inside ±1 % is called equivalent
FEW_DENSE_ERRORS = 30
ROUNDING = 1e-12

LoadPredictions = Callable[[Mapping[str, Any]], Predictions]


@dataclass(frozen=True)
class Comparison:
    """Everything known about sparse against dense, as two frames.

    Attributes:
        methods: one row per group × method × sparsity, dense included (its increases are 0).
            Columns after those of the group (`GROUP`): method, sparsity, is_dense,
            measured_sparsity and mac_ratio (means; NaN where unknown), n_tasks, n_seeds (paired
            upstream seeds), n_runs, mean_value (of the tasks' own metrics, over the tasks), mor,
            low, high (the interval that the verdict is about), interval_over ("upstream seeds",
            "test examples", "tasks" or "": the first that is possible), seeds_low/high,
            examples_low/high, tasks_low/high, rom, geometric, median, sign_agreed (mor, rom and
            geometric have one sign), wins (tasks with fewer errors than dense), wilcoxon_p (over
            tasks), wilcoxon_holm (within the group), mde, verdict (the word), verdict_text,
            conditional (on one checkpoint per method), probe_dependent (the two linear probes
            disagree in the sign of mor; NA if not both ran), left_out (tasks that have no ratio as
            dense makes no error there), missing (what `allow_unequal` let pass).
        tasks: one row per group × method × sparsity × task; after method, sparsity, is_dense: task,
            split_hash, metric, n_test, n_seeds, n_runs, value, value_sd (over upstream seeds),
            dense_value, r, seeds_low/high (t over paired upstream seeds), examples_low/high (paired
            bootstrap over test examples), dense_errors (count in one test set; NaN where n_test is
            unknown), few_dense_errors (below 30; NA where unknown), worse_than_linear (full
            fine-tuning below the sgd probe of the same checkpoints; NA elsewhere).
    """

    methods: pd.DataFrame
    tasks: pd.DataFrame


def compare(
    frame: pd.DataFrame,
    *,
    predictions: LoadPredictions | None = None,
    margin: float = MARGIN,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    allow_unequal: bool = False,
) -> Comparison:
    """Compare every sparse cell with the dense cell of its group.

    Args:
        frame: the results frame, one row per evaluation; the columns of GROUP, method, sparsity,
            upstream_seed, task, split_hash, transfer_seed, metric, value are needed. The reference
            is the method called "dense". A null upstream seed counts as seed 0.
        predictions: loads the predictions of a row (a dict of its columns); without it there are
            no intervals over test examples. Rows whose column `predictions` is null (imported
            ones) have none. Sparse files are read once, dense ones once per set of paired seeds.
        margin: relative error; an interval inside ±margin is *equivalent*.
        confidence: of all intervals.
        resamples: test sets drawn per task for intervals over test examples.
        seed: of the resampling.
        allow_unequal: compare on the tasks and seeds that exist instead of refusing; `missing` and
            the n of each row say what is absent. A group without dense has empty increases.

    Raises:
        UserError: a value that is not a number, a row twice, a metric that is not an accuracy, or
            results (method × sparsity × seed × task) that are missing, by name.
    """
    parts = groups(checked(frame))
    missing = [text for group in parts for text in group.missing()]
    if missing and not allow_unequal:
        refuse_missing(missing)
    method_rows: list[dict[str, Any]] = []
    task_rows: list[dict[str, Any]] = []
    for group in parts:
        pairs = {cell: group.paired([cell])[0] for cell in group.cells()}
        by_examples: Mapping[tuple[Cell, Task], ExampleBootstrap] = {}
        if predictions is not None:
            examples = _Examples(group, predictions, confidence, resamples, seed)
            by_examples = examples.bootstraps(pairs)
        for cell, paired in pairs.items():
            boots = [by_examples.get((cell, task)) for task in paired.tasks]
            method_rows.append(_method_row(group, cell, paired, boots, margin, confidence))
            task_rows += _task_rows(group, cell, paired, boots, confidence)
    methods = pd.DataFrame(method_rows)
    methods["wilcoxon_holm"] = methods.groupby(GROUP)["wilcoxon_p"].transform(holm)
    methods["probe_dependent"] = _probe_dependent(methods)
    tasks = pd.DataFrame(task_rows)
    if len(tasks):
        few = (tasks["dense_errors"] < FEW_DENSE_ERRORS).astype("boolean")
        tasks["few_dense_errors"] = few.where(tasks["dense_errors"].notna(), pd.NA)
        tasks["worse_than_linear"] = _marked_worse(tasks)
    return Comparison(methods, tasks)


@dataclass(frozen=True)
class _Spread:
    """One of the possible intervals of a mean of ratios."""

    over: str
    interval: Interval
    mde: float


class _Examples:
    """Paired bootstraps over the test examples of one group."""

    def __init__(
        self, group: Group, load: LoadPredictions, confidence: float, resamples: int, seed: int
    ) -> None:
        self.group, self.load = group, load
        self.confidence, self.resamples, self.seed = confidence, resamples, seed
        stored = group.frame["predictions"].notna() if "predictions" in group.frame else None
        self.stored = np.ones(len(group.frame), bool) if stored is None else stored.to_numpy()
        self.seeds = group.frame["upstream_seed"].to_numpy()
        self.rows = cast("list[dict[str, Any]]", group.frame.to_dict("records"))

    def bootstraps(
        self, pairs: Mapping[Cell, PairedErrors]
    ) -> dict[tuple[Cell, Task], ExampleBootstrap]:
        """The bootstrap of every r_t of the group whose predictions are stored.

        All cells are scored on the same resampled test sets of a task.
        """
        found: dict[tuple[Cell, Task], ExampleBootstrap] = {}
        dense = self.group.dense
        if dense is None:
            return found
        for task in self.group.tasks:
            cells = [
                (cell, tuple(paired.seeds))
                for cell, paired in pairs.items()
                if cell != dense
                and task in paired.tasks
                and self._are_stored(dense, task)
                and self._are_stored(cell, task)
            ]
            if cells:
                found |= self._of_task(task, dense, cells)
        return found

    def _of_task(
        self, task: Task, dense: Cell, cells: Sequence[tuple[Cell, tuple[int, ...]]]
    ) -> dict[tuple[Cell, Task], ExampleBootstrap]:
        """Dense once per set of paired seeds, every cell once, all on the same test sets."""
        wanted = list(dict.fromkeys([*((dense, seeds) for _, seeds in cells), *cells]))
        order = ExampleOrder()
        errors = [self._errors(order, cell, task, seeds) for cell, seeds in wanted]
        drawn = resampled_errors(
            order.label,
            np.stack(errors, axis=1),
            metric=cast(AccuracyMetric, self.group.metric(dense, task)),
            resamples=self.resamples,
            # Test sets of different tasks are independent, so their draws must be.
            seed=derive(self.seed, *task),
        )
        column = {one: drawn[:, place] for place, one in enumerate(wanted)}
        return {
            (cell, task): ratio_of_errors(
                column[dense, seeds], column[cell, seeds], confidence=self.confidence
            )
            for cell, seeds in cells
        }

    def _are_stored(self, cell: Cell, task: Task) -> bool:
        return bool(self.stored[self.group.runs(cell, task)].all())

    def _errors(
        self, order: ExampleOrder, cell: Cell, task: Task, seeds: Sequence[int]
    ) -> NDArray[np.float64]:
        """(n,) the share of the cell's models that err on each example."""
        runs = self.group.runs(cell, task)
        runs = runs[np.isin(self.seeds[runs], seeds)]
        # Upstream seeds weigh alike, however many transfer seeds each has.
        weights = [1 / float((self.seeds[runs] == seed).sum()) for seed in self.seeds[runs]]
        return order.share([self.load(self.rows[run]) for run in runs], weights)


def _method_row(
    group: Group,
    cell: Cell,
    paired: PairedErrors,
    boots: Sequence[ExampleBootstrap | None],
    margin: float,
    confidence: float,
) -> dict[str, Any]:
    runs, aggregates = group.runs(cell), paired.aggregates()
    compared = group.dense is not None and cell != group.dense and aggregates.n > 0
    spreads = _spreads(paired.by_seed(), boots, confidence) if compared else []
    spread = spreads[0] if spreads else _Spread("", Interval(NAN, NAN, NAN), NAN)
    by_over = {spread.over: spread.interval for spread in spreads}
    conditional = len(paired.seeds) < 2
    found = verdict(
        spread.interval.low, spread.interval.high, margin, spread.mde, conditional=conditional
    )
    fewer = (paired.dense - paired.sparse).mean(axis=1) if compared else np.zeros(0)
    undefined = [t[0] for t, r in zip(paired.tasks, paired.by_task(), strict=True) if np.isnan(r)]
    return {
        **_identity(group, cell),
        "measured_sparsity": group.mean(runs, "measured_sparsity"),
        "mac_ratio": group.mean(runs, "mac_ratio"),
        "n_tasks": aggregates.n,
        "n_seeds": len(paired.seeds),
        "n_runs": len(runs),
        "mean_value": float(1 - paired.sparse.mean()) if paired.tasks else NAN,
        "mor": aggregates.mean_of_ratios,
        "low": spread.interval.low,
        "high": spread.interval.high,
        "interval_over": spread.over,
        **limits("seeds", by_over.get("upstream seeds")),
        **limits("examples", by_over.get("test examples")),
        **limits("tasks", by_over.get("tasks")),
        "rom": aggregates.ratio_of_means,
        "geometric": aggregates.geometric_mean,
        "median": aggregates.median,
        "sign_agreed": aggregates.sign_agreed,
        "wins": int(np.sum(fewer > ROUNDING)),
        "wilcoxon_p": wilcoxon_test(fewer),
        "mde": spread.mde,
        "verdict": found.word if compared else "",
        "verdict_text": found.text if compared else "",
        "conditional": conditional,
        "left_out": ", ".join(undefined) if group.dense is not None else "",
        "missing": "; ".join(paired.missing),
    }


def _task_rows(
    group: Group,
    cell: Cell,
    paired: PairedErrors,
    boots: Sequence[ExampleBootstrap | None],
    confidence: float,
) -> list[dict[str, Any]]:
    if not paired.tasks:
        return []
    by_seed = relative_error_by_seed(paired.dense, paired.sparse)
    rows = []
    for i, task in enumerate(paired.tasks):
        runs, boot = group.runs(cell, task), boots[i]
        has_interval = cell != group.dense and len(paired.seeds) > 1
        over_seeds = t_interval(by_seed[i], confidence=confidence) if has_interval else None
        n_test = group.mean(runs, "n_test")
        dense_errors = n_test * _dense_top1_error(group, task)
        rows.append(
            {
                **_identity(group, cell),
                "task": task[0],
                "split_hash": task[1],
                "metric": group.metric(cell, task),
                "n_test": n_test,
                "n_seeds": len(paired.seeds),
                "n_runs": len(runs),
                "value": float(1 - paired.sparse[i].mean()),
                "value_sd": float(paired.sparse[i].std(ddof=1)) if len(paired.seeds) > 1 else NAN,
                "dense_value": float(1 - paired.dense[i].mean()),
                "r": float(by_seed[i].mean()),
                **limits("seeds", over_seeds),
                **limits(
                    "examples", Interval(boot.estimate, boot.low, boot.high) if boot else None
                ),
                "dense_errors": dense_errors,
            }
        )
    return rows


def _identity(group: Group, cell: Cell) -> dict[str, Any]:
    method, sparsity = cell
    return {**group.key, "method": method, "sparsity": sparsity, "is_dense": cell == group.dense}


def _spreads(
    values: NDArray[np.float64], boots: Sequence[ExampleBootstrap | None], confidence: float
) -> list[_Spread]:
    """The intervals that the data allow, the one to be believed first.

    Args:
        values: (tasks, seeds) r_t by seed.
        boots: the bootstrap of each task, where there are predictions.
    """
    over_seeds, over_tasks = values.mean(axis=0), values.mean(axis=1)
    spreads = [_t_spread("upstream seeds", over_seeds, confidence)] if over_seeds.size > 1 else []
    replicates = _mean_replicates(boots)
    if replicates is not None:
        limits_ = percentile_limits(replicates, confidence)
        error = float(replicates.std()) if np.isfinite(replicates).all() else NAN
        # Standard errors that 80 % power needs, as n → ∞ in `minimum_detectable_effect`.
        needed = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
        interval = Interval(float(values.mean()), *limits_)
        spreads.append(_Spread("test examples", interval, needed * error))
    spreads.append(_t_spread("tasks", over_tasks, confidence))
    return [spread for spread in spreads if not np.isnan(spread.interval.low)]


def _t_spread(over: str, sample: NDArray[np.float64], confidence: float) -> _Spread:
    sd = float(sample.std(ddof=1)) if sample.size > 1 else NAN
    mde = minimum_detectable_effect(sd, sample.size)
    return _Spread(over, t_interval(sample, confidence=confidence), mde)


def _mean_replicates(boots: Sequence[ExampleBootstrap | None]) -> NDArray[np.float64] | None:
    """Replicates of the mean over the tasks that have a ratio; None where predictions lack."""
    known = [boot.replicates for boot in boots if boot is not None]
    if len(known) < len(boots):
        return None  # a mean over fewer tasks would be another quantity
    usable = [replicates for replicates in known if not np.isnan(replicates).any()]
    return np.mean(usable, axis=0) if usable else None


def _dense_top1_error(group: Group, task: Task) -> float:
    """Share of test examples that the dense models get wrong; from the own metric if need be."""
    if group.dense is None:
        return NAN
    runs = group.runs(group.dense, task)
    top1 = group.mean(runs, "top1")
    return 1 - (group.mean(runs, "value") if np.isnan(top1) else top1)


def _probe_dependent(methods: pd.DataFrame) -> pd.Series:
    """Whether the two linear probes of a cell disagree in the sign of mor; NA if not both ran."""
    shared = [name for name in [*GROUP, *CELL] if name != "mode"]
    marks: dict[Any, Any] = dict.fromkeys(methods.index, pd.NA)
    usable = methods[~methods["is_dense"].astype(bool) & methods["mor"].notna()]
    probes = usable[usable["mode"].isin(["linear-sgd", "linear-lbfgs"])]
    for _, part in probes.groupby(shared):
        if len(part) == 2:
            signs = np.sign(part["mor"].to_numpy())
            marks.update(dict.fromkeys(part.index, bool(signs[0] * signs[1] < 0)))
    return pd.Series(marks, index=methods.index, dtype="boolean")


def _marked_worse(tasks: pd.DataFrame) -> pd.Series:
    """Whether a row of full transfer lies below the sgd probe; NA for other modes or no probe."""
    key = ["arm", "model", "recipe", "image_size", *CELL, "task", "split_hash"]
    probe = tasks[tasks["mode"] == "linear-sgd"].groupby(key)["value"].max()
    linear = probe.reindex(pd.MultiIndex.from_frame(tasks[key])).to_numpy()
    known = (tasks["mode"] == "full").to_numpy() & ~np.isnan(linear)
    below = pd.Series(tasks["value"].to_numpy() < linear, index=tasks.index).astype("boolean")
    return below.where(known, pd.NA)

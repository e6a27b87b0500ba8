"""From results to the tables of the report: what zeros cost, over tasks and task by task.

Every statistic comes from `statistics.compare` and `statistics.contrast`; here they are only put in
order. Comparisons never leave a group (arm, upstream model, recipe, mode, profile, image size).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from sparse_transfer.report.cells import Column, Table, records, with_values
from sparse_transfer.report.cost_tables import NO_ZEROS, REGIME, regime, theoretical
from sparse_transfer.statistics import GROUP, Comparison
from sparse_transfer.store import slug

MODES = {
    "upstream": "Upstream",
    "linear-sgd": "Linear probe (SGD)",
    "linear-lbfgs": "Linear probe (L-BFGS)",
    "linear-online": "Linear, backbone recomputed",
    "full": "Full fine-tuning",
}
PROBES = ("linear-sgd", "linear-lbfgs")  # two readings of one table of features
CELL = ["method", "sparsity"]
MOST_METHODS = 40  # whose pairs are all contrasted; of more, only those declared in advance
SUMMARY = (
    Column("method", "method"),
    Column(
        "sparsity",
        "sparsity, % (measured)",
        "sparsity",
        "the target, and the share of zeros among the prunable weights",
        beside="measured_sparsity",
    ),
    Column("upstream", "upstream accuracy, %", "percent", "mean over upstream seeds"),
    Column("mean_value", "mean accuracy, %", "percent", "mean over tasks of their own metric"),
    Column("mor", "relative error increase, %", "change", "mean of ratios over tasks (MoR)"),
    Column("rom", "RoM, %", "change", "ratio of means: errors summed over tasks, then compared"),
    Column("geometric", "geometric, %", "change", "geometric mean of the error ratios"),
    Column("coverage", "tasks × seeds"),
    Column("theoretical", "theoretical speedup (MACs, zeros skipped)", "ratio"),
)
AFTER_SPEED = (
    Column("ahead_of", "ahead of", note="decided, and all three aggregates agree in sign"),
    Column("verdict_short", "verdict against dense", beside="effect"),
)
CONTRAST = (
    Column("mode_title", "mode", choice=True),
    Column("sparsity", "sparsity, %", "sparsity"),
    Column("declared", "declared", choice=True),
    Column("first", "first", choice=True),
    Column("second", "second", choice=True),
    Column("difference", "first − second, points of relative error", "change", "below 0: first"),
    Column("rom_difference", "RoM", "change"),
    Column("geometric_difference", "geometric", "change"),
    Column("coverage", "tasks × seeds"),
    Column("interval_over", "interval over"),
    Column("verdict_short", "verdict on the first", beside="effect"),
)
TASKS = (
    Column("mode_title", "mode", choice=True),
    Column("task", "task", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("metric", "metric"),
    Column("value", "accuracy, %", "percent", "the task's own metric, mean over upstream seeds"),
    Column("value_sd", "sd, points", "percent", "over upstream seeds"),
    Column("r", "relative error increase, %", "change", "interval: paired, over test examples"),
    Column("errors", "errors", "count", "of n test images, mean over runs; the CSV has the sums"),
    Column("n_test", "n test", "count"),
    Column("n_seeds", "seeds", "count"),
    Column("marks", "marks"),
)


@dataclass(frozen=True)
class Group:
    """What may be compared with each other: one value of every column of `statistics.GROUP`."""

    arm: str
    model: str
    recipe: str
    mode: str
    profile: str
    image_size: Any
    title: str
    name: str

    def of(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a frame that belong to this group."""
        fits = pd.Series(True, index=frame.index)
        for column in GROUP:
            fits &= frame[column] == getattr(self, column)
        return frame[fits]


def groups(methods: pd.DataFrame, frame: pd.DataFrame) -> list[Group]:
    """The groups of a comparison, titled by what tells them apart.

    Arms and models come in the order of the results frame, modes in that of `MODES`.
    """
    keys = records(methods[GROUP].drop_duplicates())
    keys.sort(key=lambda key: _place(key["mode"]))
    arms = list(dict.fromkeys(zip(frame["arm"], frame["model"], strict=True)))
    keys.sort(key=lambda key: arms.index((key["arm"], key["model"])))
    made = []
    for key in keys:
        rivals = [
            other
            for other in keys
            if all(other[name] == key[name] for name in ("arm", "model", "mode"))
        ]
        apart = [
            f"{key[name]:g} px" if name == "image_size" else str(key[name])
            for name in ("recipe", "profile", "image_size")
            if len({other[name] for other in rivals}) > 1
        ]
        title = ", ".join([mode_title(str(key["mode"])), *apart])
        models = {model for arm, model in arms if arm == key["arm"]}
        parts = [key["arm"], key["model"] if len(models) > 1 else "", key["mode"], *apart]
        values = {str(name): value for name, value in key.items()}
        made.append(Group(**values, title=title, name=slug(*parts)))
    return made


def mode_title(mode: str) -> str:
    """The mode in words."""
    return MODES.get(mode, mode)


def summary_table(
    group: Group,
    comparison: Comparison,
    contrasts: pd.DataFrame,
    upstream: Mapping[tuple[Any, ...], float],
    measured: pd.DataFrame,
    held_fixed: str,
) -> Table:
    """One group over its tasks: what zeros cost, beside what they save.

    Args:
        contrasts: rows of `statistics.contrast` of all groups.
        upstream: mean upstream accuracy by (arm, model, method, sparsity).
        measured: rows of `cost_tables.measurements` (may be empty).
    """
    frame = group.of(comparison.methods).copy()
    dense = frame["is_dense"]
    cells = list(zip(frame["method"], frame["sparsity"], strict=True))
    frame.loc[dense, ["mor", "rom", "geometric", "measured_sparsity"]] = float("nan")
    frame["mor_low"], frame["mor_high"] = frame["low"], frame["high"]
    frame["coverage"] = [
        f"{n} × {s}" for n, s in zip(frame["n_tasks"], frame["n_seeds"], strict=True)
    ]
    if group.mode != "upstream":
        frame["upstream"] = [upstream.get((group.arm, group.model, *cell)) for cell in cells]
    ratios = zip(frame["mac_ratio"], frame["method"], strict=True)
    frame["theoretical"] = [theoretical(pd.Series([ratio]), method) for ratio, method in ratios]
    own = group.of(contrasts) if len(contrasts) else contrasts
    frame["ahead_of"] = [_ahead_of(own, *cell) for cell in cells]
    speed, notes = _measured_columns(frame, measured, group)
    frame["effect"] = _effects(frame)
    frame["verdict_short"] = [_verdict(row) for row in records(frame)]
    frame = frame.sort_values(["sparsity", "method"], kind="stable")
    columns = with_values(frame, (*SUMMARY, *speed, *AFTER_SPEED))
    return Table(
        f"summary-{group.name}",
        group.title,
        frame,
        columns,
        _interval_remark(frame),
        (*_effect_note(frame), *notes, *_coverage_notes(frame)),
        held_fixed,
    )


def contrast_table(contrasts: pd.DataFrame, *, name: str, title: str, held_fixed: str) -> Table:
    """Methods against each other, paired by task and upstream seed."""
    frame = contrasts.copy()
    frame["mode_title"] = frame["mode"].map(mode_title)
    frame["coverage"] = [
        f"{n} × {s}" for n, s in zip(frame["n_tasks"], frame["n_seeds"], strict=True)
    ]
    frame["difference_low"], frame["difference_high"] = frame["low"], frame["high"]
    frame["verdict_short"], frame["effect"] = frame["verdict"], _effects(frame)
    columns = with_values(frame, CONTRAST)
    remark = "Paired by task and upstream seed, over the same dense models; below zero, the first "
    remark += "has fewer errors."
    return Table(
        f"contrasts-{name}", title, frame, columns, remark, _effect_note(frame), held_fixed
    )


def task_table(
    tasks: pd.DataFrame, frame: pd.DataFrame, *, name: str, title: str, held_fixed: str
) -> Table:
    """Accuracy and relative error increase of every task; marks say what to distrust.

    Args:
        tasks: rows of `Comparison.tasks` to be shown.
        frame: the results frame, for the error counts.
    """
    made = tasks.copy()
    key = [*GROUP, *CELL, "task"]
    wrong = (frame["n_test"] * (1 - frame["top1"])).round()
    counted = frame.assign(errors=wrong, errors_total=wrong, n_total=frame["n_test"]).groupby(key)
    sums = counted[["errors_total", "n_total"]].sum(min_count=1)
    counts = sums.join(counted["errors"].mean())
    for count in counts.columns:
        by_key = cast("dict[tuple[Any, ...], float]", counts[count].to_dict())
        made[count] = [by_key.get(values, float("nan")) for values in _tuples(made, key)]
    made["mode_title"] = made["mode"].map(mode_title)
    made["r_low"], made["r_high"] = made["examples_low"], made["examples_high"]
    made.loc[made["is_dense"], ["r", "r_low", "r_high"]] = float("nan")
    dependent = _probe_dependent_tasks(made)
    rows = records(made)
    made["probe_dependent"] = [_probe_key(row) in dependent for row in rows]
    made["marks"] = [", ".join(_marks(row, _probe_key(row) in dependent)) for row in rows]
    made["_mode"] = [_place(str(mode)) for mode in made["mode"]]
    made = made.sort_values(["_mode", "task", "sparsity", "method"], kind="stable")
    made = made.drop(columns="_mode")
    notes = []
    if made["few_dense_errors"].fillna(False).any():
        notes.append("Few dense errors: below 30 in the test set, so ratios of errors are coarse.")
    if dependent:
        notes.append("Probe-dependent: the two linear probes disagree on the sign of the increase.")
    if made["worse_than_linear"].fillna(False).any():
        notes.append(
            "Full worse than linear: fine-tuning all weights ended below the SGD probe of the same "
            "checkpoints, a sign of an untuned profile."
        )
    columns = with_values(made, TASKS)
    return Table(f"tasks-{name}", title, made, columns, "", tuple(notes), held_fixed)


def _place(mode: str) -> int:
    """The place of a mode in the report; modes that it does not know come last."""
    order = list(MODES)
    return order.index(mode) if mode in order else len(order)


def _tuples(frame: pd.DataFrame, columns: list[str]) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in columns) for row in records(frame)]


def _ahead_of(contrasts: pd.DataFrame, method: str, sparsity: float) -> str:
    """The methods that this one beats: decided, with all aggregates of one sign."""
    beaten = []
    for row in records(contrasts):
        if row["sparsity"] == sparsity and row["winner"] == method:
            beaten.append(str(row["second"] if row["first"] == method else row["first"]))
    return ", ".join(sorted(beaten))


def _measured_columns(
    frame: pd.DataFrame, measured: pd.DataFrame, group: Group
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """One column per regime that uses zeros, or the words that none does; written into `frame`."""
    if measured.empty:
        return (), ()
    own = measured[(measured["arm"] == group.arm) & (measured["model"] == group.model)]
    columns = []
    for key, part in own[own["uses_zeros"]].groupby(REGIME, sort=False, dropna=False):
        name = f"measured_{len(columns)}" if columns else "measured"
        shown = {(m, s): (v, lo, hi) for m, s, v, lo, hi in _speeds(part)}
        for place, suffix in enumerate(("", "_low", "_high")):
            frame[name + suffix] = [
                shown.get((method, sparsity), (float("nan"),) * 3)[place]
                for method, sparsity in zip(frame["method"], frame["sparsity"], strict=True)
            ]
        title = f"measured speedup, {regime(dict(zip(REGIME, key, strict=True)))}"
        columns.append(
            Column(name, title, "ratio", "paired median over dense; zeros: its fastest backend")
        )
    silent = own[~own["uses_zeros"]]
    words = tuple(f"{regime(row)}: {NO_ZEROS}." for row in records(silent.drop_duplicates(REGIME)))
    if not columns and len(silent):
        names = " and ".join(sorted(silent["backend"].unique()))
        frame["measured"] = ["" if dense else NO_ZEROS for dense in frame["is_dense"]]
        columns.append(Column("measured", f"measured speedup, backend {names}"))
    return tuple(columns), words


def _speeds(part: pd.DataFrame) -> Iterator[tuple[str, float, float, float, float]]:
    for row in records(part):
        yield (
            row["method"],
            row["sparsity"],
            row["speedup"],
            row["speedup_low"],
            row["speedup_high"],
        )


def _verdict(row: Mapping[str, Any]) -> str:
    if row["is_dense"]:
        return "reference"
    is_known = math.isfinite(row["mor"])
    words = [row["verdict"] or ("not decided" if is_known else "")]
    if row["probe_dependent"] is True:
        words.append("probe-dependent")
    return "; ".join(word for word in words if word)


def _effects(frame: pd.DataFrame) -> list[str]:
    """`MDE 12 %` for every undecided row whose minimum detectable effect is known."""
    pairs = zip(frame["verdict"], frame["mde"], strict=True)
    return [
        f"MDE {100 * mde:.0f}\u00a0%" if word == "undecided" and math.isfinite(mde) else ""
        for word, mde in pairs
    ]


def _effect_note(frame: pd.DataFrame) -> tuple[str, ...]:
    if not frame["effect"].any():
        return ()
    note = "MDE: minimum detectable effect, the smallest true difference in relative error that "
    return (note + "this design finds with 80 % probability.",)


def _interval_remark(frame: pd.DataFrame) -> str:
    over = [text for text in dict.fromkeys(frame["interval_over"]) if text]
    if not over:
        return ""
    remark = f"Brackets: 95 % interval over {' and over '.join(over)}."
    if frame.loc[~frame["is_dense"], "conditional"].any():
        remark += " Conditional on one checkpoint per method."
    return remark


def _coverage_notes(frame: pd.DataFrame) -> Iterator[str]:
    """What is absent from some rows, said under the table."""
    for row in records(frame):
        label = row["method"] if row["is_dense"] else f"{row['method']} {100 * row['sparsity']:g} %"
        if row["left_out"]:
            yield f"{label}: left out for want of a dense error: {row['left_out']}."
        absent = [text for text in str(row["missing"]).split("; ") if text]
        if absent and not row["is_dense"]:
            shown = "; ".join(text.rpartition(": ")[2] for text in absent[:4])
            more = f"; and {len(absent) - 4} more" if len(absent) > 4 else ""
            yield f"{label}: compared on what is there; missing: {shown}{more}."


def _probe_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[c] for c in ("arm", "model", "recipe", "image_size", *CELL, "task"))


def _probe_dependent_tasks(tasks: pd.DataFrame) -> set[tuple[Any, ...]]:
    """Cells and tasks on which the two linear probes disagree in sign."""
    signs: dict[tuple[Any, ...], set[bool]] = {}
    for row in records(tasks):
        if row["mode"] in PROBES and row["r"] == row["r"] and row["r"] != 0:
            signs.setdefault(_probe_key(row), set()).add(row["r"] > 0)
    return {key for key, found in signs.items() if len(found) > 1}


def _marks(row: Mapping[str, Any], is_probe_dependent: bool) -> Iterator[str]:
    if row["few_dense_errors"] is True:
        yield f"few dense errors ({row['dense_errors']:.0f})"
    if is_probe_dependent and row["mode"] in PROBES:
        yield "probe-dependent"
    if row["worse_than_linear"] is True:
        yield "full worse than linear"

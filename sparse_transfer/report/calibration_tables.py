"""Calibration by method, from what was measured of each model: before a temperature and after."""

from __future__ import annotations

import pandas as pd

from sparse_transfer.report.cells import Column, Table, with_values
from sparse_transfer.report.tables import CELL, Group, mode_title
from sparse_transfer.statistics import t_interval

VALUES = (
    "ece",
    "log_loss",
    "brier",
    "temperature",
    "ece_calibrated",
    "log_loss_calibrated",
    "brier_calibrated",
)
CALIBRATION = (
    Column("mode_title", "mode", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity", choice=True),
    Column("ece", "ECE, %", "percent", "expected calibration error, 15 bins"),
    Column("ece_change", "ECE − dense, points", "change", "interval over upstream seeds"),
    Column("log_loss", "log-loss", "number", "nats"),
    Column("brier", "Brier", "number", "Σ (p − truth)², 0 to 2"),
    Column("temperature", "temperature", "number", "above 1: too sure of itself"),
    Column("ece_calibrated", "ECE after, %", "percent", "with the temperature"),
    Column("log_loss_calibrated", "log-loss after", "number"),
    Column("brier_calibrated", "Brier after", "number"),
    Column("n_tasks", "tasks", "count"),
    Column("n_seeds", "seeds", "count"),
)


def by_cell(group: Group, frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the tasks of a group, by method and sparsity; upstream seeds weigh alike.

    Returns:
        columns of CALIBRATION and `ece_change_low`, `ece_change_high` (95 % t-interval over the
        upstream seeds that dense has, too), for the cells that have an ECE.
    """
    rows = group.of(frame)
    present = [name for name in VALUES if name in rows and rows[name].notna().any()]
    if "ece" not in present:
        return pd.DataFrame()
    by_task = rows.groupby([*CELL, "upstream_seed", "task"])[present].mean().reset_index()
    dense = by_task[by_task["method"] == "dense"].set_index(["upstream_seed", "task"])["ece"]
    made = []
    for cell, own in by_task.groupby(CELL):
        method, sparsity = cell if isinstance(cell, tuple) else (cell, 0.0)
        row = {
            "mode": group.mode,
            "mode_title": mode_title(group.mode),
            "method": method,
            "sparsity": sparsity,
            # the mean of a few tasks is not that of all: no temperature, no mean of it
            **{name: own[name].mean(skipna=False) for name in present},
            "n_tasks": own["task"].nunique(),
            "n_seeds": own["upstream_seed"].nunique(),
        }
        if method != "dense":
            paired = own.set_index(["upstream_seed", "task"])["ece"] - dense
            change = t_interval(paired.dropna().groupby("upstream_seed").mean())
            row |= {"ece_change": change.estimate}
            row |= {"ece_change_low": change.low, "ece_change_high": change.high}
        made.append(row)
    return pd.DataFrame(made).sort_values(["sparsity", "method"], kind="stable")


def calibration_table(
    rows: pd.DataFrame, reasons: tuple[str, ...], *, name: str, title: str, held_fixed: str
) -> Table:
    """Rows of `by_cell`, of one or several groups.

    Args:
        reasons: why some models have no temperature, one sentence each.
    """
    notes = [
        "Means over tasks. ECE counts bins of confidence and is biased upwards on small test sets; "
        "compare it within a row of tasks, not between studies."
    ]
    if "temperature" in rows:
        notes.append(
            "Temperature: one number that divides all logits, of least log-loss on held-out "
            "training images; for linear probes on the held-out share of a second head that is "
            "trained without it. It changes no prediction."
        )
    notes += [f"No temperature: {reason}" for reason in reasons]
    columns = with_values(rows, CALIBRATION)
    return Table(f"calibration-{name}", title, rows, columns, "", tuple(notes), held_fixed)

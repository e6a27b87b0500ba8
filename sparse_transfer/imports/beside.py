"""Results of one's own beside imported ones: one ranking where the dense models agree.

The rule is `statistics.drift`. Where it holds for a mode, the imported rows enter the group of
one's own; every sparse model is still compared with the dense model of its own side, as pairs are
made by upstream seed and the imported checkpoints get a seed of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sparse_transfer.imports.results import align_sparsities
from sparse_transfer.statistics import dense_drift, may_share_ranking
from sparse_transfer.statistics.cells import is_dense
from sparse_transfer.statistics.drift import OUTSIDE

MARK = " (imported)"  # after the names of imported methods: an own STR is not the study's


@dataclass(frozen=True)
class Beside:
    """Both kinds of results in one frame.

    Attributes:
        frame: results frame; imported methods end in MARK, and stand in the arm of the own results
            where they share a ranking, else in an arm of their own.
        drift: one row per mode and task: mode, task, own_dense, published_dense, difference,
            verdict; tasks that only one side has are there too, without numbers.
        drifted: the modes that share no ranking.
    """

    frame: pd.DataFrame
    drift: pd.DataFrame
    drifted: list[str]


def join(own: pd.DataFrame, imported: pd.DataFrame, name: str, absent: Mapping[str, str]) -> Beside:
    """Put one's own results beside an imported set.

    Imported rows are kept on the tasks that both have, so that all means are over the same tasks.

    Args:
        own: results frame of one arm; its models bear the names of the imported architectures.
        imported: complete rows of an imported set (`coverage.complete`).
        name: of the set.
        absent: imported tasks that were not run here → why.
    """
    modes = [mode for mode in dict.fromkeys(imported["mode"]) if mode in set(own["mode"])]
    imported = imported[imported["mode"].isin(modes) & imported["model"].isin(own["model"])]
    table = dense_drift(own, imported)
    own = _aligned(own, imported)
    parts, rows, drifted = [own[~own["mode"].isin(modes)]], [], []
    for mode in modes:
        checks = table[table["mode"] == mode]
        part = imported[imported["mode"] == mode]
        rows += _drift_rows(checks, part, own, mode, absent)
        mine = own[own["mode"] == mode]
        part = part[part["task"].isin(mine["task"])]
        if may_share_ranking(checks):
            shared = mine["task"].isin(checks["task"])
            mine = mine.assign(
                arm=mine["arm"].where(shared, f"{mine['arm'].iloc[0]}: not imported")
            )
            part = _entered(part[part["task"].isin(checks["task"])], mine[shared])
        else:
            drifted.append(mode)
            part = part.assign(arm=f"{name}{MARK}: {OUTSIDE}")
        has_mark = ~is_dense(part)
        part = part.assign(method=part["method"].where(~has_mark, part["method"] + MARK))
        parts += [mine, part]
    return Beside(pd.concat(parts, ignore_index=True), pd.DataFrame(rows), drifted)


def _aligned(own: pd.DataFrame, imported: pd.DataFrame) -> pd.DataFrame:
    """Measured sparsities at the nominal levels of the set, which are roundings themselves."""
    levels = sorted(set(imported["sparsity"]) - {0.0})
    return align_sparsities(own, levels) if levels else own


def _entered(part: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """Imported rows in the group of one's own rows."""
    first = own.iloc[0]
    splits = dict(zip(own["task"], own["split_hash"], strict=True))
    return part.assign(
        arm=first["arm"],
        recipe=first["recipe"],
        split_hash=part["task"].map(splits),
        upstream_seed=int(own["upstream_seed"].fillna(0).max()) + 1,
    )


def _drift_rows(
    checks: pd.DataFrame,
    imported: pd.DataFrame,
    own: pd.DataFrame,
    mode: str,
    absent: Mapping[str, str],
) -> list[dict[str, Any]]:
    shown = ["mode", "task", "own_dense", "published_dense", "difference", "verdict"]
    rows: list[dict[str, Any]] = [
        {str(key): value for key, value in row.items()} for row in checks[shown].to_dict("records")
    ]
    seen = set(checks["task"])
    mine, theirs = (frame[is_dense(frame) & (frame["mode"] == mode)] for frame in (own, imported))
    for task in sorted(set(theirs["task"]) - seen):
        reason = absent.get(task) or (
            "run here under another profile or size"
            if task in set(mine["task"])
            else "no own dense result"
        )
        value = float(theirs.loc[theirs["task"] == task, "value"].mean())
        rows.append({"mode": mode, "task": task, "published_dense": value, "verdict": reason})
    for task in sorted(set(mine["task"]) - set(theirs["task"]) - seen):
        value = float(mine.loc[mine["task"] == task, "value"].mean())
        rows.append({"mode": mode, "task": task, "own_dense": value, "verdict": "not imported"})
    return rows

"""Error beside cost for everything in an arm, smaller dense models included; what is off the front.

A point is a model, method and sparsity under one mode. Points are compared only where they have the
same tasks. All models of an arm stand together: whether a smaller dense model would have done as
well is the question that zeros must answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd

from sparse_transfer.report.cells import records
from sparse_transfer.report.cost_figures import point_name
from sparse_transfer.report.material import Material
from sparse_transfer.statistics import GROUP
from sparse_transfer.statistics.fronts import Point, at_cost, beaten_by

POINT = ["model", "method", "sparsity"]
ACROSS = [name for name in GROUP if name not in ("arm", "model")]
LEVELS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.035, 0.025, 0.018, 0.012)
MOST_LEVELS = 5


@dataclass(frozen=True)
class Points:
    """The points of one arm under one mode.

    Attributes:
        arm: the arm; title: the mode in words; name: for files.
        main: the first upstream model of the arm.
        frame: model, method, sparsity, error (mean over tasks), n_tasks, mac_ratio, macs (per
            image; NaN where unknown).
        left_out: points that lack tasks of the others.
    """

    arm: str
    title: str
    name: str
    main: str
    frame: pd.DataFrame
    left_out: tuple[str, ...]

    @property
    def by_macs(self) -> pd.DataFrame:
        """The points with `cost`: MACs with zeros skipped over those of the dense main model.

        Without absolute MACs only the main model's own points, whose share is known.
        """
        own = self.frame
        dense = own[(own["model"] == self.main) & own["method"].eq("dense")]["macs"]
        if own["macs"].notna().all() and len(dense) == 1:
            made = own.assign(cost=own["macs"] / dense.iloc[0])
        else:
            made = own[own["model"] == self.main]
            made = made.assign(cost=made["mac_ratio"].where(made["method"].ne("dense"), 1.0))
        return made[made["cost"] > 0]


def points(material: Material, arm: str) -> Iterator[Points]:
    """The points of an arm, mode by mode; the second linear probe is left out beside the first."""
    if material.comparison is None:
        return
    methods = material.comparison.methods
    own = methods[(methods["arm"] == arm) & methods["mean_value"].notna()]
    modes = set(own["mode"])
    left_out = {"upstream"} | ({"linear-lbfgs"} if "linear-sgd" in modes else set())
    own = own[~own["mode"].isin(left_out if modes - left_out else set())]
    found = own.merge(_covered(material, arm), on=[*ACROSS, *POINT], how="left")
    titles = {_key(group): group.title for group in material.groups if group.arm == arm}
    main = next(model for name, model in material.places if name == arm)
    order = list(titles)
    parts = [
        (cast("tuple[Any, ...]", key), part) for key, part in found.groupby(ACROSS, sort=False)
    ]
    for key, part in sorted(parts, key=lambda item: order.index(item[0])):
        most = max(part["covers"], key=len)
        fits = part["covers"] == most
        frame = part[fits].assign(error=1 - part["mean_value"])
        rank = frame["model"].ne(main)
        frame = frame.assign(_other=rank).sort_values(["_other", *POINT], kind="stable")
        absent = tuple(point_name(row, main) for row in records(part[~fits]))
        columns = [*POINT, "error", "n_tasks", "mac_ratio", "macs"]
        name = f"{arm} {titles[key]}" if len(material.places) > 1 else titles[key]
        yield Points(arm, titles[key], name, main, frame[columns].reset_index(drop=True), absent)


def judged(frame: pd.DataFrame, main: str, *, saves: str) -> pd.DataFrame:
    """The points with `front`: yes, or which point is nowhere worse, smaller dense models first.

    Beside it, as booleans: `beaten` by anything, and `beaten_by_dense`.

    Args:
        frame: model, method, sparsity, cost, error.
        main: the arm's first model, which is not named.
        saves: what a rival does at lower cost, with a place for the share: `needs {} fewer MACs`.
    """
    rows = records(frame)
    places: list[Point] = [(row["cost"], row["error"]) for row in rows]
    is_dense = [row["sparsity"] == 0 for row in rows]
    words, by_dense = [], []
    for place, row in enumerate(rows):
        kept = [n for n in range(len(rows)) if is_dense[n] or n == place]
        among = beaten_by([places[n] for n in kept], kept.index(place))
        by_dense.append(among is not None)
        rival = kept[among] if among is not None else beaten_by(places, place)
        words.append("yes" if rival is None else f"no: {_better(rows[rival], row, main, saves)}")
    beaten = [word != "yes" for word in words]
    return frame.assign(front=words, beaten=beaten, beaten_by_dense=by_dense)


def equal_cost(frame: pd.DataFrame, main: str) -> tuple[pd.DataFrame, list[str]]:
    """The error of every method at shares of MACs that at least two of them reach.

    Args:
        frame: model, method, sparsity, cost (share of dense), error.
        main: the arm's first model, which is not named.

    Returns:
        One row per share, with the columns share, what (a smaller dense model whose MACs they are,
        or ""), dense_error (that model's), and one column per method, NaN outside its own points;
        and the names of the method columns.
    """
    curves: dict[str, list[Point]] = {}
    for (model, method), part in frame[frame["sparsity"] > 0].groupby(["model", "method"]):
        if part["cost"].nunique() > 1:
            label = str(method) if model == main else f"{model} {method}"
            curves[label] = list(part.groupby("cost")["error"].min().items())  # pyright: ignore
    rivals = frame[(frame["sparsity"] == 0) & (frame["cost"] < 1)]
    wanted = [(float(level), "", float("nan")) for level in LEVELS]
    wanted += [
        (row["cost"], point_name(row, main), row["error"])
        for row in records(rivals.sort_values("cost", ascending=False))
    ]
    rows = []
    for share, what, error in sorted(wanted, reverse=True):
        values = {name: at_cost(share, curve) for name, curve in curves.items()}
        known = sum(value == value for value in values.values())
        if known >= (1 if what else 2):
            rows.append({"share": share, "what": what, "dense_error": error, **values})
    made = pd.DataFrame(rows)
    if len(made):
        is_round = made["what"].eq("")
        kept = made[is_round].index
        step = -(-len(kept) // MOST_LEVELS) or 1
        made = made[~is_round | made.index.isin(kept[::step])]
    return made, list(curves)


def _covered(material: Material, arm: str) -> pd.DataFrame:
    """The tasks of every point, and its mean MACs per image."""
    assert material.comparison is not None
    tasks = material.comparison.tasks
    tasks = tasks[tasks["arm"] == arm]
    key = [*ACROSS, *POINT]
    named = tasks.assign(split=tasks["task"].astype(str) + " " + tasks["split_hash"].astype(str))
    covers = named.groupby(key)["split"].agg(frozenset).rename("covers")
    own = material.frame[material.frame["arm"] == arm]
    macs = own.groupby(key)["macs"].mean()
    return pd.concat([covers, macs], axis=1).reset_index()


def _key(group: Any) -> tuple[Any, ...]:
    return tuple(getattr(group, name) for name in ACROSS)


def _better(rival: Mapping[str, Any], row: Mapping[str, Any], main: str, saves: str) -> str:
    """`tiny_net dense needs 17 % fewer MACs and errs less (11.9 % against 12.3 %)`."""
    less = 1 - rival["cost"] / row["cost"]
    cheaper = saves.format(f"{100 * less:.2g} %") if less >= 0.0005 else "costs no more"
    errors = f"{100 * rival['error']:.1f} % against {100 * row['error']:.1f} %"
    errs = "errs less" if rival["error"] < row["error"] else "errs no more"
    return f"{point_name(rival, main)} {cheaper} and {errs} ({errors})"

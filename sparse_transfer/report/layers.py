"""What is left inside the networks: weights kept and dead channels, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import pandas as pd

from sparse_transfer.report import cells
from sparse_transfer.report.canvas import Drawing, percent
from sparse_transfer.report.cells import Column, Table, with_values
from sparse_transfer.report.colours import Looks
from sparse_transfer.report.figures import layer_lines
from sparse_transfer.store import slug

BY = ["arm", "model", "method", "sparsity"]
COLUMNS = (
    Column("model", "model", choice=True),
    Column("method", "method", choice=True),
    Column("sparsity", "sparsity, %", "sparsity"),
    Column("layers", "layers", "count"),
    Column("kept", "weights kept, %", "percent", "over all layers"),
    Column("least", "sparsest layer keeps, %", "percent"),
    Column("least_layer", "sparsest layer"),
    Column("dead_channels", "dead channels", "count", "output channels of zeros only"),
    Column("dead", "dead channels, %", "percent", "of all output channels of these convolutions"),
    Column("dead_mean", "mean of layers, %", "percent", "dead share, every convolution alike"),
    Column("dead_weighted", "weighted mean, %", "percent", "every convolution by its weights"),
    Column("seeds", "seeds", "count"),
)


def by_layer(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per arm, model, method, sparsity and layer, averaged over upstream seeds.

    Args:
        rows: arm, model, method, sparsity, upstream_seed, layer, density (fraction), weights,
            channels, dead_channels, in the order of the layers. Dense models are left out.
    """
    frame = pd.DataFrame([dict(row) for row in rows])
    for name in ("weights", "channels", "dead_channels"):
        if name not in frame:
            frame[name] = float("nan")
    pruned = frame.groupby(BY)["density"].transform("min") < 1
    frame = frame[pruned].copy()
    if frame.empty:
        return frame
    frame["place"] = frame.groupby([*BY, "upstream_seed"], sort=False).cumcount()
    means = {name: (name, "mean") for name in ("density", "weights", "channels", "dead_channels")}
    made = (
        frame.groupby([*BY, "place", "layer"], sort=False)
        .agg(**means, seeds=("upstream_seed", "nunique"))
        .reset_index()
    )
    made["dead"] = made["dead_channels"] / made["channels"]
    return made


def drawings(layers: pd.DataFrame, looks: Looks, *, arm: str) -> tuple[Drawing, ...]:
    """For every model and sparsity of an arm: weights kept, and dead channels where any is."""
    made = []
    part = layers[layers["arm"] == arm]
    for key, some in part.groupby(["model", "sparsity"], sort=True):
        model, sparsity = cast("tuple[str, float]", key)
        where = f"{model}, {percent(sparsity)} sparse"
        seeds = int(some["seeds"].max())
        over = f"mean of {seeds} upstream seeds" if seeds > 1 else "one upstream seed"
        stem = slug(arm, model, f"{100 * sparsity:.4g}")
        made.append(
            layer_lines(
                some,
                looks,
                name=f"density-{stem}",
                title=where,
                caption=f"Share of each layer's weights that are not zero; {over}.",
                column="density",
                what="weights kept",
            )
        )
        if (some["dead"] > 0).any():
            made.append(
                layer_lines(
                    some,
                    looks,
                    name=f"dead-{stem}",
                    title=where,
                    caption=f"Output channels whose weights are all zero; {over}.",
                    column="dead",
                    what="dead channels",
                )
            )
    return tuple(made)


def table(layers: pd.DataFrame, *, arm: str) -> Table:
    """Totals over layers, one row per model, method and sparsity."""
    rows = []
    for key, part in layers[layers["arm"] == arm].groupby(BY[1:], sort=False):
        least = min(cells.records(part), key=lambda layer: layer["density"])
        weights, channels = part["weights"].sum(), part["channels"].sum()
        row: dict[str, Any] = dict(zip(BY[1:], key, strict=True))
        row |= {"layers": len(part), "seeds": int(part["seeds"].max())}
        row |= {"least": least["density"], "least_layer": least["layer"]}
        if weights:
            row["kept"] = (part["weights"] * part["density"]).sum() / weights
        if channels:
            row["dead_channels"] = part["dead_channels"].sum()
            row["dead"] = row["dead_channels"] / channels
            convolutions = part[part["dead"].notna()]
            shares, sizes = convolutions["dead"], convolutions["weights"]
            row["dead_mean"] = shares.mean()
            if sizes.sum() > 0:
                row["dead_weighted"] = (shares * sizes).sum() / sizes.sum()
        rows.append(row)
    frame = pd.DataFrame(rows).sort_values(["model", "sparsity", "method"])
    columns = with_values(frame, COLUMNS)
    if frame["model"].nunique() == 1:
        columns = tuple(column for column in columns if column.key != "model")
    note = (
        "A dead channel is an output channel all of whose weights are zero, counted over the "
        "convolutions that were pruned (not the classifier, nor what was kept dense). The study "
        "does not say how it averages, so there are three: all channels together, the mean of "
        "layers, and their mean weighted by weights."
    )
    return Table(f"layers-{slug(arm)}", "Weights and channels", frame, columns, "", (note,))

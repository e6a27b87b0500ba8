"""Whether results of one's own may be ranked together with published ones.

Published numbers come from other code, other copies of the data and other library versions. Only
the dense model shows what that does: it was not pruned by either side. So both kinds share a
ranking only where one's own dense model, run under the same profile, lies within one point of the
published dense model on every task that both have.
"""

from __future__ import annotations

import pandas as pd

from sparse_transfer.statistics.cells import is_dense

TOLERANCE = 0.01  # of accuracy: one point
ROUNDING = 1e-9  # .76 − .75 is a little more than .01 in floating point
PLACE = ["model", "mode", "profile", "image_size"]

INSIDE = "within one point"
OUTSIDE = "protocol drift"
OTHER_METRIC = "another metric"


def dense_drift(own: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """The dense models of two results frames, task by task.

    Args:
        own, published: results frames (see `compare`); the dense rows are read, seeds averaged.

    Returns:
        One row per architecture, mode, profile, image size and task that both frames have a dense
        result of: the columns of PLACE, task, own_dense, published_dense (accuracies in [0, 1]),
        difference (own − published), verdict (INSIDE, OUTSIDE or OTHER_METRIC). Empty where they
        share none: an own run under another profile has nothing to be held against.
    """
    both = _dense_means(own).join(_dense_means(published), how="inner", rsuffix="_published")
    both = both.reset_index()
    table = both[[*PLACE, "task"]].copy()
    table["own_dense"], table["published_dense"] = both["value"], both["value_published"]
    table["difference"] = table["own_dense"] - table["published_dense"]
    inside = table["difference"].abs() <= TOLERANCE + ROUNDING
    table["verdict"] = inside.map({True: INSIDE, False: OUTSIDE})
    table.loc[both["metric"] != both["metric_published"], "verdict"] = OTHER_METRIC
    return table


def may_share_ranking(table: pd.DataFrame) -> bool:
    """Whether every task of a `dense_drift` table is inside, and there is at least one."""
    return len(table) > 0 and bool((table["verdict"] == INSIDE).all())


def _dense_means(frame: pd.DataFrame) -> pd.DataFrame:
    dense = frame[is_dense(frame)]
    return dense.groupby([*PLACE, "task"]).agg(value=("value", "mean"), metric=("metric", "first"))

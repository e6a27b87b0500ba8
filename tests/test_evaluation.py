"""Scoring: predictions on file, metrics with versions, outputs that are no numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparse_transfer import evaluation, plugins
from sparse_transfer.errors import TrainingDiverged
from sparse_transfer.predictions import Predictions

LOGITS = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]])


def row(out: Path, logits: np.ndarray = LOGITS, write: bool = True) -> dict[str, Any]:
    return evaluation.row(
        out, "scored", ids=np.array(["a", "b", "c"]), labels=np.array([0, 1, 1]), logits=logits,
        classes=2, write=write, task="made", mode="full",
    )  # fmt: skip


def test_a_row_holds_every_metric_of_what_it_stored(tmp_path: Path):
    found = row(tmp_path)
    assert found["n_test"] == 3 and found["classes"] == 2 and found["task"] == "made"
    stored = Predictions.load(tmp_path / found["predictions"])
    assert stored.example.tolist() == ["a", "b", "c"] and stored.prediction.tolist() == [0, 1, 0]
    assert set(found["metrics"]) == set(plugins.names("metric"))
    assert found["metrics"]["top1"] == {"value": pytest.approx(2 / 3), "version": 1}
    assert found["metrics"]["mean_per_class"]["value"] == pytest.approx(0.75)


def test_only_the_process_that_writes_leaves_a_file(tmp_path: Path):
    assert row(tmp_path, write=False)["metrics"] == row(tmp_path / "other")["metrics"]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_no_numbers_are_refused_and_not_counted(tmp_path: Path, value: float):
    logits = LOGITS.copy()
    logits[1, 0] = value
    with pytest.raises(TrainingDiverged, match="1 of 3"):
        row(tmp_path, logits)
    assert list(tmp_path.iterdir()) == []


def test_outdated_is_another_version_or_a_missing_metric(tmp_path: Path):
    metrics = row(tmp_path)["metrics"]
    assert not evaluation.outdated(metrics)
    assert evaluation.outdated({k: v for k, v in metrics.items() if k != "ece"})
    assert evaluation.outdated(metrics | {"ece": {"value": 0.1, "version": 0}})

"""Score a model on a test part: predictions to a file, metrics of them to a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sparse_transfer import calibration, plugins
from sparse_transfer.errors import TrainingDiverged
from sparse_transfer.predictions import Predictions


def measure(predictions: Predictions, classes: int) -> dict[str, dict[str, Any]]:
    """Every metric's value with the version that computed it."""
    measured = {}
    for name in plugins.names("metric"):
        metric = plugins.load("metric", name)
        measured[name] = {"value": metric.compute(predictions, classes), "version": metric.version}
    return measured


def outdated(metrics: dict[str, dict[str, Any]]) -> bool:
    """Whether a stored row lacks a metric or holds one of another version."""
    return any(
        metrics.get(name, {}).get("version") != plugins.load("metric", name).version
        for name in plugins.names("metric")
    )


def row(
    out: Path,
    name: str,
    *,
    ids: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    classes: int,
    write: bool,
    temperature: calibration.Temperature | str | None = None,
    **identity: Any,
) -> dict[str, Any]:
    """Store the predictions of one evaluation and describe it for `result.json`.

    Args:
        out: the run's folder.
        name: of the predictions file.
        ids: (n,) example ids; labels: (n,) classes; logits: (n, classes).
        classes: number of classes of the task.
        write: whether this process stores the file (the main process does).
        temperature: fitted on held-out training images; or why none could be; None: not asked for.
        identity: mode, task, transfer_seed and whatever else tells rows apart.

    Raises:
        TrainingDiverged: a logit is not a finite number, so its prediction would mean nothing.
    """
    if not np.isfinite(logits).all():
        raise TrainingDiverged(
            "The outputs of the trained model are not finite numbers.",
            f"That is so for {int((~np.isfinite(logits)).any(axis=1).sum())} of {len(logits)} "
            "images.",
            "Lower the learning rate, add warm-up steps, or set clip_norm.",
        )
    predictions = Predictions.from_logits(ids, labels, logits)
    relative = f"predictions/{name}.parquet"
    if write:
        predictions.save(out / relative)
    return {
        **identity,
        "classes": classes,
        "n_test": len(predictions),
        "metrics": measure(predictions, classes),
        # not a metric: it needs all probabilities, which are stored where classes are few
        "brier": calibration.scores(logits, labels).brier,
        **_calibrated(logits, labels, temperature),
        "predictions": relative,
    }


def _calibrated(
    logits: np.ndarray, labels: np.ndarray, temperature: calibration.Temperature | str | None
) -> dict[str, Any]:
    """The scores under a fitted temperature, or why there is none."""
    if temperature is None:
        return {}
    if isinstance(temperature, str):
        return {"not_calibrated": temperature}
    after = calibration.scores(logits, labels, temperature.value)
    return {
        "temperature": temperature.value,
        "temperature_images": temperature.images,
        "temperature_at_limit": temperature.at_limit,
        "ece_calibrated": after.ece,
        "log_loss_calibrated": after.log_loss,
        "brier_calibrated": after.brier,
    }

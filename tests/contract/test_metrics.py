"""What every metric promises, whoever wrote it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sparse_transfer import plugins
from sparse_transfer.errors import UserError
from sparse_transfer.metrics import Metric
from sparse_transfer.predictions import Predictions

CLASSES = 5
METRICS = plugins.names("metric")


def predictions(strength: float, n: int = 200) -> Predictions:
    """A model whose logits point to the true class with a strength; 0 is a guess."""
    generator = np.random.default_rng(7)
    labels = generator.integers(0, CLASSES, n)
    noise = generator.normal(size=(n, CLASSES))
    logits = noise + strength * (np.arange(CLASSES) == labels[:, None])
    return Predictions.from_logits(np.arange(n).astype(str), labels, logits)


def test_the_metrics_of_the_contract_exist():
    assert {"top1", "mean_per_class", "log_loss", "ece"} <= set(METRICS)


@pytest.mark.parametrize("name", METRICS)
class TestMetric:
    def test_it_is_a_metric_that_knows_its_name(self, name: str):
        metric = plugins.load("metric", name)
        assert isinstance(metric, Metric)
        assert metric.name == name
        assert metric.version >= 1
        assert plugins.summary("metric", name)

    def test_a_perfect_model_is_at_least_as_good_as_a_guess(self, name: str):
        metric = plugins.load("metric", name)
        sign = 1 if metric.higher_is_better else -1
        perfect = metric.compute(predictions(100.0), CLASSES)
        assert sign * perfect > sign * metric.compute(predictions(0.0), CLASSES)

    def test_the_order_of_examples_does_not_matter(self, name: str):
        metric = plugins.load("metric", name)
        made = predictions(1.0)
        order = np.random.default_rng(1).permutation(len(made))
        fields = {
            field.name: getattr(made, field.name)[order] for field in dataclasses.fields(made)
        }
        shuffled = metric.compute(Predictions(**fields), CLASSES)
        assert shuffled == pytest.approx(metric.compute(made, CLASSES), rel=1e-12)

    def test_it_is_the_same_from_a_stored_file_without_logits(self, name: str, tmp_path: Path):
        metric = plugins.load("metric", name)
        made = dataclasses.replace(predictions(1.0), logits=None)
        made.save(tmp_path / "p.parquet")
        stored = metric.compute(Predictions.load(tmp_path / "p.parquet"), CLASSES)
        assert stored == metric.compute(made, CLASSES)

    def test_no_examples_and_foreign_labels_are_refused(self, name: str):
        metric = plugins.load("metric", name)
        with pytest.raises(UserError, match="not a single test example"):
            metric.compute(_first(predictions(1.0), 0), CLASSES)
        with pytest.raises(UserError, match="of 3 classes"):
            metric.compute(predictions(1.0), 3)


def _first(made: Predictions, n: int) -> Predictions:
    fields = {field.name: getattr(made, field.name)[:n] for field in dataclasses.fields(made)}
    return Predictions(**fields)

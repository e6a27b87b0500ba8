"""The paired bootstrap over examples against a plain one, a closed form, and bad input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparse_transfer.errors import UserError
from sparse_transfer.predictions import Predictions
from sparse_transfer.statistics import example_errors, examples, paired_bootstrap
from sparse_transfer.statistics.examples import resampled_errors

CLASSES = 4


def made(accuracy: float, seed: int, n: int = 400) -> Predictions:
    """Predictions on a test set that is the same for all seeds, with classes of unequal size."""
    labels = np.random.default_rng(99).choice(CLASSES, n, p=[0.55, 0.25, 0.15, 0.05])
    hardness = np.random.default_rng(98).random(n)  # shared by all models: errors are paired
    generator = np.random.default_rng(seed)
    right = 0.7 * hardness + 0.3 * generator.random(n) < accuracy
    wrong = (labels + generator.integers(1, CLASSES, n)) % CLASSES
    chosen = np.where(right, labels, wrong)
    logits = 3.0 * (np.arange(CLASSES) == chosen[:, None])
    return Predictions.from_logits(np.array([f"{i:04d}" for i in range(n)]), labels, logits)


DENSE = [made(0.80, seed) for seed in (1, 2)]
SPARSE = [made(0.72, seed) for seed in (3, 4, 5)]


def wrong(models: list[Predictions]) -> np.ndarray:
    return np.mean([model.prediction != model.label for model in models], axis=0)


def test_top1_agrees_with_resampling_examples_one_by_one():
    dense, sparse = wrong(DENSE), wrong(SPARSE)
    rows = np.random.default_rng(5).integers(0, len(dense), (20_000, len(dense)))
    plain = sparse[rows].mean(axis=1) / dense[rows].mean(axis=1) - 1
    found = paired_bootstrap(DENSE, SPARSE, metric="top1", resamples=20_000)
    assert found.estimate == pytest.approx(sparse.mean() / dense.mean() - 1)
    assert found.replicates.std() == pytest.approx(plain.std(), rel=0.03)
    expected = np.quantile(plain, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(expected, abs=0.05 * np.ptp(expected))


def test_mean_per_class_agrees_with_resampling_within_classes():
    dense, sparse, label = wrong(DENSE), wrong(SPARSE), DENSE[0].label
    generator = np.random.default_rng(6)
    sums = np.zeros((2, 20_000))
    for value in range(CLASSES):
        members = np.flatnonzero(label == value)
        rows = generator.choice(members, (20_000, len(members)))
        sums += dense[rows].mean(axis=1), sparse[rows].mean(axis=1)
    plain = sums[1] / sums[0] - 1
    found = paired_bootstrap(DENSE, SPARSE, metric="mean_per_class", resamples=20_000)
    by_class = [
        np.mean([errors[label == value].mean() for value in range(CLASSES)])
        for errors in (dense, sparse)
    ]
    assert found.estimate == pytest.approx(by_class[1] / by_class[0] - 1)
    expected = np.quantile(plain, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(expected, abs=0.05 * np.ptp(expected))


def test_agrees_with_the_delta_method():
    """sd of a ratio of means, with the covariance of paired errors."""
    dense, sparse = made(0.7, 1, n=20_000), made(0.6, 2, n=20_000)
    d, s = wrong([dense]), wrong([sparse])
    residual = (s - s.mean() / d.mean() * d) / d.mean()
    expected = residual.std() / np.sqrt(len(d))
    found = paired_bootstrap([dense], [sparse], metric="top1", resamples=5000)
    assert found.replicates.std() == pytest.approx(expected, rel=0.05)


def test_pairing_narrows_the_interval():
    shuffled = [_reordered(model, seed=0, keep_ids=True) for model in SPARSE]
    paired = paired_bootstrap(DENSE, SPARSE, metric="top1")
    unpaired = paired_bootstrap(DENSE, shuffled, metric="top1")
    assert paired.estimate == pytest.approx(unpaired.estimate)
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


def test_examples_are_matched_by_id_not_by_position():
    moved = [_reordered(model, seed=1) for model in SPARSE]
    one = paired_bootstrap(DENSE, SPARSE, metric="mean_per_class", seed=4)
    two = paired_bootstrap(DENSE, moved, metric="mean_per_class", seed=4)
    assert one.low == two.low
    assert np.array_equal(one.replicates, two.replicates)


def test_a_model_against_itself_has_no_spread():
    found = paired_bootstrap(DENSE, DENSE, metric="top1")
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_without_dense_errors_there_is_no_ratio():
    perfect = made(1.1, 0)
    assert not wrong([perfect]).any()
    found = paired_bootstrap([perfect], SPARSE, metric="top1")
    assert np.isnan([found.estimate, found.low, found.high]).all()


def test_with_one_dense_error_the_upper_limit_is_infinite():
    perfect = made(1.1, 0)
    prediction = perfect.prediction.copy()
    prediction[0] = (prediction[0] + 1) % CLASSES
    found = paired_bootstrap(
        [dataclasses.replace(perfect, prediction=prediction)], SPARSE, metric="top1"
    )
    assert found.high == float("inf")
    assert np.isfinite(found.low)


def test_weights_average_models():
    found = example_errors(SPARSE, [1, 0, 0])
    assert np.array_equal(found.error, wrong(SPARSE[:1]))


@pytest.mark.parametrize("metric", ["top1", "mean_per_class"])
def test_all_cells_are_scored_on_the_same_test_sets(metric):
    """Means, spreads and covariances are those of plain resampling, by formula."""
    label = DENSE[0].label
    error = np.stack([wrong(DENSE), wrong(SPARSE), wrong(SPARSE[:1]), 0.0 * label], axis=1)
    found = resampled_errors(label, error, metric=metric, resamples=40_000, seed=3)
    strata = [label == k for k in range(CLASSES)] if metric == "mean_per_class" else [label >= 0]
    expected = np.mean([error[rows].mean(axis=0) for rows in strata], axis=0)
    spread = sum(
        np.cov(error[rows].T, bias=True) / (rows.sum() * len(strata) ** 2) for rows in strata
    )
    assert found[0] == pytest.approx(expected)
    assert found[1:].mean(axis=0) == pytest.approx(expected, abs=4e-4)
    assert np.cov(found[1:].T) == pytest.approx(spread, rel=0.05)
    assert not found[:, 3].any()


def test_blocks_of_test_sets_are_of_no_consequence_to_their_number(monkeypatch):
    error = np.stack([wrong(DENSE), wrong(SPARSE)], axis=1)
    monkeypatch.setattr(examples, "_DRAWN_AT_ONCE", 1000)
    found = resampled_errors(DENSE[0].label, error, metric="top1", resamples=701)
    assert found.shape == (702, 2) and (found > 0).all()


def test_other_examples_are_refused():
    fewer = _first(SPARSE[0], 399)
    renamed = dataclasses.replace(SPARSE[0], example=np.char.add(SPARSE[0].example, "x"))
    relabelled = dataclasses.replace(SPARSE[0], label=(SPARSE[0].label + 1) % CLASSES)
    twice = dataclasses.replace(DENSE[0], example=np.full(400, "0000"))
    for model, reason in [
        (fewer, "400 examples, the other 399"),
        (renamed, "400 of 400 ids differ"),
        (relabelled, "label of example '0000' differs"),
    ]:
        with pytest.raises(UserError, match=reason):
            paired_bootstrap(DENSE, [model], metric="top1")
    with pytest.raises(UserError, match="twice"):
        paired_bootstrap([twice], SPARSE, metric="top1")


def _reordered(model: Predictions, *, seed: int, keep_ids: bool = False) -> Predictions:
    order = np.random.default_rng(seed).permutation(len(model))
    if keep_ids:  # errors move to other examples of the same class
        order = np.arange(len(model))
        for value in range(CLASSES):
            members = np.flatnonzero(model.label == value)
            order[members] = np.random.default_rng(seed).permutation(members)
    fields = {name: getattr(model, name)[order] for name in _names(model)}
    if keep_ids:
        fields["example"] = model.example
    return Predictions(**fields)


def _first(model: Predictions, n: int) -> Predictions:
    return Predictions(**{name: getattr(model, name)[:n] for name in _names(model)})


def _names(model: Predictions) -> list[str]:
    return [field.name for field in dataclasses.fields(model)]

"""Both linear probes against plain references, and what they do with awkward tasks."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sparse_transfer import probes
from sparse_transfer.config import LinearProfile
from sparse_transfer.errors import UserError
from sparse_transfer.seeds import derive

SHORT = LinearProfile(epochs=12, batch_size=16, lr=0.05, milestones=(4, 9))


def blobs(
    rows: int, features: int, classes: int, *, spread: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Features like those after a ReLU, with overlapping classes."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, features))
    y = np.arange(rows) % classes
    x = np.maximum(centres[y] + spread * generator.normal(size=(rows, features)), 0)
    return x.astype(np.float32), y.astype(np.int64)


def plain_head(
    x: np.ndarray, y: np.ndarray, classes: int, profile: LinearProfile, seed: int
) -> torch.nn.Linear:
    """The recipe as one would write it for one seed."""
    head = torch.nn.Linear(x.shape[1], classes)
    initial = probes.initial_head(seed, x.shape[1], classes)
    head.load_state_dict({"weight": initial[:-1].T, "bias": initial[-1]})
    optimizer = torch.optim.SGD(
        head.parameters(),
        lr=profile.lr,
        momentum=profile.momentum,
        weight_decay=profile.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, list(profile.milestones), profile.gamma
    )
    features, labels = torch.from_numpy(x), torch.from_numpy(y)
    for epoch in range(profile.epochs):
        for batch in probes.epoch_order(seed, epoch, len(x)).split(profile.batch_size):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(head(features[batch]), labels[batch])
            loss.backward()
            optimizer.step()
        schedule.step()
    return head


@pytest.mark.parametrize(
    ("rows", "features", "classes"),
    [
        pytest.param(90, 20, 5, id="more rows than features"),
        pytest.param(90, 200, 5, id="more features than rows"),
        pytest.param(90, 90, 2, id="as many"),
        pytest.param(10, 20, 3, id="less than one batch"),
        pytest.param(33, 8, 3, id="last batch of one"),
    ],
)
def test_sgd_agrees_with_a_plain_loop(rows: int, features: int, classes: int) -> None:
    x, y = blobs(rows, features, classes)
    test_x, _ = blobs(40, features, classes, seed=1)
    found = probes.sgd(x, y, test_x, classes, SHORT, [3, 81, 7])
    assert found.logits.shape == (3, 40, classes)
    assert found.logits.dtype == np.float32
    for i, seed in enumerate(found.seeds):
        head = plain_head(x, y, classes, SHORT, seed)
        with torch.no_grad():
            expected = head(torch.from_numpy(test_x)).numpy()
            loss = torch.nn.functional.cross_entropy(
                head(torch.from_numpy(x)), torch.from_numpy(y)
            ).item()
        np.testing.assert_allclose(found.logits[i], expected, rtol=0, atol=2e-5)
        assert found.train_loss[i] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("rows", [300, 40])
def test_the_paper_profile_agrees_over_all_its_epochs(rows: int) -> None:
    x, y = blobs(rows, 64, 4, spread=2.0)
    x *= 0.3
    head = plain_head(x, y, 4, LinearProfile(), seed=21)
    with torch.no_grad():
        expected = head(torch.from_numpy(x)).numpy()
    found = probes.sgd(x, y, x, 4, LinearProfile(), [21, 51])
    np.testing.assert_allclose(found.logits[0], expected, rtol=0, atol=5e-5)


def test_the_two_forms_of_the_iteration_are_the_same() -> None:
    x, y = blobs(60, 60, 4)
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    heads = torch.stack([torch.randn(60, 4, generator=torch.Generator().manual_seed(0))] * 2)
    # Strong decay, so that the share of the initial weights matters.
    profile = SHORT.model_copy(update={"weight_decay": 0.05})
    by_weights = probes._train_weights(x, y, heads.clone(), profile, [0, 1])
    by_rows = probes._train_by_rows(x, y, heads.clone(), profile, [0, 1])
    torch.testing.assert_close(by_rows, by_weights, rtol=0, atol=1e-5)
    assert (by_weights - heads).abs().max() > 0.1


def test_a_seed_does_not_depend_on_its_company() -> None:
    x, y = blobs(50, 10, 3)
    alone = probes.sgd(x, y, x, 3, SHORT, [5]).logits[0]
    together = probes.sgd(x, y, x, 3, SHORT, [1, 5, 2]).logits
    np.testing.assert_allclose(together[1], alone, atol=1e-5)
    assert np.abs(together[0] - alone).max() > 1e-3


def test_sgd_repeats_itself_exactly() -> None:
    x, y = blobs(50, 10, 3)
    first, second = (probes.sgd(x, y, x, 3, SHORT, [0, 1]).logits for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_initial_head_is_that_of_a_linear_layer() -> None:
    torch.manual_seed(derive(4, "probe-head"))
    layer = torch.nn.Linear(30, 7)
    head = probes.initial_head(4, 30, 7)
    torch.testing.assert_close(head[:-1].T, layer.weight.detach())
    torch.testing.assert_close(head[-1], layer.bias.detach())


def test_every_epoch_has_its_own_order_of_all_rows() -> None:
    orders = [probes.epoch_order(0, epoch, 20) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(20)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_the_learning_rate_drops_after_51_and_101_epochs() -> None:
    rates = [lr for lr, _ in probes._batches(LinearProfile(), [0], 64)]
    assert rates[:51] == [0.01] * 51
    np.testing.assert_allclose(rates[51:101], 1e-3)
    np.testing.assert_allclose(rates[101:], 1e-4)
    assert len(rates) == 150


@pytest.mark.parametrize("field", ["epochs", "batch_size", "lr", "momentum", "weight_decay"])
def test_every_number_of_the_recipe_counts(field: str) -> None:
    x, y = blobs(40, 10, 3)
    other = SHORT.model_copy(
        update={
            field: getattr(SHORT, field) * 0.5 if field in ("lr", "momentum", "weight_decay") else 8
        }
    )
    logits = [probes.sgd(x, y, x, 3, profile, [0]).logits for profile in (SHORT, other)]
    assert not np.allclose(*logits, atol=1e-5)


def plain_regression(
    x: np.ndarray, y: np.ndarray, test_x: np.ndarray, c: float
) -> tuple[np.ndarray, LogisticRegression]:
    scaler = StandardScaler().fit(x.astype(np.float64))
    model = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(x.astype(np.float64)), y)
    return model.decision_function(scaler.transform(test_x.astype(np.float64))), model


def test_lbfgs_agrees_with_scikit_learn() -> None:
    x, y = blobs(120, 12, 4, spread=3.0)
    test_x, _ = blobs(30, 12, 4, spread=3.0, seed=1)
    found = probes.lbfgs(x, y, test_x, 4, LinearProfile())
    is_held = probes.held_out(y, 0.2, 0)
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scaled = (x - mean) / std
    expected = {
        c: LogisticRegression(C=c, max_iter=1000)
        .fit(scaled[~is_held], y[~is_held])
        .score(scaled[is_held], y[is_held])
        for c in LinearProfile().lbfgs_c
    }
    assert found.validation == pytest.approx(expected, abs=1 / 24 + 1e-9)
    assert list(found.validation) == sorted(expected)
    assert found.validation_images == is_held.sum() == 24
    logits, _ = plain_regression(x, y, test_x, found.c)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-5)
    assert found.c == max(found.validation, key=lambda c: (found.validation[c], -c))
    assert found.notes == ()
    assert found.absent_classes == ()


def test_lbfgs_takes_the_smaller_c_on_ties() -> None:
    x, y = blobs(60, 10, 3, spread=0.1)
    found = probes.lbfgs(x, y, x, 3, LinearProfile(lbfgs_c=(10.0, 1.0, 100.0)))
    assert set(found.validation.values()) == {1.0}
    assert found.c == 1.0


def test_lbfgs_with_one_c_holds_nothing_out() -> None:
    x, y = blobs(60, 10, 3)
    found = probes.lbfgs(x, y, x, 3, LinearProfile(lbfgs_c=(0.5,)))
    assert (found.c, found.validation, found.validation_images) == (0.5, {}, 0)
    np.testing.assert_allclose(found.logits, plain_regression(x, y, x, 0.5)[0], rtol=1e-5)


def test_lbfgs_of_two_classes_has_two_columns() -> None:
    x, y = blobs(60, 10, 2, spread=3.0)
    found = probes.lbfgs(x, y, x, 2, LinearProfile(lbfgs_c=(0.1,)))
    decision, model = plain_regression(x, y, x, 0.1)
    probability = torch.softmax(torch.from_numpy(found.logits), 1)[:, 1].numpy()
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-decision)), atol=1e-6)
    assert (found.logits.argmax(1) == model.predict(StandardScaler().fit_transform(x))).all()


@pytest.mark.parametrize("present", [[1, 4], [0, 2, 3]])
def test_classes_that_train_lacks_get_finite_hopeless_logits(present: list[int]) -> None:
    x, compact = blobs(60, 10, len(present), spread=3.0)
    y = np.array(present)[compact]
    found = probes.lbfgs(x, y, x, 5, LinearProfile())
    absent = [k for k in range(5) if k not in present]
    assert found.absent_classes == tuple(absent)
    assert np.isfinite(found.logits.astype(np.float16)).all()
    gap = found.logits[:, present].min(1) - found.logits[:, absent].max(1)
    np.testing.assert_allclose(gap, probes.ABSENT, rtol=1e-5)


def test_constant_features_change_nothing() -> None:
    x, y = blobs(60, 10, 3, spread=2.0)
    wider = np.concatenate([x, np.full((60, 2), 7.25, np.float32)], axis=1)
    profile = LinearProfile(lbfgs_c=(0.1,))
    np.testing.assert_allclose(
        probes.lbfgs(wider, y, wider, 3, profile).logits,
        probes.lbfgs(x, y, x, 3, profile).logits,
        atol=1e-4,
    )


def test_a_solver_that_stops_early_is_noted_and_not_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = blobs(60, 10, 3, spread=3.0)
    fit = LogisticRegression.fit
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda self, *xy: fit(self.set_params(max_iter=2), *xy)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probes.lbfgs(x, y, x, 3, LinearProfile(lbfgs_c=(1.0, 10.0)))
    assert len(found.notes) == 3
    assert found.notes[0].startswith("C=1, 48 rows: lbfgs failed to converge")
    assert found.iterations == 2


def test_lbfgs_is_a_function_of_its_arguments() -> None:
    x, y = blobs(60, 10, 3, spread=3.0)
    results = [probes.lbfgs(x, y, x, 3, LinearProfile(), seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(results[0].logits, results[1].logits)
    assert results[0].validation == results[1].validation
    assert not (probes.held_out(y, 0.2, 0) == probes.held_out(y, 0.2, 1)).all()


@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=8).filter(lambda c: max(c) > 1),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_a_held_out_part_is_stratified(counts: list[int], share: float, seed: int) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    is_held = probes.held_out(y, share, seed)
    taken = np.bincount(y[is_held], minlength=len(counts))
    assert (taken < counts).all(), "every class keeps a row to fit"
    wanted = max(1, round(share * len(y)))
    assert taken.sum() == min(wanted, sum(counts) - len(counts))
    if max(counts) * wanted / len(y) <= min(counts) - 1:
        assert (np.abs(taken - np.array(counts) * wanted / len(y)) < 1).all()
    np.testing.assert_array_equal(is_held, probes.held_out(y, share, seed))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["training", "test"])
def test_features_that_are_not_finite_are_refused(value: float, part: str) -> None:
    x, y = blobs(20, 5, 2)
    broken = x.copy()
    broken[[3, 8], 1] = value
    train_x, test_x = (broken, x) if part == "training" else (x, broken)
    for probe in (
        lambda: probes.sgd(train_x, y, test_x, 2, SHORT, [0]),
        lambda: probes.lbfgs(train_x, y, test_x, 2, SHORT),
    ):
        with pytest.raises(UserError, match=f"not finite: 2 of 20 {part} rows") as error:
            probe()
        assert "row 3" in error.value.why


def test_tasks_that_no_probe_can_learn_are_refused() -> None:
    x, y = blobs(20, 5, 2)
    with pytest.raises(UserError, match="do not fit 1 classes"):
        probes.sgd(x, y, x, 1, SHORT, [0])
    with pytest.raises(UserError, match="at least two classes"):
        probes.lbfgs(x, np.zeros(20, int), x, 2, SHORT)
    with pytest.raises(UserError, match="held out"):
        probes.lbfgs(x, np.arange(20), x, 20, SHORT)
    with pytest.raises(UserError, match="training images"):
        probes.sgd(x[:0], y[:0], x, 2, SHORT, [0])
    with pytest.raises(ValueError, match="do not fit"):
        probes.sgd(x, y, x[:, :4], 2, SHORT, [0])
    with pytest.raises(ValueError, match="labels"):
        probes.lbfgs(x, y[:-1], x, 2, SHORT)

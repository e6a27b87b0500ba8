"""Stored predictions come back whole, and are read no further than they are used."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from sparse_transfer.errors import UserError
from sparse_transfer.predictions import Predictions

NAMES = [field.name for field in dataclasses.fields(Predictions)]


def made(seed: int = 0, classes: int = 7) -> Predictions:
    generator = np.random.default_rng(seed)
    ids = np.array([f"test/größe/{number}" for number in range(30)])
    return Predictions.from_logits(ids, np.arange(30) % classes, generator.normal(size=(30, 7)))


def test_every_column_comes_back(tmp_path):
    one = made()
    one.save(tmp_path / "p.parquet")
    stored = Predictions.load(tmp_path / "p.parquet")
    assert len(stored) == 30
    for name in NAMES:
        ours, theirs = getattr(one, name), getattr(stored, name)
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), name


def test_many_classes_have_no_logits(tmp_path):
    dataclasses.replace(made(), logits=None).save(tmp_path / "p.parquet")
    assert Predictions.load(tmp_path / "p.parquet").logits is None


def test_logits_too_large_for_half_precision_stay_finite(tmp_path):
    logits = np.array([[7e4, -1e5], [0.0, 1.0]])
    Predictions.from_logits(np.array(["a", "b"]), np.array([0, 1]), logits).save(tmp_path / "p")
    stored = Predictions.load(tmp_path / "p").logits
    assert stored is not None and np.array_equal(stored, logits.astype(np.float32))


def test_only_what_is_used_is_read(tmp_path):
    path = tmp_path / "p.parquet"
    made().save(path)
    stored = Predictions.load(path)
    assert np.array_equal(stored.top, made().top)
    path.unlink()
    assert np.array_equal(stored.prediction, made().prediction)  # was read at once
    assert np.array_equal(stored.top, made().top)  # was read before
    with pytest.raises(UserError, match="cannot be read"):
        _ = stored.logits
    with pytest.raises(AttributeError):
        _ = stored.no_such_column  # pyright: ignore


def test_files_of_one_test_set_share_their_ids(tmp_path):
    for seed in (0, 1):
        made(seed).save(tmp_path / f"{seed}.parquet")
    first, second = (Predictions.load(tmp_path / f"{seed}.parquet") for seed in (0, 1))
    assert first.example is second.example and not first.example.flags.writeable
    assert not np.array_equal(first.prediction, second.prediction)


def test_stored_predictions_can_be_replaced_in_part(tmp_path):
    made().save(tmp_path / "p.parquet")
    stored = Predictions.load(tmp_path / "p.parquet")
    changed = dataclasses.replace(stored, label=stored.label + 1)
    assert np.array_equal(changed.label, made().label + 1)
    assert np.array_equal(changed.top_log_prob, made().top_log_prob)


def test_files_that_are_no_predictions_are_refused(tmp_path):
    path = tmp_path / "p.parquet"
    made().save(path)
    pq.write_table(pq.read_table(path).drop_columns(["label"]), path)
    with pytest.raises(UserError, match="no column label"):
        Predictions.load(path)
    path.write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be read"):
        Predictions.load(path)
    with pytest.raises(UserError, match="cannot be read"):
        Predictions.load(tmp_path / "nowhere.parquet")

"""Few-shot draws: nested, balanced, frozen by their number, the same for every model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_transfer import config, data, plan, probes
from sparse_transfer.devices import accelerator
from sparse_transfer.errors import UserError
from sparse_transfer.stages import few_shot, frozen
from sparse_transfer.stages.context import Context

SIZE = config.Preprocess(image_size=16, crop="none")
REF = config.TaskRef(name="textures", train_images=60)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    shots=st.integers(1, 8),
    draw=st.integers(0, 20),
)
def test_draws_are_balanced_nested_and_repeatable(labels, shots, draw):
    y = np.array(labels)
    rows = few_shot.drawn(y, shots, draw)
    counts = np.bincount(y)
    assert np.array_equal(np.bincount(y[rows], minlength=len(counts)), np.minimum(counts, shots))
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(few_shot.drawn(y, 2 * shots, draw))
    assert np.array_equal(rows, few_shot.drawn(y, shots, draw))


def test_draws_differ():
    y = np.repeat(np.arange(5), 20)
    drawn = {tuple(few_shot.drawn(y, 2, draw)) for draw in range(5)}
    assert len(drawn) == 5


def test_small_classes_are_named():
    y = np.array([0, 0, 0, 1, 2, 2])
    assert few_shot.short_of(y, 2, ["a", "b", "c"]) == ["b"]
    assert few_shot.short_of(y, 3, ["a", "b", "c"]) == ["b", "c"]
    assert few_shot.short_of(y, 1, ["a", "b", "c"]) == []


def carry_out(parent: Path, out: Path, cache: Path, **fields):
    spec = plan.FewShotSpec(REF, SIZE, config.LinearProfile(), config.FewShot(**fields))
    run = plan.Run("few_shot", plan.Subject("net", "gmp", 0.5, 0), spec, {})
    return few_shot.run(run, {"checkpoint": parent}, out, Context(accelerator(), None, cache))


def test_every_point_is_a_regression_on_its_draw(half_pruned, tmp_path):
    cache = tmp_path / "cache"
    result = carry_out(half_pruned, tmp_path, cache, shots=[2, 1, 6, 99], draws=2, c=0.3)
    points = result["few_shot"]
    assert [(p["shots"], p["draw"]) for p in points] == [(k, d) for k in (1, 2, 6) for d in (0, 1)]
    assert [p["images"] for p in points] == [10, 10, 20, 20, 60, 60]
    assert result["left_out"] == [99] and result["short_classes"] == {}
    found = frozen.extract(
        half_pruned / "checkpoint",
        REF,
        SIZE,
        config.LinearProfile(),
        Context(accelerator(), None, cache),
    )
    rows = few_shot.drawn(found.train_labels, 2, 1)
    profile = config.LinearProfile(lbfgs_c=(0.3,))
    by_hand = probes.lbfgs(
        found.train[rows], found.train_labels[rows], found.test, 10, profile
    ).logits.argmax(axis=1)
    assert points[3]["value"] == pytest.approx(np.mean(by_hand == found.test_labels))
    # all rows: every draw is the same
    assert points[4]["value"] == points[5]["value"]


def test_shots_that_no_class_has_are_refused(half_pruned, tmp_path):
    with pytest.raises(UserError, match="no class with 50 training images"):
        carry_out(half_pruned, tmp_path, tmp_path / "cache", shots=[50], draws=2)


def test_a_curve_needs_draws_and_different_shots():
    with pytest.raises(ValueError, match="more than once"):
        config.FewShot(shots=(1, 1))
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        config.FewShot(draws=1)


def test_the_training_part_alone_is_drawn_from(half_pruned, tmp_path):
    task = data.open_task(REF, data_root=None, cache=tmp_path / "cache")
    result = carry_out(half_pruned, tmp_path, tmp_path / "cache", shots=[6], draws=2)
    assert result["few_shot"][0]["images"] == len(task.train)
    assert result["n_test"] == len(task.test)

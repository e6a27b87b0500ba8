"""ReaL labels: timm's own evaluator counts the same, empty lists are left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data.real_labels import RealLabelsImagenet

from sparse_transfer import cards, data, label_lists
from sparse_transfer.config import TaskRef
from sparse_transfer.errors import UserError
from sparse_transfer.predictions import Predictions
from tests.made_images import picture


def test_lists_are_of_the_published_size_and_by_file_name() -> None:
    lists = label_lists.imagenet_real()
    assert len(lists) == 50_000
    assert sum(map(bool, lists.values())) == 46_837
    assert {c for classes in lists.values() for c in classes} == set(range(1000))


def test_accuracy_is_that_of_timms_evaluator() -> None:
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    timm_real = RealLabelsImagenet(names)
    generator = np.random.default_rng(0)
    lists = [label_lists.imagenet_real()[name] for name in names]
    logits = generator.random((200, 1000), dtype=np.float32)
    for row in range(0, 200, 2):  # half of the predictions are right where they can be
        if lists[row]:
            logits[row, generator.choice(lists[row])] = 2
    timm_real.add_result(torch.from_numpy(logits))
    kept = [row for row in range(200) if lists[row]]
    assert len(kept) < 200
    labels, changed = label_lists.merged(logits[kept], [lists[row] for row in kept])
    made = Predictions.from_logits(np.array(kept), labels, changed)
    ours = 100 * float(np.mean(made.prediction == made.label))
    assert ours == pytest.approx(timm_real.get_accuracy(1)) and 30 < ours < 70


@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=4, max_size=4),
    st.sets(st.integers(0, 3), min_size=1),
)
def test_a_prediction_counts_exactly_if_it_is_listed(row: list[float], right: set[int]) -> None:
    logits = np.array([row])
    label, changed = label_lists.merged(logits, [tuple(right)])
    made = Predictions.from_logits(np.array(["x"]), label, changed)
    assert label.tolist() == [min(right)]  # the same for every model
    assert sorted(changed[0]) == sorted(row)
    assert (made.prediction[0] == label[0]) == (int(np.argmax(logits)) in right)


def test_files_of_other_names_are_refused() -> None:
    with pytest.raises(UserError, match="1 of 2 files, as photo.jpg"):
        label_lists.accepted("imagenet_real", ["val/x/ILSVRC2012_val_00000001.JPEG", "photo.jpg"])


def test_real_task_leaves_out_images_without_a_right_class(tmp_path, monkeypatch) -> None:
    # the lists of images 1 to 4: none, {970, 795}, {230, 231}, {809}
    for number, wnid in ((1, "n01440764"), (2, "n01440764"), (3, "n01443537"), (4, "n01443537")):
        path = tmp_path / "imagenet" / "val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    real = cards.card("imagenet_real")
    sizes = cards.Sizes(train=0, test=3)
    made = real.model_copy(update={"classes": 2, "sizes": sizes})
    monkeypatch.setattr(data, "card", lambda _: made)
    task = data.open_task(TaskRef(name="x"), data_root=tmp_path, cache=tmp_path)
    assert [Path(name).stem[-1] for name in task.test.ids] == ["2", "3", "4"]
    assert task.test.accepted is not None
    assert list(task.test.accepted.values()) == [(970, 795), (230, 231), (809,)]
    plain = made.model_copy(update={"label_lists": None, "sizes": cards.Sizes(train=0, test=4)})
    monkeypatch.setattr(data, "card", lambda _: plain)
    assert (
        data.open_task(TaskRef(name="x"), data_root=tmp_path, cache=tmp_path).test.accepted is None
    )

"""Opening tasks: frozen splits, the hash, refusals, and what is found where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparse_transfer import data
from sparse_transfer.config import TaskRef
from sparse_transfer.errors import UserError
from tests.made_images import folder, parquet, picture, png


@pytest.fixture
def birds(tmp_path: Path):
    """Makes photos/ by a layout and a card birds.yaml beside it; gives a TaskRef factory."""

    def _make(layout: dict[str, int], text: str = "", name: str = "birds"):
        folder(tmp_path / "photos", layout)
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"name: {name}\nfolder: photos\n{text}", encoding="utf-8")
        return lambda **fields: TaskRef(name=str(path), **fields)

    return _make


def opened(ref: TaskRef, tmp_path: Path) -> data.Task:
    return data.open_task(ref, data_root=None, cache=tmp_path / "cache")


TWO = {"train/a": 6, "train/b": 4, "test/a": 2, "test/b": 3}


def test_own_folder_is_a_task(birds, tmp_path: Path) -> None:
    task = opened(birds(TWO)(), tmp_path)
    assert task.classes == ("a", "b")
    assert np.bincount(task.train.labels).tolist() == [6, 4]
    assert np.bincount(task.test.labels).tolist() == [2, 3]
    assert task.test.ids[0] == "test/a/0.png"
    assert len(task.validation) == 0
    assert task.skipped == {}
    assert np.array_equal(np.asarray(task.train.image(0)), np.asarray(picture(0)))


def test_validation_part_of_the_folder_is_not_used_unless_merged(birds, tmp_path: Path) -> None:
    layout = TWO | {"val/a": 1, "val/b": 1}
    assert len(opened(birds(layout)(), tmp_path).train) == 10
    assert len(opened(birds(layout, "split: merge")(), tmp_path).train) == 12


def test_other_part_as_test_part(birds, tmp_path: Path) -> None:
    layout = {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 3}
    assert len(opened(birds(layout, "split: {test: validation}")(), tmp_path).test) == 4


def test_first_per_class(birds, tmp_path: Path) -> None:
    task = opened(birds({"a": 12, "b": 5}, "split: {first_per_class: 3}")(), tmp_path)
    assert task.train.ids.tolist() == [f"{c}/{i}.png" for c in "ab" for i in range(3)]
    assert (len(task.test), len(task.train)) == (11, 6)
    assert task.test.ids[-3:].tolist() == ["a/11.png", "b/3.png", "b/4.png"]  # 11 after 9


def test_alternate_takes_even_rows_to_train(birds, tmp_path: Path) -> None:
    task = opened(birds({"a": 4, "b": 3}, "split: alternate")(), tmp_path)
    assert task.train.ids.tolist() == ["a/0.png", "a/2.png", "b/0.png", "b/2.png"]


def test_stratified_is_exact_and_disjoint(birds, tmp_path: Path) -> None:
    task = opened(birds({"a": 10, "b": 30}, "split: {stratified: {test: 0.25}}")(), tmp_path)
    assert len(task.test) == 10
    assert np.bincount(task.test.labels).tolist() in ([2, 8], [3, 7])
    assert not set(task.test.ids) & set(task.train.ids)


def test_one_pool_cannot_be_official(birds, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks its parts test, train") as caught:
        opened(birds({"a": 3, "b": 3})(), tmp_path)
    assert "stratified" in caught.value.hint


def test_parts_cannot_be_cut(birds, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already has the parts: test, train"):
        opened(birds(TWO, "split: alternate")(), tmp_path)


def test_missing_part_is_named(birds, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks its part test"):
        opened(birds({"train/a": 2, "train/b": 2})(), tmp_path)


@pytest.mark.parametrize(
    ("layout", "what"),
    [
        ({"train/a": 2, "train/b": 2, "test/a": 1}, "without test images"),
        ({"train/a": 2, "test/b": 1, "test/a": 1}, "without training images"),
    ],
)
def test_empty_class_is_refused(birds, tmp_path: Path, layout: dict[str, int], what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        opened(birds(layout)(), tmp_path)
    assert "1 of 2: b" in caught.value.why
    assert len(opened(birds(layout, "empty_classes: true")(), tmp_path).classes) == 2


def test_wrong_number_of_classes_names_both(birds, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 2 classes; the card says 3"):
        opened(birds(TWO, "classes: 3")(), tmp_path)


def test_wrong_sizes_name_both(birds, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="10 training and 5 test images; the card says 10 and 6"):
        opened(birds(TWO, "sizes: {train: 10, test: 6}")(), tmp_path)


def test_test_only_card(birds, tmp_path: Path) -> None:
    task = opened(birds({"test/a": 2, "test/b": 1}, "sizes: {train: 0, test: 3}")(), tmp_path)
    assert (len(task.train), len(task.test)) == (0, 3)


def test_subset_and_validation_are_exact_and_frozen(birds, tmp_path: Path) -> None:
    ref = birds({"train/a": 30, "train/b": 10, "train/c": 2, "test/a": 1, "test/b": 1, "test/c": 1})
    task = opened(ref(train_images=20, validation=0.25), tmp_path)
    again = opened(ref(train_images=20, validation=0.25), tmp_path)
    assert (len(task.train), len(task.validation)) == (15, 5)
    assert set(task.train.labels) == {0, 1, 2}
    assert not set(task.train.ids) & set(task.validation.ids)
    assert task.validation.ids.tolist() == again.validation.ids.tolist()
    whole = opened(ref(), tmp_path)
    rank = {name: row for row, name in enumerate(whole.train.ids)}
    assert (np.diff([rank[name] for name in task.train.ids]) > 0).all()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"train_images": 11}, "It has 10 of 2 classes"),
        ({"train_images": 1}, "each class needs one"),
        ({"validation": 0.01}, "that is none"),
        ({"validation": 0.9}, "between 0 and 8"),
    ],
)
def test_impossible_subsets_are_refused(birds, tmp_path: Path, fields: dict, why: str) -> None:
    with pytest.raises(UserError, match=why):
        opened(birds(TWO)(**fields), tmp_path)


def test_hash_is_the_same_with_and_without_cache(birds, tmp_path: Path) -> None:
    ref = birds(TWO)(validation=0.2)
    direct = opened(ref, tmp_path).split_hash
    cache = tmp_path / "cache"
    assert data.split_hash(ref, None, cache) == direct
    assert len(list((cache / "splits").glob("*.json"))) == 1
    assert data.split_hash(ref, None, cache) == direct


def test_hash_sees_subset_rule_version_and_files(birds, tmp_path: Path) -> None:
    path, cache = tmp_path / "birds.yaml", tmp_path / "cache"
    birds(TWO)

    def value(text: str = "", **fields: object) -> str:
        path.write_text(f"name: birds\nfolder: photos\n{text}", encoding="utf-8")
        return data.split_hash(TaskRef.model_validate({"name": str(path), **fields}), None, cache)

    hashes = [
        value(),
        value(validation=0.2),
        value(train_images=8),
        value("version: 2"),
        value("split: merge"),
    ]
    assert value() == hashes[0]
    picture(99).save(tmp_path / "photos" / "train" / "a" / "new.png")
    hashes.append(value())
    assert len(set(hashes)) == len(hashes)


def test_hash_does_not_see_titles_or_where_the_data_lies(birds, tmp_path: Path) -> None:
    first = data.split_hash(birds(TWO)(), None, tmp_path / "cache")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    path = tmp_path / "birds.yaml"
    path.write_text("name: birds\ntitle: Birds\nfolder: elsewhere\n", encoding="utf-8")
    assert data.split_hash(TaskRef(name=str(path)), None, tmp_path / "cache") == first


def test_split_hash_needs_no_torch(birds, tmp_path: Path) -> None:
    ref = birds(TWO)()
    code = (
        "import sys; from pathlib import Path; from sparse_transfer import data, config;"
        f"data.split_hash(config.TaskRef(name={ref.name!r}), None, Path({str(tmp_path / 'c')!r}));"
        "print({'torch', 'datasets', 'sklearn'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_source_lists_each_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`dtd` is not available") as caught:
        data.open_task(TaskRef(name="dtd"), data_root=tmp_path, cache=tmp_path / "cache")
    lines = caught.value.why.splitlines()
    assert [line.split()[0] for line in lines] == ["torchvision", "hub", "parquet"]
    assert "downloads are switched off" in lines[1]
    assert str(tmp_path / "tanganke/dtd") in lines[2]
    assert "dtd-r1.0.1.tar.gz" in caught.value.hint


def test_no_data_root_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data root is set"):
        data.open_task(TaskRef(name="sign_digits"), data_root=None, cache=tmp_path)


def test_second_source_is_used_when_the_first_is_missing(tmp_path: Path) -> None:
    for part in ("train", "test"):
        parquet(tmp_path / "root" / "here" / f"{part}.parquet", [0, 1])
    path = tmp_path / "birds.yaml"
    path.write_text("name: birds\nsources: [{parquet: away}, {parquet: here}]\n", encoding="utf-8")
    task = data.open_task(
        TaskRef(name=str(path)), data_root=tmp_path / "root", cache=tmp_path / "cache"
    )
    assert task.source.startswith("parquet here")
    found = data.availability(task.card, tmp_path / "root")
    assert [item.presence.state for item in found] == ["missing", "here"]


def test_source_that_differs_is_refused_even_if_another_would_fit(tmp_path: Path) -> None:
    for place, labels in (("small", [0, 1]), ("whole", [0, 1, 0])):
        parquet(tmp_path / place / "train.parquet", labels)
        parquet(tmp_path / place / "test.parquet", [0, 1])
    path = tmp_path / "birds.yaml"
    path.write_text(
        "name: birds\nsizes: {train: 3, test: 2}\nsources: [{parquet: small}, {parquet: whole}]\n",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="2 training and 2 test images; the card says 3 and 2"):
        opened(TaskRef(name=str(path)), tmp_path)


def test_image_of_a_damaged_file_is_a_user_error(birds, tmp_path: Path) -> None:
    ref = birds(TWO)()
    (tmp_path / "photos" / "train" / "a" / "0.png").write_bytes(png(picture(0))[:60])
    with pytest.raises(UserError, match="train/a/0.png cannot be used"):
        opened(ref, tmp_path).train.image(0)


# Recorded once: a change here makes every earlier result of the task incomparable.
FROZEN_BUILT_IN = {"digits": "d401ca3fc3c2", "shapes": "8c606e839a7a", "textures": "1b265209854f"}
FROZEN_REAL = {
    "caltech101_8shot": "82f363a3e379",
    "cifar10_jpeg": "4711f60499a9",
    "clothing_small": "6da25dec65f7",
    "dtd_first10": "3f22931d8fef",
    "flowers_12": "46fe583086be",
    "imagenet1k_halves": "d2940ff1f06d",
    "imagenet1k_sample": "158769d13166",
    "pets_sample": "82921608c4c7",
    "sign_digits": "e1505d33484f",
}
FROZEN_DIGITS_SUBSET = "fad3a143beb1"


def test_frozen_splits_of_built_in_tasks(tmp_path: Path) -> None:
    found = {name: data.split_hash(TaskRef(name=name), None, tmp_path) for name in FROZEN_BUILT_IN}
    assert {name: value[:12] for name, value in found.items()} == FROZEN_BUILT_IN
    subset = TaskRef(name="digits", train_images=300, validation=0.2)
    assert data.split_hash(subset, None, tmp_path)[:12] == FROZEN_DIGITS_SUBSET


@pytest.mark.real
def test_frozen_splits_of_real_tasks(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "datasets"
    found = {name: data.split_hash(TaskRef(name=name), root, tmp_path) for name in FROZEN_REAL}
    assert {name: value[:12] for name, value in found.items()} == FROZEN_REAL

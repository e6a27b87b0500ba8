"""What `try` says of a folder: what is used, what is left out, and what cannot be used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from sparse_transfer import data
from sparse_transfer.config import TaskRef
from sparse_transfer.errors import UserError
from sparse_transfer.trial.folder import look
from tests.made_images import folder, parquet


def refused(root: Path, tmp_path: Path) -> str:
    with pytest.raises(UserError) as caught:
        look(str(root), tmp_path / "try")
    assert caught.value.hint, "no word on what would work"
    assert not (tmp_path / "try").exists()
    return str(caught.value)


def test_class_folders_become_a_task_of_three_parts(tmp_path: Path):
    root = folder(tmp_path / "a", {"cat": 10, "dog": 20})
    found = look(str(root), tmp_path / "try")
    ref = TaskRef(name=found.task, validation=found.validation)
    task = data.open_task(ref, data_root=None, cache=tmp_path / "cache")
    assert (len(task.train), len(task.validation), len(task.test)) == (18, 6, 6)
    assert (found.images, found.classes, found.notes) == (30, 2, ())


def test_the_task_is_named_by_content_not_by_place(tmp_path: Path):
    root = folder(tmp_path / "a", {"cat": 6, "dog": 6})
    first = look(str(root), tmp_path / "try").task
    moved = shutil.move(root, tmp_path / "b")
    assert look(str(moved), tmp_path / "try").task == first
    assert yaml.safe_load(Path(first).read_text())["folder"] == str(moved)
    shutil.copy(tmp_path / "b/cat/0.png", tmp_path / "b/cat/1.png")
    assert look(str(moved), tmp_path / "try").task != first


def test_copies_are_said(tmp_path: Path):
    root = folder(tmp_path / "a", {"cat": 6, "dog": 6})
    shutil.copy(root / "cat/0.png", root / "cat/again.png")
    shutil.copy(root / "cat/0.png", root / "dog/wrong.png")
    (note,) = look(str(root), tmp_path / "try").notes
    assert note.startswith("2 images are copies of another")


def test_parts_of_its_own_are_used(tmp_path: Path):
    layout = {"train/cat": 4, "train/dog": 4, "test/cat": 2, "test/dog": 2}
    found = look(str(folder(tmp_path / "a", layout)), tmp_path / "try")
    assert found.validation == 0.25
    layout |= {"val/cat": 1, "val/dog": 1}
    found = look(str(folder(tmp_path / "b", layout)), tmp_path / "try")
    assert found.validation == 0
    assert "Its own train, validation and test" in found.notes[0]


def test_a_training_and_a_validation_part_are_enough(tmp_path: Path):
    layout = {"train/cat": 4, "train/dog": 4, "val/cat": 2, "val/dog": 2}
    found = look(str(folder(tmp_path / "a", layout)), tmp_path / "try")
    assert "no test part" in found.notes[0]
    task = data.open_task(TaskRef(name=found.task), data_root=None, cache=tmp_path / "cache")
    assert len(task.test) == 4


def test_parquet_files_are_read(tmp_path: Path):
    parquet(tmp_path / "a/train-0.parquet", [0, 1] * 6)
    parquet(tmp_path / "a/test-0.parquet", [0, 1] * 2)
    found = look(str(tmp_path / "a"), tmp_path / "try")
    assert (found.images, found.classes, found.validation) == (16, 2, 0.25)


def test_a_card_needs_no_look(tmp_path: Path):
    assert look("shapes", tmp_path).task == "shapes"


def test_rubbish_beside_the_classes_is_left_out_and_said(tmp_path: Path):
    root = folder(tmp_path / "a", {"cat": 6, "dog": 6})
    (root / "readme.txt").write_text("hello")
    (root / "empty").mkdir()
    (root / ".DS_Store").write_text("x")
    (root / "cat/broken.png").write_text("no image")
    notes = look(str(root), tmp_path / "try").notes
    assert notes == (
        "Left out: 1 file beside the classes (readme.txt).",
        "Left out: 1 folder without images (empty).",
        "Left out: 1 image of 13 that cannot be read (cat/broken.png).",
    )


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ({"cat": 30}, ["one class, cat", "at least two classes"]),
        ({"cat": 2, "dog": 1}, ["too few images", "cat has 2, dog has 1", "needs 5"]),
        ({"pets/cat": 9, "pets/dog": 9}, ["classes inside classes", "Did you mean", "/a/pets?"]),
        (
            {"cat": 9, "dog": 9, "dog/old": 9},
            ["classes inside classes", "dog holds", "old", "CLASS/"],
        ),
        ({"train/cat": 9, "train/dog": 9, "bird": 9}, ["parts and classes side by side", "bird"]),
        (
            {"train/cat": 9, "train/dog": 9, "test/cat": 3},
            ["too few images in its test part", "dog has 0"],
        ),
        (
            {"train/cat": 9, "train/dog": 2, "test/cat": 3, "test/dog": 3},
            ["train part", "dog has 2"],
        ),
        (
            {"train/cat": 9, "train/dog": 9, "test/cat": 3, "test/cow": 3},
            ["test part and its train part", "test: A class needs 1; dog has 0.", "cow has 0"],
        ),
        (
            {"x/y/z/cat": 10, "x/y/z/dog": 10},
            ["lie deeper", "x/y/z/cat holds 10 images, and 1 folder more", "/a/x/y/z?"],
        ),
        (
            {f"x/y/{part}/{name}": 6 for part in ("train", "test") for name in ("cat", "dog")},
            ["3 folders more", "Did you mean", "/a/x/y?"],
        ),
        ({"x/y/z/cat": 10, "u/y/z/dog": 10}, ["lie deeper", "a folder for each class"]),
        (
            {"test/cat": 9, "test/dog": 9, "val/cat": 9, "val/dog": 9},
            ["parts that cannot be told apart"],
        ),
    ],
)
def test_what_does_not_fit_is_refused(layout: dict[str, int], said: list[str], tmp_path: Path):
    error = refused(folder(tmp_path / "a", layout), tmp_path)
    assert all(words in error for words in said), error


def test_three_images_side_by_side(tmp_path: Path):
    root = folder(tmp_path, {"a": 3}) / "a"
    assert "3 images side by side" in refused(root, tmp_path)


def test_folders_without_any_image(tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / "a" / name).mkdir(parents=True)
        (tmp_path / "a" / name / "x.heic").write_text("x")
    error = refused(tmp_path / "a", tmp_path)
    assert "2 .heic" in error and ".jpg" in error


def test_images_that_cannot_be_read(tmp_path: Path):
    root = folder(tmp_path / "a", {"cat": 30, "dog": 30})
    for number in range(12):
        (root / "cat" / f"{number}.png").write_bytes(b"")
    assert "12 of 60 images" in refused(root, tmp_path)
    root = folder(tmp_path / "b", {"cat": 30, "dog": 6})
    for number in range(3):
        (root / "dog" / f"{number}.png").write_bytes(b"")
    assert "dog has 3" in refused(root, tmp_path)


def test_what_is_not_there(tmp_path: Path):
    assert "no such folder" in refused(tmp_path / "nowhere", tmp_path)
    (tmp_path / "file.zip").write_text("x")
    assert "is a file" in refused(tmp_path / "file.zip", tmp_path)
    with pytest.raises(UserError, match="Did you mean the task shapes"):
        look("shapse", tmp_path / "try")


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "classes"), [("clothing_small", 10), ("oxford_flowers_12x80", 12), ("dtd_first10", 10)]
)
def test_real_sets_are_found(name: str, classes: int, shared: Path, tmp_path: Path):
    found = look(str(shared / "data/datasets" / name), tmp_path / "try")
    assert found.classes == classes
    ref = TaskRef(name=found.task, validation=found.validation)
    task = data.open_task(ref, data_root=None, cache=tmp_path / "cache")
    assert len(task.validation) == round(0.25 * (len(task.validation) + len(task.train)))

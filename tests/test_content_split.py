"""Splits by content: moving, renaming and adding files leaves the other images where they were."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from sparse_transfer import data
from sparse_transfer.cards import SplitRule
from sparse_transfer.config import TaskRef
from sparse_transfer.errors import UserError
from sparse_transfer.splits import content_order
from tests.made_images import folder, picture

RULE = {"stratified": {"test": 0.2}, "by": "content"}


def parts(root: Path, where: Path, split: object = RULE, validation: float = 0.25, name="made"):
    """Part → the content of its images."""
    card = where / f"{name}.yaml"
    card.write_text(yaml.safe_dump({"name": name, "folder": str(root), "split": split}))
    ref = TaskRef(name=str(card), validation=validation)
    task = data.open_task(ref, data_root=None, cache=where / "cache")
    held = {"train": task.train, "validation": task.validation, "test": task.test}
    return {
        part: {(int(split.labels[row]), split.decoded(row).tobytes()) for row in range(len(split))}
        for part, split in held.items()
    }


def test_sixty_twenty_twenty_in_every_class(tmp_path: Path):
    root = folder(tmp_path / "a", {"cat": 20, "dog": 10})
    found = parts(root, tmp_path)
    by_class = {name: np.bincount([label for label, _ in part]) for name, part in found.items()}
    assert {name: counts.tolist() for name, counts in by_class.items()} == {
        "train": [12, 6],
        "validation": [4, 2],
        "test": [4, 2],
    }


def test_renaming_the_folder_its_files_and_the_task_changes_nothing(tmp_path: Path):
    root = folder(tmp_path / "a", {"cat": 15, "dog": 15})
    before = parts(root, tmp_path)
    moved = Path(shutil.move(root, tmp_path / "elsewhere"))
    for number, path in enumerate(sorted(moved.rglob("*.png"), reverse=True)):
        path.rename(path.with_name(f"renamed-{number:03d}.png"))
    assert parts(moved, tmp_path, name="other") == before


def test_new_images_move_few_old_ones(tmp_path: Path):
    root = folder(tmp_path / "a", {"cat": 50, "dog": 50})
    before = parts(root, tmp_path)
    for extra in range(5):
        picture(1000 + extra).save(root / "cat" / f"extra-{extra}.png")
    after = parts(root, tmp_path)
    assert len(before["test"] & after["test"]) >= len(before["test"]) - 1


def test_every_class_is_tested_however_small(tmp_path: Path):
    root = folder(tmp_path / "a", {"cat": 100, **{f"rare-{n}": 5 for n in range(6)}})
    found = parts(root, tmp_path)
    for part in found.values():
        assert {label for label, _ in part} == set(range(7))


def test_equal_content_stays_together_in_the_order():
    digests = [b"a", b"b", b"a", b"c", b"a"]
    order = [digests[row] for row in content_order("test", digests)]
    assert sum(one != other for one, other in zip(order, order[1:], strict=False)) == 2


def test_a_validation_part_of_its_own_is_taken_whole(tmp_path: Path):
    layout = {f"{part}/{name}": 4 for part in ("train", "val", "test") for name in ("cat", "dog")}
    root = folder(tmp_path / "a", layout)
    split = {"train": "train", "test": "test", "validation": "validation"}
    found = parts(root, tmp_path, split, validation=0)
    assert {name: len(part) for name, part in found.items()} == dict.fromkeys(found, 8)
    assert not found["train"] & found["validation"]


def test_a_validation_part_that_is_not_there_is_said(tmp_path: Path):
    root = folder(tmp_path / "a", {"train/cat": 3, "train/dog": 3, "test/cat": 2, "test/dog": 2})
    split = {"train": "train", "test": "test", "validation": "validation"}
    with pytest.raises(UserError, match="lacks its part validation"):
        parts(root, tmp_path, split)


def test_rules_of_before_keep_their_hash():
    """Frozen splits are named by their rule: what came later is not in it unless it is used."""
    rule = SplitRule.model_validate({"stratified": {"test": 0.2}})
    assert rule.identity() == {
        "rule": "stratified",
        "train": "train",
        "test": "test",
        "per_class": None,
        "test_share": 0.2,
    }
    assert SplitRule.model_validate(RULE).identity()["by"] == "content"

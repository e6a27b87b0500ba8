"""Folders of images: parts, classes, order."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_transfer.errors import UserError
from sparse_transfer.examples import Listing, Place
from sparse_transfer.sources.folder import open_source
from tests.made_images import card, folder


def listing(root: Path, **source) -> Listing:
    made = card(sources=[{"folder": "x", **source}])
    return open_source(made.sources[0], made, Place(root)).listing()


def test_parts_and_classes_are_folders(tmp_path: Path) -> None:
    folder(tmp_path / "x", {"Train/b": 1, "Train/a": 2, "valid/a": 1, "test/c": 1, "notes/z": 1})
    found = listing(tmp_path)
    assert found.classes == ("a", "b", "c")
    assert sorted(found.parts) == ["test", "train", "validation"]
    assert found.parts["train"].ids == ["Train/a/0.png", "Train/a/1.png", "Train/b/0.png"]
    assert found.parts["train"].labels.tolist() == [0, 0, 1]
    assert found.parts["test"].fetch(0) == tmp_path / "x" / "test" / "c" / "0.png"


def test_classes_alone_are_one_pool(tmp_path: Path) -> None:
    folder(tmp_path / "x", {"a": 2, "b": 1})
    assert list(listing(tmp_path).parts) == ["all"]


def test_numbers_in_names_are_numbers(tmp_path: Path) -> None:
    folder(tmp_path / "x", {"a": 12, "b": 1})
    ids = listing(tmp_path).parts["all"].ids
    assert ids[:3] == ["a/0.png", "a/1.png", "a/2.png"]
    assert ids[10:12] == ["a/10.png", "a/11.png"]


def test_other_files_and_hidden_folders_are_ignored(tmp_path: Path) -> None:
    folder(tmp_path / "x", {"a": 1, "b": 1, ".thumbs": 3})
    (tmp_path / "x" / "a" / "notes.txt").write_text("no image")
    (tmp_path / "x" / "empty").mkdir()
    found = listing(tmp_path)
    assert found.classes == ("a", "b")
    assert len(found.parts["all"].ids) == 2


def test_parts_by_other_names(tmp_path: Path) -> None:
    folder(tmp_path / "x", {"seen/a": 2, "unseen/a": 1})
    found = listing(tmp_path, parts={"train": "seen", "test": "unseen"})
    assert {name: len(part.ids) for name, part in found.parts.items()} == {"train": 2, "test": 1}


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="no images") as caught:
        listing(tmp_path)
    assert "train/CLASS" in caught.value.hint


def test_presence_and_fingerprint(tmp_path: Path) -> None:
    made = card(folder="x")
    source = open_source(made.sources[0], made, Place(tmp_path))
    assert source.presence().state == "missing"
    folder(tmp_path / "x", {"a": 1})
    assert source.presence().state == "here"
    before = source.fingerprint()
    folder(tmp_path / "x", {"a": 2})
    assert source.fingerprint() != before


def test_card_folder_goes_before_the_data_root(tmp_path: Path) -> None:
    folder(tmp_path / "root" / "x", {"far": 1})
    folder(tmp_path / "beside" / "x", {"near": 1})
    made = card(folder="x")
    place = Place(tmp_path / "root", card_folder=tmp_path / "beside")
    assert open_source(made.sources[0], made, place).listing().classes == ("near",)
    assert Place(tmp_path / "root").find("x") == tmp_path / "root" / "x"
    assert place.find(str(tmp_path / "root" / "x")) == tmp_path / "root" / "x"


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder(tmp_path / "x", {str(number): 1 for number in range(12)})
    found = listing(tmp_path, class_order="number")
    assert found.classes == tuple(map(str, range(12)))
    part = found.parts["all"]
    assert all(
        int(name.partition("/")[0]) == label
        for name, label in zip(part.ids, part.labels, strict=True)
    )
    lexicographic = listing(tmp_path).classes
    assert lexicographic[2] == "10" and found.classes[2] == "2"


@pytest.mark.parametrize(
    ("order", "names", "wrong"),
    [
        ("number", ["0", "1", "3"], "3"),  # 2 is missing, so 3 cannot be the third class
        ("number", ["0", "1", "02"], "02"),
        ("wnid", ["n01440764", "tench"], "tench"),
    ],
)
def test_class_folders_of_other_names_are_refused(tmp_path, order, names, wrong) -> None:
    folder(tmp_path / "x", dict.fromkeys(names, 1))
    with pytest.raises(UserError, match=f"there is {wrong}"):
        listing(tmp_path, class_order=order)


def test_part_that_the_card_names_must_be_there(tmp_path: Path) -> None:
    folder(tmp_path / "x", {"train/a": 1})
    made = card(sources=[{"folder": "x", "parts": {"train": "train", "test": "valid"}}])
    source = open_source(made.sources[0], made, Place(tmp_path))
    assert source.presence().state == "missing" and "valid" in source.presence().detail
    with pytest.raises(UserError, match="There is no .*valid"):
        source.listing()

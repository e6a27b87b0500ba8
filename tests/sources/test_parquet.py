"""Parquet files: parts, columns, labels, ids, row groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparse_transfer.cards import SourceSpec
from sparse_transfer.decoding import decode
from sparse_transfer.errors import UserError
from sparse_transfer.examples import Listing, Place
from sparse_transfer.sources.parquet import open_source
from tests.made_images import card, parquet, picture, png


def listing(root: Path, location: str = "x", fields: dict | None = None, **source) -> Listing:
    made = card(sources=[{"parquet": location, **source}], **(fields or {}))
    return open_source(made.sources[0], made, Place(root)).listing()


def both(root: Path, labels=(0, 1), **options) -> None:
    for part in ("train", "test"):
        parquet(root / "x" / f"{part}-00000-of-00001.parquet", list(labels), **options)


def test_class_names_come_from_the_schema(tmp_path: Path) -> None:
    both(tmp_path, names=["zebra", "ant"])
    found = listing(tmp_path)
    assert found.classes == ("zebra", "ant")
    assert found.parts["train"].labels.tolist() == [0, 1]
    assert found.parts["train"].labels.dtype == np.int64


def test_strings_are_sorted_over_all_parts(tmp_path: Path) -> None:
    parquet(tmp_path / "x" / "train.parquet", ["dog", "cat"], names=None)
    parquet(tmp_path / "x" / "test.parquet", ["dog", "bee"], names=None)
    found = listing(tmp_path)
    assert found.classes == ("bee", "cat", "dog")
    assert found.parts["train"].labels.tolist() == [2, 1]
    assert found.parts["test"].labels.tolist() == [2, 0]


def test_several_files_and_row_groups_keep_their_order(tmp_path: Path) -> None:
    images = [png(picture(index)) for index in range(5)]
    for shard, rows in enumerate((range(0, 3), range(3, 5))):
        path = tmp_path / "x" / "data" / f"train-0000{shard}-of-00002.parquet"
        parquet(path, [0] * len(rows), images=[images[row] for row in rows], row_group=2)
    part = listing(tmp_path).parts["train"]
    assert len(part.labels) == 5
    for row in (4, 0, 2, 3, 1):
        assert part.fetch(row) == images[row]


def test_few_row_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparse_transfer.sources.parquet.ENCODED_BYTES_KEPT", 1)
    images = [png(picture(index)) for index in range(4)]
    parquet(tmp_path / "x" / "train.parquet", [0, 1, 0, 1], images=images, row_group=1)
    part = listing(tmp_path).parts["train"]
    assert [part.fetch(row) for row in (0, 3, 1, 0)] == [images[row] for row in (0, 3, 1, 0)]
    assert len(part.fetch.__self__._kept) == 1  # type: ignore[attr-defined]


def test_paths_are_ids_only_where_they_tell_all_images_apart(tmp_path: Path) -> None:
    both(tmp_path, paths=["a.png", "b.png"])
    assert listing(tmp_path).parts["test"].ids == ["test/0000000", "test/0000001"]
    parquet(tmp_path / "x" / "test-00000-of-00001.parquet", [0, 1], paths=["c.png", "d.png"])
    assert listing(tmp_path).parts["test"].ids == ["c.png", "d.png"]


def test_image_in_a_file_beside(tmp_path: Path) -> None:
    both(tmp_path, images=[None, png(picture(1))], paths=["lies_beside.png", None])
    picture(7).save(tmp_path / "x" / "lies_beside.png")
    part = listing(tmp_path).parts["train"]
    assert np.array_equal(np.asarray(decode(lambda: part.fetch(0))), np.asarray(picture(7)))


def test_usual_label_column_wins_over_others(tmp_path: Path) -> None:
    both(tmp_path, label_column="fine_label", image_column="img", extra={"coarse_label": [5, 6]})
    assert listing(tmp_path).classes == ("cat", "dog")


def test_card_chooses_the_columns(tmp_path: Path) -> None:
    both(tmp_path, extra={"breed": ["pug", "lab"]})
    assert listing(tmp_path, fields={"label": "breed"}).classes == ("lab", "pug")


def test_missing_label_column_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    both(tmp_path, label_column="target", names=None)
    with pytest.raises(UserError, match="no column of labels") as caught:
        listing(tmp_path)
    assert "image, target" in caught.value.why
    with pytest.raises(UserError, match="no column `targt`") as caught:
        listing(tmp_path, fields={"label": "targt"})
    assert "target" in caught.value.hint


@pytest.mark.parametrize(("labels", "why"), [([0, 2], "label 2"), ([0, -1], "label -1")])
def test_label_past_the_names_is_refused(tmp_path: Path, labels: list[int], why: str) -> None:
    both(tmp_path, labels)
    with pytest.raises(UserError, match=why):
        listing(tmp_path)


def test_blank_label_is_refused(tmp_path: Path) -> None:
    both(tmp_path, ["cat", None], names=None)
    with pytest.raises(UserError, match="1 examples of its part `(test|train)` have no label"):
        listing(tmp_path)


def test_cut_off_file_is_refused(tmp_path: Path) -> None:
    both(tmp_path)
    path = tmp_path / "x" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="cannot be read"):
        listing(tmp_path)


def test_parts_are_chosen_by_the_card(tmp_path: Path) -> None:
    both(tmp_path)
    assert list(listing(tmp_path, parts={"all": "test"}).parts) == ["all"]


def test_one_file_is_one_pool(tmp_path: Path) -> None:
    parquet(tmp_path / "everything.parquet", [0, 1])
    assert list(listing(tmp_path, "everything.parquet").parts) == ["all"]


def test_several_configurations_need_a_choice(tmp_path: Path) -> None:
    for name in ("small", "large"):
        parquet(tmp_path / "x" / name / "train.parquet", [0, 1])
    with pytest.raises(UserError, match="subset"):
        listing(tmp_path)
    assert len(listing(tmp_path, subset="small").parts["train"].labels) == 2


def test_absent_folder_is_missing_and_fingerprint_sees_changes(tmp_path: Path) -> None:
    made = card(parquet="x")
    source = open_source(SourceSpec(kind="parquet", location="x"), made, Place(tmp_path))
    assert source.presence().state == "missing"
    both(tmp_path)
    assert source.presence().state == "here"
    before = source.fingerprint()
    both(tmp_path, [1, 0, 1])
    assert source.fingerprint() != before

"""The Hub source, with the network and `datasets` replaced by local stand-ins."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_transfer import cards, partition
from sparse_transfer.decoding import decode
from sparse_transfer.errors import UserError
from sparse_transfer.examples import Place, SourceUnavailable
from sparse_transfer.sources.hub import HubSource
from tests.made_images import card, parquet, picture, png

ORIGINAL_LOAD = datasets.load_dataset  # the fixture replaces it


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A Hub that answers at once, and whose data sets are the Parquet files in tmp_path/x."""
    asked: list[tuple[object, ...]] = []
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *a, **k: asked.append(("info", k["timeout"]))
    )

    def load(name: str, subset: str | None, *, revision: str | None) -> object:
        asked.append((name, subset, revision))
        files = {path.stem: str(path) for path in (tmp_path / "x").glob("*.parquet")}
        return ORIGINAL_LOAD("parquet", data_files=files, cache_dir=str(tmp_path / "arrow"))

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def source(fields: dict | None = None, online: bool = True, **options) -> HubSource:
    made = card(sources=[{"hub": "some/where", **options}], **(fields or {}))
    return HubSource(made.sources[0], made, Place(None, online=online))


def test_listing_from_parquet(hub, tmp_path: Path) -> None:
    parquet(tmp_path / "x" / "train.parquet", [0, 1, 1], image_column="img")
    parquet(tmp_path / "x" / "test.parquet", [1, 0], image_column="img")
    found = source(revision="abc", subset="plain").listing()
    assert found.classes == ("cat", "dog")
    assert found.parts["train"].labels.tolist() == [0, 1, 1]
    assert found.parts["test"].ids == ["test/0000000", "test/0000001"]
    decoded = decode(lambda: found.parts["train"].fetch(2))
    assert np.array_equal(np.asarray(decoded), np.asarray(picture(2)))
    assert hub == [("info", 5.0), ("some/where", "plain", "abc")]


def test_parts_by_the_repositorys_names(hub, tmp_path: Path) -> None:
    parquet(tmp_path / "x" / "train.parquet", [0, 1])
    assert list(source(parts={"all": "train"}).listing().parts) == ["all"]
    with pytest.raises(UserError, match="no split valid"):
        source(parts={"test": "valid"}).listing()


def test_string_labels_and_missing_label_column(hub, tmp_path: Path) -> None:
    parquet(tmp_path / "x" / "train.parquet", ["b", "a"], names=None, label_column="species")
    with pytest.raises(UserError, match="no column of labels"):
        source().listing()
    assert source({"label": "species"}).listing().classes == ("a", "b")


def test_hub_out_of_reach_is_said_quickly(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(SourceUnavailable, match="did not answer: ConnectionError: name or service"):
        source().listing()
    assert hub == []  # load_dataset, with its many retries, was not called


def test_failed_download_is_a_reason_not_a_traceback(hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(SourceUnavailable, match="scripts are no longer supported$"):
        source().listing()


def keep(tmp_path: Path, revision: str, labels: list[int]) -> Path:
    """What `datasets` leaves behind after fetching some/where at a revision."""
    path = parquet(tmp_path / revision / "train.parquet", labels)
    built = ORIGINAL_LOAD(
        "parquet", data_files={"train": str(path)}, cache_dir=str(tmp_path / revision)
    )
    arrow = Path(built["train"].cache_files[0]["filename"])
    folder = tmp_path / "kept" / "some___where" / "default" / "0.0.0" / revision
    folder.parent.mkdir(parents=True, exist_ok=True)
    arrow.parent.rename(folder)
    (folder / arrow.name).rename(folder / "where-train.arrow")
    return folder


def test_kept_data_is_read_at_its_revision_and_without_asking(hub, tmp_path: Path) -> None:
    keep(tmp_path, "wanted", [0, 1, 1])
    newer = keep(tmp_path, "newer", [1, 0])
    pinned = source(revision="wanted", online=False).listing()
    assert pinned.parts["train"].labels.tolist() == [0, 1, 1]
    assert pinned.classes == ("cat", "dog")
    decoded = decode(lambda: pinned.parts["train"].fetch(1))
    assert np.array_equal(np.asarray(decoded), np.asarray(picture(1)))
    assert source().listing().parts["train"].labels.tolist() == [1, 0]
    assert hub == []
    (newer / "where-train.arrow").unlink()
    with pytest.raises(UserError, match="no file of its split train"):
        source(revision="newer").listing()


def test_presence_asks_nobody(hub, tmp_path: Path) -> None:
    pinned = source(revision="abc123")
    assert pinned.presence().state == "download"
    offline = source(revision="abc123", online=False)
    assert offline.presence().state == "missing"
    before = pinned.fingerprint()
    kept = tmp_path / "kept" / "some___where" / "default" / "0.0.0" / "abc123"
    kept.mkdir(parents=True)
    (kept / "dataset_info.json").write_text("{}")
    assert offline.presence().state == "here"
    assert source(revision="other", online=False).presence().state == "missing"
    assert source(online=False).presence().state == "here"  # unpinned: whichever is kept
    assert pinned.fingerprint() != before
    assert hub == []


def test_first_image_feature_is_taken(hub, tmp_path: Path) -> None:
    path = parquet(tmp_path / "x" / "train.parquet", [0, 1], image_column="photo")
    table = pq.read_table(path)
    features = json.loads(table.schema.metadata[b"huggingface"])
    features["info"]["features"] = {"thumb": {"_type": "Image"}, **features["info"]["features"]}
    other = [{"bytes": png(picture(9)), "path": None}] * 2
    table = table.add_column(0, "thumb", pa.array(other, table.schema.field("photo").type))
    text = json.dumps(features).encode()
    pq.write_table(table.replace_schema_metadata({b"huggingface": text}), path)

    def first(**fields: object) -> np.ndarray:
        part = source(dict(fields)).listing().parts["train"]
        return np.asarray(decode(lambda: part.fetch(0)))

    assert np.array_equal(first(), np.asarray(picture(9)))
    assert np.array_equal(first(image="photo"), np.asarray(picture(0)))


@pytest.mark.parametrize(
    ("columns", "override", "classes"),
    [
        # a ClassLabel goes before strings of an earlier name; among ClassLabels the order decides
        ({"variant": "class", "label": "string"}, None, ("cat", "dog")),
        ({"variant": "class", "fine_label": "class"}, None, ("cat", "dog")),
        ({"family": "class", "common": "string"}, None, ("x", "y")),
        ({"variant": "class", "common": "string"}, "common", ("x", "y")),
        ({"category": "string"}, None, ("x", "y")),
    ],
)
def test_label_column_is_found(hub, tmp_path, columns, override, classes) -> None:
    rows = {name: [1, 0] if kind == "class" else ["y", "x"] for name, kind in columns.items()}
    path = parquet(tmp_path / "x" / "train.parquet", [0, 0], label_column="unused", extra=rows)
    table = pq.read_table(path)
    features: dict[str, object] = {"image": {"_type": "Image"}}
    features |= {
        name: {"_type": "ClassLabel", "names": ["cat", "dog"]}
        for name, kind in columns.items()
        if kind == "class"
    }
    features |= {
        name: {"_type": "Value", "dtype": "string"}
        for name, kind in columns.items()
        if kind == "string"
    }
    features["unused"] = {"_type": "Value", "dtype": "int64"}
    order = {name: features[name] for name in table.column_names}
    text = json.dumps({"info": {"features": order}}).encode()
    pq.write_table(table.replace_schema_metadata({b"huggingface": text}), path)
    found = source({"label": override} if override else {}).listing()
    assert found.classes == classes
    assert found.parts["train"].labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["aircraft", "food101", "stanford_cars", "sun397"])
def test_hub_entries_of_the_cards_open_as_published(hub, tmp_path: Path, name: str) -> None:
    """Parts and columns as section 3.2 of the protocol gives them."""
    columns = {"aircraft": "variant"}
    parts = {
        "aircraft": ("train", "validation", "test"),
        "food101": ("train", "validation"),
        "stanford_cars": ("train", "test", "contrast", "gaussian_noise"),
        "sun397": ("train", "test"),
    }
    for part in parts[name]:
        label = columns.get(name, "label")
        parquet(tmp_path / "x" / f"{part}.parquet", [0, 1], label_column=label)
    shipped = cards.card(name)
    (entry,) = [one for one in shipped.sources if one.kind == "hub"]
    listing = HubSource(entry, shipped, Place(None, online=True)).listing()
    train, test = partition.divide(shipped, listing.parts, entry.title)
    assert (len(train), len(test)) == (4 if name == "aircraft" else 2, 2)
    assert listing.classes == ("cat", "dog")

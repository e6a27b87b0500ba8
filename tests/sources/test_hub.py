"""The Hub source, with the network and `datasets` replaced by local stand-ins."""

from __future__ import annotations

from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest

from sparse_transfer.decoding import decode
from sparse_transfer.errors import UserError
from sparse_transfer.examples import Place, SourceUnavailable
from sparse_transfer.sources.hub import HubSource
from tests.made_images import card, parquet, picture

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

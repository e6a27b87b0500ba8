"""torchvision's classes, on small sets in its own layouts and on a stand-in class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from sparse_transfer import plugins
from sparse_transfer.decoding import DamagedImage, decode
from sparse_transfer.errors import UserError
from sparse_transfer.examples import Place, SourceUnavailable
from sparse_transfer.sources.torchvision_source import TorchvisionSource
from tests.made_images import card, picture

DTD = {
    "torchvision": "DTD",
    "parts": {
        "train": {"split": "train"},
        "validation": {"split": "val"},
        "test": {"split": "test"},
    },
    "marker": "dtd/dtd",
}


def source(entry: dict[str, Any], root: Path | None, online: bool = False) -> TorchvisionSource:
    made = card(sources=[entry])
    return TorchvisionSource(made.sources[0], made, Place(root, online=online))


@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    """Three parts of one image for each of two textures, as torchvision's DTD lays them out."""
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for number, part in enumerate(("train", "val", "test")):
        names = [f"{texture}/{texture}_{number}.jpg" for texture in ("woven", "dotted")]
        (base / "labels" / f"{part}1.txt").write_text("\n".join(names) + "\n")
        for offset, name in enumerate(names):
            (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            picture(2 * number + offset, (16, 16)).save(base / "images" / name, quality=100)
    return tmp_path


def test_plugin_is_called_torchvision() -> None:
    assert "torchvision" in plugins.names("source")
    assert "torchvision_source" not in plugins.names("source")


def test_dtd_layout(dtd: Path) -> None:
    found = source(DTD, dtd).listing()
    assert found.classes == ("dotted", "woven")
    assert sorted(found.parts) == ["test", "train", "validation"]
    assert found.parts["train"].labels.tolist() == [1, 0]
    assert found.parts["test"].ids == ["test/0000000", "test/0000001"]
    stored = Image.open(dtd / "dtd" / "dtd" / "images" / "woven" / "woven_2.jpg")
    decoded = decode(lambda: found.parts["test"].fetch(0))
    assert np.array_equal(np.asarray(decoded), np.asarray(stored))


def test_folder_torchvision_below_the_root(dtd: Path, tmp_path: Path) -> None:
    below = tmp_path / "root" / "torchvision"
    below.mkdir(parents=True)
    (dtd / "dtd").rename(below / "dtd")
    assert source(DTD, tmp_path / "root").presence().state == "here"
    assert len(source(DTD, tmp_path / "root").listing().parts) == 3


def test_flowers_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    for number in range(1, 4):
        picture(number).save(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": [[7, 1, 7]]})
    savemat(base / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 3]], "tstid": [[2, 1]]})
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    parts = {"train": {"split": "train"}, "test": {"split": "test"}}
    entry = {"torchvision": "Flowers102", "parts": parts, "marker": "flowers-102/jpg"}
    found = source(entry, tmp_path).listing()
    assert len(found.classes) == 102
    assert found.parts["train"].labels.tolist() == [6, 0]
    assert found.parts["test"].labels.tolist() == [0, 6]


def test_pets_layout(tmp_path: Path) -> None:
    base = tmp_path / "oxford-iiit-pet"
    for folder in ("images", "annotations"):
        (base / folder).mkdir(parents=True)
    for name in ("Abyssinian_1", "beagle_2"):
        picture(1).save(base / "images" / f"{name}.jpg")
    lines = "Abyssinian_1 1 1 1\nbeagle_2 2 2 1\n"
    for part in ("trainval", "test"):
        (base / "annotations" / f"{part}.txt").write_text(lines)
    entry = {
        "torchvision": "OxfordIIITPet",
        "parts": {"train": {"split": "trainval"}, "test": {"split": "test"}},
        "marker": "oxford-iiit-pet/images",
    }
    found = source(entry, tmp_path).listing()
    assert found.classes == ("Abyssinian", "Beagle")
    assert found.parts["test"].labels.tolist() == [0, 1]


def test_caltech_layout_drops_the_background(tmp_path: Path) -> None:
    base = tmp_path / "caltech101" / "101_ObjectCategories"
    for name, count in (("BACKGROUND_Google", 2), ("ant", 2), ("bass", 1)):
        (base / name).mkdir(parents=True)
        for number in range(1, count + 1):
            picture(number).save(base / name / f"image_{number:04d}.jpg")
    (tmp_path / "caltech101" / "Annotations").mkdir()
    entry = {
        "torchvision": "Caltech101",
        "parts": {"all": {"target_type": "category"}},
        "marker": "caltech101/101_ObjectCategories",
    }
    found = source(entry, tmp_path).listing()
    assert found.classes == ("ant", "bass")
    assert found.parts["all"].labels.tolist() == [0, 0, 1]
    assert decode(lambda: found.parts["all"].fetch(2)).mode == "RGB"


def test_damaged_file_is_the_images_fault(dtd: Path) -> None:
    part = source(DTD, dtd).listing().parts["test"]
    path = dtd / "dtd" / "dtd" / "images" / "woven" / "woven_2.jpg"
    path.write_bytes(path.read_bytes()[:150])
    with pytest.raises(DamagedImage):
        decode(lambda: part.fetch(0))


def test_broken_layout_is_a_user_error(dtd: Path) -> None:
    (dtd / "dtd" / "dtd" / "labels" / "val1.txt").unlink()
    with pytest.raises(UserError, match="cannot be opened"):
        source(DTD, dtd).listing()


def test_fingerprint_sees_the_files(dtd: Path) -> None:
    before = source(DTD, dtd).fingerprint()
    picture(0).save(dtd / "dtd" / "dtd" / "images" / "woven" / "more.jpg")
    assert source(DTD, dtd).fingerprint() != before


def test_presence_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    willing = DTD | {"download": True}
    assert "no data root" in source(DTD, None).presence().detail
    assert source(DTD, tmp_path, online=True).presence().state == "missing"
    assert "SPARSE_TRANSFER_DOWNLOAD=1" in source(willing, tmp_path, online=True).presence().detail
    monkeypatch.setenv("SPARSE_TRANSFER_DOWNLOAD", "1")
    assert source(willing, tmp_path, online=True).presence().state == "download"
    assert "switched off" in source(willing, tmp_path).presence().detail


def test_failed_download_leaves_no_folder_that_looks_like_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object, root: str, download: bool, **__: object) -> None:
        assert download
        (Path(root) / "dtd" / "dtd").mkdir(parents=True)
        raise OSError("name or service not known")

    monkeypatch.setattr(datasets, "DTD", offline)
    with pytest.raises(SourceUnavailable, match="name or service not known"):
        source(DTD | {"download": True}, tmp_path, online=True).listing()
    assert list(tmp_path.iterdir()) == []


def test_unknown_class_and_missing_arguments(dtd: Path) -> None:
    with pytest.raises(UserError, match="Did you mean DTD"):
        source(DTD | {"torchvision": "DTDD"}, dtd).listing()
    with pytest.raises(UserError, match="incomplete"):
        source({"torchvision": "DTD"}, dtd)

"""The file of measurements: whose it is, what is read of it, and that others may write it too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparse_transfer.sparse import library, tuning
from sparse_transfer.sparse.tuning import Timing, Tuner

pytestmark = pytest.mark.kernels


def timed(tuner: Tuner, key: str, seconds: float) -> Timing:
    return tuner.timed("test", [key], lambda: Timing(seconds, seconds))


def test_measurements_are_those_of_the_compiled_files(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path))
    kernels = tmp_path / "kernels.so"
    monkeypatch.setattr(library, "_file", lambda level: kernels)
    names = set()
    try:
        for content in (b"one", b"two", b"one"):
            kernels.write_bytes(content)
            library.digest.cache_clear()
            names.add(tuning.cache_file())
    finally:
        library.digest.cache_clear()
    assert len(names) == 2


def test_two_processes_keep_what_both_measured(tmp_path: Path):
    first, second = (Tuner(library.current(), tmp_path / "cache.json") for _ in range(2))
    timed(first, "a", 1.0)
    timed(second, "b", 2.0)
    first.save()
    second.save()
    known = Tuner(library.current(), tmp_path / "cache.json")
    assert timed(known, "a", 9.0).dense == 1.0 and timed(known, "b", 9.0).dense == 2.0


CHOICE = {"kind": "sparse", "tile": [1, 8], "blocks": 1, "seconds": 1.0, "dense_seconds": 1.0}


@pytest.mark.parametrize(
    "entry",
    [
        {},
        [],
        None,
        3,
        {"dense": "x", "sparse": 1},
        {"dense": 1.0},
        {"dense": 0, "sparse": 1},
        CHOICE,
    ],
)
def test_an_entry_that_does_not_fit_is_unknown(tmp_path: Path, entry):
    path = tmp_path / "cache.json"
    tuner = Tuner(library.current(), path)
    timed(tuner, "a", 1.0)
    timed(tuner, "b", 2.0)
    tuner.save()
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, next(iter(content)): entry}))
    again = Tuner(library.current(), path)
    assert timed(again, "a", 9.0).dense == 9.0 and timed(again, "b", 9.0).dense == 2.0


@pytest.mark.parametrize(
    "change", [{"tile": None}, {"tile": [0, 8]}, {"tile": [8]}, {"kind": "x"}, {"blocks": 0}]
)
def test_a_choice_that_does_not_fit_is_measured_again(monkeypatch, tmp_path: Path, change):
    class Problem:
        def key(self) -> str:
            return "one"

    own = tuning.Choice("dense", (2, 2), 1)
    monkeypatch.setattr(Tuner, "_measure", lambda *_: own)
    path, key = tmp_path / "cache.json", f"{library.current().level} one"
    path.write_text(json.dumps({key: CHOICE}))
    kept = tuning.Choice("sparse", (1, 8), 1, 1.0, 1.0)
    assert Tuner(library.current(), path).choose(Problem()) == kept  # pyright: ignore
    changed = {name: v for name, v in {**CHOICE, **change}.items() if v is not None}
    path.write_text(json.dumps({key: changed}))
    assert Tuner(library.current(), path).choose(Problem()) == own  # pyright: ignore


@pytest.mark.parametrize("content", [b"[]", b"3", b"{", b"\xff\xfe"])
def test_a_foreign_file_is_as_none(tmp_path: Path, content: bytes):
    path = tmp_path / "cache.json"
    path.write_bytes(content)
    tuner = Tuner(library.current(), path)
    assert timed(tuner, "a", 1.0).dense == 1.0
    tuner.save()
    assert len(json.loads(path.read_text())) == 1


def test_a_folder_that_cannot_be_written_is_said_and_no_error(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("no folder")
    tuner = Tuner(library.current(), tmp_path / "file" / "cache.json")
    timed(tuner, "a", 1.0)
    tuner.save()
    assert "not kept" in caplog.text and "SPARSE_TRANSFER_CACHE" in caplog.text
    assert timed(tuner, "a", 9.0).dense == 1.0

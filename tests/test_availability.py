"""`check --tasks`: every card is here, broken, to be downloaded or missing, with the way to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_transfer import cards
from sparse_transfer.availability import survey
from tests.made_images import folder, parquet
from tests.test_main import call

TWELVE = ("aircraft", "birdsnap", "caltech101", "caltech256", "cifar10", "cifar100", "dtd",
          "flowers102", "food101", "pets", "stanford_cars", "sun397")  # fmt: skip


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path / "cache"))


def test_without_data_the_twelve_are_missing_and_say_how_to_get_them(tmp_path: Path) -> None:
    for one in survey(TWELVE, tmp_path, tmp_path / "cache"):
        assert one.state == "missing" and len(one.manual) > 60, one
        assert len(one.found) == len(cards.card(one.name).sources)


def test_with_a_network_the_hub_copies_could_be_fetched(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = {one.name: one.state for one in survey(TWELVE, tmp_path, tmp_path / "cache")}
    by_hand = {name for name, state in found.items() if state == "missing"}
    assert by_hand == {"birdsnap", "caltech256"}  # those without a usable copy on the Hub


def test_built_in_data_is_here_and_needs_no_way(tmp_path: Path) -> None:
    (one,) = survey(["digits"], None, tmp_path)
    assert (one.state, one.manual) == ("here", "")


def test_data_of_wrong_size_is_broken_and_says_what_was_found(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(101)]
    for part in ("train", "valid"):
        folder(tmp_path / "food-101", {f"{part}/{name}": 1 for name in names})
    (one,) = survey(["food101"], tmp_path, tmp_path / "cache")
    assert one.state == "broken"
    assert "101 training and 101 test images; the card says 75,750 and 25,250" in one.found[0]
    assert "food-101.tar.gz" in one.manual


def test_a_cut_off_file_is_broken(tmp_path: Path) -> None:
    for part in ("train", "test"):
        path = parquet(tmp_path / "clothing_small" / f"{part}.parquet", [0, 1])
    path.write_bytes(path.read_bytes()[:200])
    (one,) = survey(["clothing_small"], tmp_path, tmp_path / "cache")
    assert one.state == "broken" and "Parquet" in one.found[0]


def test_the_verb_lists_all_cards_and_fails_on_broken_data(tmp_path: Path, capsys) -> None:
    arguments = ["--tasks", "--data-root", str(tmp_path), "--runs", str(tmp_path / "runs")]
    assert call("check", *arguments) == 0
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines() if not line.startswith(" ")]
    assert [line[0] for line in lines[:-1]] == cards.names()
    assert ["sun397", "missing"] in [line[:2] for line in lines]
    assert "By hand: Unpack SUN397.tar.gz" in said and "https://vision.princeton.edu" in said
    folder(tmp_path / "birdsnap", {"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 1})
    assert call("check", *arguments) == 2
    assert "birdsnap" in capsys.readouterr().out
    assert call("check") == 2 and call("check", "quickstart", "--tasks") == 2

"""Cards are strict, found by name or path, and never pass for another data set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sparse_transfer import cards
from sparse_transfer.errors import UserError
from tests.made_images import card


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes ./tasks/NAME.yaml in a fresh working directory."""
    monkeypatch.chdir(tmp_path)

    def _write(name: str, text: str) -> Path:
        path = tmp_path / "tasks" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write


def test_shipped_cards_are_listed_without_being_read() -> None:
    assert {"cifar10", "digits", "imagenet1k_halves", "shapes"} <= set(cards.names())


def test_own_card_is_found_by_name_and_by_path(write) -> None:
    path = write("birds", "name: birds\nfolder: photos\n")
    assert "birds" in cards.names()
    by_name, by_path = cards.card("birds"), cards.card(str(path))
    assert by_name == by_path
    assert by_name.sources[0].title == "folder photos"
    assert by_name.folder == path.parent
    assert cards.path("birds").resolve() == path


def test_shipped_card_has_no_folder_of_its_own() -> None:
    assert cards.card("digits").folder is None


def test_unknown_task_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean .*caltech101"):
        cards.card("caltech01")


def test_unknown_field_is_refused_with_line_and_suggestion(write) -> None:
    path = write("birds", "name: birds\nfolder: photos\nmetrik: top1\n")
    with pytest.raises(
        UserError, match=rf"{path.name}:3: metrik: unknown field; did you mean metric"
    ):
        cards.card("birds")


def test_unknown_field_of_a_source_is_refused(write) -> None:
    write("birds", "name: birds\nsources:\n  - hub: a/b\n    revison: abc\n")
    with pytest.raises(
        UserError, match=r":4: sources\.0\.revison: unknown field; did you mean revision"
    ):
        cards.card("birds")


def test_all_mistakes_are_told_at_once(write) -> None:
    write("birds", "name: Birds!\nfolder: photos\nclasses: 1\nmetric: recall\n")
    with pytest.raises(UserError, match="3 mistakes") as caught:
        cards.card("birds")
    assert all(word in caught.value.why for word in ("name", "classes", "metric"))


def test_key_given_twice_is_refused(write) -> None:
    write("birds", "name: birds\nfolder: a\nfolder: b\n")
    with pytest.raises(UserError, match="twice"):
        cards.card("birds")


def test_kind_of_source_is_suggested(write) -> None:
    write("birds", "name: birds\nsources: [{foldr: photos}]\n")
    with pytest.raises(UserError, match="did you mean `folder`"):
        cards.card("birds")


def test_card_without_source_is_refused(write) -> None:
    write("birds", "name: birds\n")
    with pytest.raises(UserError, match="no source"):
        cards.card("birds")


def test_own_card_may_not_take_a_shipped_name(write, tmp_path: Path) -> None:
    other = tmp_path / "mine.yaml"
    other.write_text("name: cifar10\nfolder: photos\n", encoding="utf-8")
    with pytest.raises(UserError, match="ships with"):
        cards.card(str(other))
    write("cifar10", "name: cifar10\nfolder: photos\n")
    with pytest.raises(UserError, match="ships with"):
        cards.card("cifar10")
    assert cards.card("digits").folder is None  # the others stay usable


def test_name_and_file_must_agree(write) -> None:
    write("birds", "name: bird\nfolder: photos\n")
    with pytest.raises(UserError, match="calls itself `bird`"):
        cards.card("birds")


@pytest.mark.parametrize(
    ("short", "rule", "detail"),
    [
        ("official", "official", {"train": "train", "test": "test"}),
        ("merge", "merge", {}),
        ("alternate", "alternate", {}),
        ({"first_per_class": 30}, "first_per_class", {"per_class": 30}),
        ({"stratified": {"test": 0.25}}, "stratified", {"test_share": 0.25}),
        ({"test": "validation"}, "official", {"test": "validation"}),
    ],
)
def test_short_forms_of_split_rules(short: object, rule: str, detail: dict[str, object]) -> None:
    found = card(folder="x", split=short).split
    assert found.rule == rule
    assert {name: getattr(found, name) for name in detail} == detail


@pytest.mark.parametrize(
    "wrong",
    ["first_per_class", "stratified", {"stratified": {"train": 0.5}}, {"stratified": {"test": 0}}],
)
def test_incomplete_split_rules_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="write"):
        card(folder="x", split=wrong)


def test_mean_needs_std() -> None:
    with pytest.raises(ValueError, match="both"):
        card(folder="x", mean=(0.5, 0.5, 0.5))


def test_reading_cards_imports_neither_torch_nor_datasets() -> None:
    code = (
        "import sys; from sparse_transfer import cards; [cards.card(n) for n in cards.names()];"
        "print(sorted({'torch', 'datasets', 'sklearn', 'PIL', 'pyarrow'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

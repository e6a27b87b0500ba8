"""What `ls`, `show` and `cp` print."""

from __future__ import annotations

import pytest

from sparse_transfer import experiment_file, listing, plugins
from sparse_transfer.commands.catalogue import LISTS
from sparse_transfer.errors import UserError


@pytest.mark.parametrize("what", LISTS)
def test_every_entry_has_one_line(what: str):
    rows = listing.rows(what)
    assert rows and len({name for name, _ in rows}) == len(rows)
    assert all(text.strip() and "\n" not in text for _, text in rows)


@pytest.mark.parametrize("what", [what for what in LISTS if what != "models"])
def test_whatever_is_listed_can_be_shown(what: str):
    for name, _ in listing.rows(what):
        assert listing.details(name).strip()


def test_cards_that_cannot_be_used_do_not_hide_the_others(tmp_path, monkeypatch):
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/digits.yaml").write_text("name: digits\nfolder: photos\n")
    (tmp_path / "tasks/birds.yaml").write_text("name: birds\nfolder: photos\nmetrik: top1\n")
    shipped = dict(listing.rows("tasks"))
    monkeypatch.chdir(tmp_path)
    found = dict(listing.rows("tasks"))
    assert "ships with sparse-transfer" in found["digits"] and "metrik" in found["birds"]
    assert {n: t for n, t in found.items() if n not in ("digits", "birds")} == {
        n: t for n, t in shipped.items() if n != "digits"
    }
    assert "name: shapes" in listing.details("shapes")
    with pytest.raises(UserError, match="ships with"):
        listing.details("digits")


def test_options_of_a_pruner_are_shown_with_their_defaults():
    text = listing.details("gmp")
    assert "1710.01878" in text
    (line,) = [line for line in text.splitlines() if line.strip().startswith("updates")]
    assert "50" in line
    assert "no options" in listing.details("dense")


def test_the_small_models_can_be_built_by_the_listed_name():
    names = [name for name, _ in listing.rows("models")]
    import timm

    from sparse_transfer import small_models

    own = [name for name in names if name in small_models.NAMES]
    assert len(own) == len(small_models.NAMES) and all(timm.is_model(name) for name in own)


@pytest.mark.parametrize("name", experiment_file.config_names())
def test_a_copied_experiment_is_the_experiment_whatever_a_recipe_is_called(name: str):
    shipped = experiment_file.config_path(name).read_text("utf-8").splitlines()
    copied = listing.config_text(name, "My Study").splitlines()
    changed = [(a, b) for a, b in zip(shipped, copied, strict=True) if a != b]
    assert (f"name: {name}", "name: my-study") in changed
    assert all(old.startswith("#") for old, _ in changed if not old.startswith("name:"))


def test_a_recipe_can_be_copied():
    assert "kind: linear" in listing.config_text("paper-linear", "x")


def test_unknown_names_get_near_ones():
    with pytest.raises(UserError, match="fggp"):
        listing.details("fgpg")
    with pytest.raises(UserError) as caught:
        listing.details("nosuchthing")
    names = caught.value.hint.removeprefix("Known: ").rstrip(" .…").split(", ")
    assert "acdc" in names and len(names) == len(set(names))
    with pytest.raises(UserError, match="paper-linear"):
        listing.config_text("paper-liner", "x")
    with pytest.raises(UserError, match="quickstart"):
        listing.config_text("quikstart", "x")


def test_every_plugin_says_what_it_is():
    for kind in plugins.KINDS:
        assert all(plugins.summary(kind, name) for name in plugins.names(kind))


def test_options_are_shown_with_what_they_may_be():
    shown = listing.details("rigl")
    assert "  allocation = 'erk': 'erk' | 'uniform'\n" in shown
    assert "  rate = 0.3: float (≥ 0, ≤ 1)\n" in shown
    assert "  interval = None: int | None (≥ 2, steps; overrides `updates`)\n" in shown
    shown = listing.details("progressive")
    assert "'constant' | 'step' | 'cosine' | 'cubic' | 'warmup' | 'learning_rate'" in shown
    assert "  start = 0.1: 0 to below 1\n" in shown and "Fraction" not in shown


def test_a_backend_that_cannot_be_used_here_says_why(monkeypatch):
    from sparse_transfer.sparse import library

    assert "not available" not in dict(listing.rows("backends"))["dense"]
    monkeypatch.setattr(library, "_file", lambda level: None)
    said = dict(listing.rows("backends"))["sparse"]
    assert said.startswith("The package's own") and "[not available here: " in said

"""Built-in sets: real digits, drawn shapes and textures."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sparse_transfer.cards import TaskCard
from sparse_transfer.errors import UserError
from sparse_transfer.examples import Place
from sparse_transfer.sources.builtin import open_source
from tests.made_images import card


def source(name: str):
    made: TaskCard = card(builtin=name)
    return open_source(made.sources[0], made, Place(None))


def test_digits_are_scikit_learns() -> None:
    part = source("digits").listing().parts["all"]
    bunch = load_digits()
    assert part.labels.tolist() == bunch.target.tolist()
    image = np.asarray(part.fetch(5))
    assert image.shape == (8, 8)
    assert np.array_equal(np.round(image * (16 / 255)), bunch.images[5])


@pytest.mark.parametrize(
    ("name", "train", "test"), [("shapes", 6000, 1000), ("textures", 500, 1000)]
)
def test_drawn_sets_are_balanced_and_their_parts_differ(name: str, train: int, test: int) -> None:
    found = source(name).listing()
    sizes = {part: len(listed.labels) for part, listed in found.parts.items()}
    assert sizes == {"train": train, "test": test}
    for part in found.parts.values():
        counts = np.bincount(part.labels, minlength=len(found.classes))
        assert counts.max() - counts.min() <= 1
    first, other = (np.asarray(found.parts[part].fetch(0)) for part in ("train", "test"))
    assert not np.array_equal(first, other)


def test_unknown_set_suggests() -> None:
    with pytest.raises(UserError, match="Did you mean shapes"):
        source("shape")


def test_fingerprints_tell_sets_apart() -> None:
    assert source("shapes").fingerprint() != source("textures").fingerprint()
    assert source("shapes").presence().state == "here"

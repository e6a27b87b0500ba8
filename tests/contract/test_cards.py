"""What every shipped task card promises, whichever it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparse_transfer import cards, data, plugins
from sparse_transfer.config import TaskRef
from sparse_transfer.errors import UserError
from sparse_transfer.imports import results

NAMES = sorted(path.stem for path in cards.card_folder().glob("*.yaml"))

# The study's data sets: classes, train, test, metric, learning rate (protocol.md, section 3).
PUBLISHED = {
    "cifar10": (10, 50_000, 10_000, "top1", 0.001),
    "cifar100": (100, 50_000, 10_000, "top1", 0.001),
    "caltech101": (101, 3_030, 5_647, "mean_per_class", 0.001),
    "dtd": (47, 3_760, 1_880, "top1", 0.001),
    "flowers102": (102, 2_040, 6_149, "mean_per_class", 0.001),
    "pets": (37, 3_680, 3_669, "mean_per_class", 0.001),
    "aircraft": (100, 6_667, 3_333, "mean_per_class", 0.01),
    "birdsnap": (500, None, 8_171, "top1", 0.001),  # the training size is not verified
    "caltech256": (257, 15_420, 15_187, "mean_per_class", 0.001),
    "stanford_cars": (196, 8_144, 8_041, "top1", 0.01),
    "food101": (101, 75_750, 25_250, "top1", 0.001),
    "sun397": (397, 19_850, 19_850, "top1", 0.001),
}
BUILT_IN = ("digits", "shapes", "textures")
IMAGENET = {  # test only: numbers of test images
    "imagenet1k": 50_000,
    "imagenet_real": 46_837,
    "imagenet_v2_matched": 10_000,
    "imagenet_v2_threshold": 10_000,
    "imagenet_v2_top": 10_000,
}
ABSENT = [*PUBLISHED, *IMAGENET]
PREFERENCE = ["torchvision", "hub", "parquet", "folder"]


@pytest.mark.parametrize("name", NAMES)
def test_card_is_complete(name: str) -> None:
    card = cards.card(name)
    assert card.title and card.licence and card.imagenet_overlap and card.sizes and card.classes
    assert card.citation or card.sources[0].kind == "builtin"
    assert all(source.kind in plugins.names("source") for source in card.sources)
    header = cards.path(name).read_text(encoding="utf-8").partition("\n")[0]
    assert header.startswith("# ") and header.endswith((".", "pixels."))


@pytest.mark.parametrize("name", PUBLISHED)
def test_card_states_the_published_facts(name: str) -> None:
    card = cards.card(name)
    assert card.sizes and card.paper
    found = (card.classes, card.sizes.train, card.sizes.test, card.metric, card.paper.full_lr)
    assert found == PUBLISHED[name]
    assert card.mean and card.std and card.manual and card.homepage and card.traps
    kinds = [source.kind for source in card.sources]
    assert kinds == sorted(kinds, key=PREFERENCE.index) and len(kinds) > 1
    assert "SPARSE_TRANSFER_DATA" in card.manual


def test_the_twelve_are_those_that_the_importer_knows() -> None:
    assert {name: facts[3] for name, facts in PUBLISHED.items()} == results.METRICS
    for key, (task, _) in results.TASKS.items():
        paper = cards.card(task).paper
        assert paper is not None and paper.key.lower() == key


@pytest.mark.parametrize(("name", "images"), IMAGENET.items())
def test_imagenet_variants_are_test_only_and_say_their_order(name: str, images: int) -> None:
    card = cards.card(name)
    assert card.sizes and (card.sizes.train, card.sizes.test) == (0, images)
    assert card.classes == 1000 and card.metric == "top1" and card.manual
    order = "number" if "v2" in name else "wnid"
    assert {source.class_order for source in card.sources} == {order}


@pytest.mark.parametrize("name", NAMES)
def test_only_the_published_sets_claim_the_study(name: str) -> None:
    assert (cards.card(name).paper is not None) == (name in PUBLISHED)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_task_opens_without_files(name: str, tmp_path: Path) -> None:
    _opens(name, None, tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("name", [n for n in NAMES if n not in (*ABSENT, *BUILT_IN)])
def test_real_task_opens(name: str, shared: Path, tmp_path: Path) -> None:
    _opens(name, shared / "data" / "datasets", tmp_path)


@pytest.mark.real
@pytest.mark.parametrize("name", ABSENT)
def test_no_subset_passes_for_a_published_set(name: str, shared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not available"):
        data.open_task(TaskRef(name=name), data_root=shared / "data" / "datasets", cache=tmp_path)


def _opens(name: str, data_root: Path | None, cache: Path) -> None:
    ref = TaskRef(name=name)
    task = data.open_task(ref, data_root=data_root, cache=cache)
    card = task.card
    assert card.sizes
    assert (len(task.train), len(task.test)) == (card.sizes.train, card.sizes.test)
    assert len(task.classes) == len(set(task.classes)) == card.classes
    ids = np.concatenate([task.train.ids, task.test.ids])
    assert len(set(ids.tolist())) == len(ids)
    assert data.split_hash(ref, data_root, cache) == task.split_hash
    assert data.split_hash(ref, data_root, cache) == task.split_hash  # from the cache
    assert task.test.image(0).mode == "RGB"
    assert data.availability(card, data_root)[0].presence.state == "here"

"""The twelve tasks of the study on made data in the published layouts.

Each test lays out tiny images as the real archive does, opens the *shipped* card with smaller
numbers, and looks which image stands in which part under which class. An image's colour says what
it is: red counts classes, green counts images.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from sparse_transfer import cards, data
from sparse_transfer.cards import Sizes, TaskCard
from sparse_transfer.config import TaskRef
from sparse_transfer.errors import UserError


def draw(path: Path, red: int, green: int) -> None:
    """An image whose colour is (red × 20, green × 20, 200), lossless though called `.jpg`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (20 * red, 20 * green, 200)).save(path, format="PNG")


def seen(split: data.Split) -> list[tuple[int, int, int]]:
    """(label, class by colour, image by colour) of every example."""
    found = []
    for row in range(len(split)):
        red, green, _ = np.asarray(split.image(row))[0, 0]
        found.append((int(split.labels[row]), int(red) // 20, int(green) // 20))
    return found


def shrunk(name: str, classes: int, train: int | None, test: int, **changes: object) -> TaskCard:
    """The shipped card for a smaller set of the same shape."""
    sizes = Sizes(train=train, test=test)
    return cards.card(name).model_copy(update={"classes": classes, "sizes": sizes, **changes})


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[TaskCard], data.Task]:
    """Opens a changed copy of a shipped card on what lies below tmp_path."""

    def _open(card: TaskCard) -> data.Task:
        monkeypatch.setattr(data, "card", lambda _: card)
        return data.open_task(
            TaskRef(name=card.name), data_root=tmp_path, cache=tmp_path / ".cache"
        )

    return _open


def write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_aircraft_variants_of_trainval_and_test(tmp_path: Path, opened) -> None:
    base = tmp_path / "fgvc-aircraft-2013b" / "data"
    write(base / "variants.txt", ["707-320", "A300B4"])
    for red, green, image in ((0, 0, "1"), (1, 0, "2"), (0, 1, "3"), (1, 1, "4")):
        draw(base / "images" / f"{image}.jpg", red, green)
    # a variant's name may hold spaces; train and val alone must not be read
    write(base / "images_variant_trainval.txt", ["2 A300B4", "1 707-320"])
    write(base / "images_variant_test.txt", ["3 707-320", "4 A300B4"])
    task = opened(shrunk("aircraft", 2, 2, 2))
    assert task.classes == ("707-320", "A300B4")
    assert seen(task.train) == [(1, 1, 0), (0, 0, 0)]
    assert seen(task.test) == [(0, 0, 1), (1, 1, 1)]


def test_aircraft_folder_merges_train_and_val(tmp_path: Path, opened) -> None:
    for green, part in enumerate(("train", "val", "test")):
        for red, name in enumerate(("707-320", "A300B4")):
            draw(tmp_path / "aircraft" / part / name / "x.jpg", red, green)
    task = opened(shrunk("aircraft", 2, 4, 2))
    assert {green for _, _, green in seen(task.train)} == {0, 1}
    assert seen(task.test) == [(0, 0, 2), (1, 1, 2)]


def test_birdsnap_folders_and_an_unknown_number_of_training_images(tmp_path, opened) -> None:
    for part, count in (("train", 3), ("test", 2)):
        for red, name in enumerate(("Acadian_Flycatcher", "Zone_tailed_Hawk")):
            for green in range(count):
                draw(tmp_path / "birdsnap" / part / name / f"{green}.jpg", red, green)
    task = opened(shrunk("birdsnap", 2, None, 4))
    assert (len(task.train), len(task.test)) == (6, 4)
    assert seen(task.test) == [(0, 0, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)]
    with pytest.raises(UserError, match="4 test images; the card says 8,171 test images"):
        opened(cards.card("birdsnap").model_copy(update={"classes": 2}))


def caltech101(root: Path, counts: dict[str, int]) -> None:
    base = root / "caltech101"
    (base / "Annotations").mkdir(parents=True)
    draw(base / "101_ObjectCategories" / "BACKGROUND_Google" / "image_0001.jpg", 9, 9)
    for red, (name, count) in enumerate(counts.items()):
        for green in range(count):
            path = base / "101_ObjectCategories" / name / f"image_{green + 1:04d}.jpg"
            draw(path, red, green)


def test_caltech101_first_images_of_each_class_without_background(tmp_path, opened) -> None:
    caltech101(tmp_path, {"ant": 5, "bass": 4})
    rule = cards.card("caltech101").split.model_copy(update={"per_class": 3})
    task = opened(shrunk("caltech101", 2, 6, 3, split=rule))
    assert task.classes == ("ant", "bass")
    assert seen(task.train) == [(0, 0, g) for g in range(3)] + [(1, 1, g) for g in range(3)]
    assert seen(task.test) == [(0, 0, 3), (0, 0, 4), (1, 1, 3)]


def caltech256(base: Path, counts: dict[str, int]) -> None:
    for red, (name, count) in enumerate(counts.items()):
        for green in range(count):
            draw(base / name / f"{red + 1:03d}_{green + 1:04d}.jpg", red, green)


@pytest.mark.parametrize("place", ["caltech256/256_ObjectCategories", "256_ObjectCategories"])
def test_caltech256_first_images_of_each_class_with_clutter(tmp_path, opened, place) -> None:
    caltech256(tmp_path / place, {"001.ak47": 5, "002.flag": 3, "003.clutter": 4})
    rule = cards.card("caltech256").split.model_copy(update={"per_class": 2})
    task = opened(shrunk("caltech256", 3, 6, 6, split=rule))
    assert task.classes == ("001.ak47", "002.flag", "003.clutter")
    assert seen(task.train) == [(c, c, g) for c in range(3) for g in range(2)]
    assert seen(task.test) == [(0, 0, 2), (0, 0, 3), (0, 0, 4), (1, 1, 2), (2, 2, 2), (2, 2, 3)]


def annotated(path: Path, rows: Sequence[tuple[str, int]]) -> None:
    kind = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    path.parent.mkdir(parents=True, exist_ok=True)
    made = np.array([(1, label, name) for name, label in rows], dtype=kind)
    savemat(path, {"annotations": made.reshape(1, -1)})


def test_cars_devkit_counts_classes_from_one(tmp_path: Path, opened) -> None:
    base = tmp_path / "stanford_cars"
    names = np.array(["AM General Hummer", "Acura RL"], dtype=object)
    annotated(base / "devkit" / "cars_train_annos.mat", [("00001.jpg", 2), ("00002.jpg", 1)])
    annotated(base / "cars_test_annos_withlabels.mat", [("00001.jpg", 1), ("00002.jpg", 2)])
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names.reshape(1, -1)})
    draw(base / "cars_train" / "00001.jpg", 1, 0)
    draw(base / "cars_train" / "00002.jpg", 0, 0)
    draw(base / "cars_test" / "00001.jpg", 0, 1)
    draw(base / "cars_test" / "00002.jpg", 1, 1)
    task = opened(shrunk("stanford_cars", 2, 2, 2))
    assert task.classes == ("AM General Hummer", "Acura RL")
    assert seen(task.train) == [(1, 1, 0), (0, 0, 0)]
    assert seen(task.test) == [(0, 0, 1), (1, 1, 1)]


@pytest.mark.parametrize(("name", "labels"), [("cifar10", "labels"), ("cifar100", "fine_labels")])
def test_cifar_batches(tmp_path: Path, opened, monkeypatch, name: str, labels: str) -> None:
    # the published files are pickles; torchvision reads them, so the test has to write some
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    base = tmp_path / folder
    base.mkdir()
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    train = ["train"] if name == "cifar100" else [f"data_batch_{n}" for n in range(1, 6)]
    test = "test" if name == "cifar100" else "test_batch"
    for green, file in enumerate((*train, test)):
        pixels = np.zeros((2, 3, 32, 32), np.uint8)
        pixels[:, 0], pixels[:, 1] = np.array([1, 0])[:, None, None] * 20, 20 * green
        entry = {"data": pixels.reshape(2, -1), labels: [1, 0], "coarse_labels": [0, 0]}
        (base / file).write_bytes(pickle.dumps(entry))
    meta = {"label_names": ["apple", "bear"], "fine_label_names": ["apple", "bear"]}
    (base / ("meta" if name == "cifar100" else "batches.meta")).write_bytes(pickle.dumps(meta))
    task = opened(shrunk(name, 2, 2 * len(train), 2))
    assert task.classes == ("apple", "bear")
    assert seen(task.test) == [(1, 1, len(train)), (0, 0, len(train))]
    assert [label for label, _, _ in seen(task.train)] == [1, 0] * len(train)


def test_dtd_first_partition_with_its_validation_part(tmp_path: Path, opened) -> None:
    base = tmp_path / "dtd" / "dtd"
    for partition in (1, 2):
        for green, part in enumerate(("train", "val", "test")):
            shown = green if partition == 1 else 2 - green  # the second partition turns it round
            files = [f"{name}/{name}_{shown}.jpg" for name in ("banded", "woven")]
            write(base / "labels" / f"{part}{partition}.txt", files)
    for red, name in enumerate(("banded", "woven")):
        for green in range(3):
            draw(base / "images" / name / f"{name}_{green}.jpg", red, green)
    task = opened(shrunk("dtd", 2, 4, 2))
    assert seen(task.train) == [(0, 0, 0), (1, 1, 0), (0, 0, 1), (1, 1, 1)]
    assert seen(task.test) == [(0, 0, 2), (1, 1, 2)]


def test_flowers_train_and_validation_together(tmp_path: Path, opened, monkeypatch) -> None:
    base = tmp_path / "flowers-102"
    labels = [c % 102 for c in range(306)]  # 1-based in the file: image n shows flower n - 1
    for number, label in enumerate(labels):
        draw(base / "jpg" / f"image_{number + 1:05d}.jpg", label % 10, number // 102)
    savemat(base / "imagelabels.mat", {"labels": [[label + 1 for label in labels]]})
    ids = np.arange(1, 307).reshape(3, 102)
    savemat(base / "setid.mat", {"trnid": [ids[0]], "valid": [ids[1]], "tstid": [ids[2]]})
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    task = opened(shrunk("flowers102", 102, 204, 102))
    assert seen(task.train) == [(c, c % 10, part) for part in (0, 1) for c in range(102)]
    assert seen(task.test) == [(c, c % 10, 2) for c in range(102)]


def food(base: Path) -> None:
    for green, part in enumerate(("train", "test")):
        meta = {name: [f"{name}/{part}{number}" for number in range(2)] for name in ("b", "a")}
        write(base / "meta" / f"{part}.json", [json.dumps(meta)])
        for red, name in enumerate(("a", "b")):
            for number in range(2):
                draw(base / "images" / name / f"{part}{number}.jpg", red, green)


def test_food101_lists_of_the_archive(tmp_path: Path, opened) -> None:
    food(tmp_path / "food-101")
    task = opened(shrunk("food101", 2, 4, 4))
    assert task.classes == ("a", "b")
    assert seen(task.train) == [(1, 1, 0), (1, 1, 0), (0, 0, 0), (0, 0, 0)]
    assert seen(task.test) == [(1, 1, 1), (1, 1, 1), (0, 0, 1), (0, 0, 1)]


def test_food101_folder_called_valid_is_the_test_part(tmp_path: Path, opened) -> None:
    for green, part in enumerate(("train", "valid")):
        for red, name in enumerate(("apple_pie", "waffles")):
            draw(tmp_path / "food-101" / part / name / "1.jpg", red, green)
    task = opened(shrunk("food101", 2, 2, 2))
    assert seen(task.train) == [(0, 0, 0), (1, 1, 0)]
    assert seen(task.test) == [(0, 0, 1), (1, 1, 1)]


def test_pets_trainval_and_test(tmp_path: Path, opened) -> None:
    base = tmp_path / "oxford-iiit-pet"
    for red, name in enumerate(("Abyssinian", "beagle")):
        for green in range(2):
            draw(base / "images" / f"{name}_{green}.jpg", red, green)
    for green, part in enumerate(("trainval", "test")):
        lines = [f"beagle_{green} 2 2 1", f"Abyssinian_{green} 1 1 1"]
        write(base / "annotations" / f"{part}.txt", lines)
    task = opened(shrunk("pets", 2, 2, 2))
    assert task.classes == ("Abyssinian", "Beagle")
    assert seen(task.train) == [(1, 1, 0), (0, 0, 0)]
    assert seen(task.test) == [(1, 1, 1), (0, 0, 1)]


def sun(root: Path, train: Sequence[str], test: Sequence[str]) -> None:
    base = root / "SUN397"
    for red, name in enumerate(("a/abbey", "a/apse/indoor", "b/bakery")):
        for green in range(5):  # more than the lists name
            draw(base / name / f"sun_{name.replace('/', '')}{green}.jpg", red, green)
    write(base / "ClassName.txt", ["/a/abbey", "/a/apse/indoor", "/b/bakery"])
    write(base / "Training_01.txt", train)
    write(base / "Testing_01.txt", test)


SUN_TRAIN = ["/a/abbey/sun_aabbey3.jpg", "/a/apse/indoor/sun_aapseindoor0.jpg",
             "/b/bakery/sun_bbakery1.jpg"]  # fmt: skip
SUN_TEST = ["/b/bakery/sun_bbakery4.jpg", "/a/abbey/sun_aabbey0.jpg",
            "/a/apse/indoor/sun_aapseindoor2.jpg"]  # fmt: skip


@pytest.mark.parametrize("below", ["", "torchvision"])
def test_sun397_is_what_the_first_lists_name(tmp_path: Path, opened, below: str) -> None:
    sun(tmp_path / below, SUN_TRAIN, SUN_TEST)
    task = opened(shrunk("sun397", 3, 3, 3))
    assert task.classes == ("abbey", "apse/indoor", "bakery")
    assert seen(task.train) == [(0, 0, 3), (1, 1, 0), (2, 2, 1)]
    assert seen(task.test) == [(2, 2, 4), (0, 0, 0), (1, 1, 2)]
    assert task.test.ids[0] == "b/bakery/sun_bbakery4.jpg"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([*SUN_TRAIN, "/a/abbey/sun_gone.jpg"], SUN_TEST, "1 of 7 are not there, as a/abbey/sun_g"),
        ([*SUN_TRAIN, SUN_TEST[1]], SUN_TEST, "listed more than once, as a/abbey/sun_aabbey0.jpg"),
        ([], SUN_TEST, "Training_01.txt is empty"),
        (SUN_TRAIN[:2], SUN_TEST, "has 2 training and 3 test images; the card says 3 and 3"),
    ],
)
def test_sun397_lists_that_do_not_fit_are_refused(tmp_path, opened, train, test, message) -> None:
    sun(tmp_path, train, test)
    with pytest.raises(UserError, match=message):
        opened(shrunk("sun397", 3, 3, 3))


def test_sun397_without_its_lists_is_not_available(tmp_path: Path, opened) -> None:
    sun(tmp_path, SUN_TRAIN, SUN_TEST)
    (tmp_path / "SUN397" / "Testing_01.txt").unlink()
    with pytest.raises(UserError, match=r"Testing_01\.txt does not exist(.|\n)*Partitions\.zip"):
        opened(shrunk("sun397", 3, 3, 3))


def test_split_hash_of_listed_data_sees_the_lists(tmp_path: Path, opened) -> None:
    sun(tmp_path, SUN_TRAIN, SUN_TEST)
    first = opened(shrunk("sun397", 3, 3, 3)).split_hash
    other = [SUN_TRAIN[0].replace("3", "4"), *SUN_TRAIN[1:]]
    write(tmp_path / "SUN397" / "Training_01.txt", other)
    assert opened(shrunk("sun397", 3, 3, 3)).split_hash != first


def test_the_real_card_refuses_a_made_set_with_both_numbers(tmp_path: Path, opened) -> None:
    caltech101(tmp_path, {"ant": 40, "bass": 31})
    real = cards.card("caltech101").model_copy(update={"classes": 2})
    with pytest.raises(UserError, match="60 training and 11 test images; the card says 3,030 and"):
        opened(real)
    with pytest.raises(UserError, match="has 2 classes; the card says 101"):
        opened(cards.card("caltech101"))

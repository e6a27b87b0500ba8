"""Images as tensors: the fixed transform, augmentation, the cache, damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_transfer import data, images, transforms
from sparse_transfer.config import Preprocess, TaskRef
from sparse_transfer.errors import UserError
from tests.made_images import folder, picture, png

STATS = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
WHOLE = Preprocess(image_size=16, crop="none")
CENTER = Preprocess(image_size=16, resize=20)


@pytest.fixture
def split(tmp_path: Path):
    """A training part of 8 images of two classes in a folder, each (40, 30) pixels."""

    def _make(hflip: bool = True, damage: dict[str, bytes] | None = None) -> data.Split:
        root = folder(
            tmp_path / "photos", {f"{p}/{c}": 4 for p in ("train", "test") for c in "ab"}, (40, 30)
        )
        for name, content in (damage or {}).items():
            (root / name).write_bytes(content)
        path = tmp_path / "made.yaml"
        path.write_text(f"name: made\nfolder: photos\nhflip: {str(hflip).lower()}\n")
        task = data.open_task(TaskRef(name=str(path)), data_root=None, cache=tmp_path / "cache")
        return task.train

    return _make


def made(
    part: data.Split, tmp_path: Path, augment: images.Augment = "none", **options
) -> images.Images:
    preprocess = options.pop("preprocess", WHOLE)
    return images.Images(part, preprocess, STATS, tmp_path / "cache", augment, **options)


def every(loaded: images.Images, **options) -> torch.Tensor:
    return images.batch(loaded, np.arange(len(loaded)), **options)


def test_batch_is_normalised(split, tmp_path: Path) -> None:
    part = split()
    loaded = made(part, tmp_path)
    found = images.batch(loaded, [3, 1])
    assert found.shape == (2, 3, 16, 16)
    assert found.dtype == torch.float32
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATS)
    pixels = torch.from_numpy(transforms.fixed_transform(part.image(3), WHOLE, "bilinear").copy())
    torch.testing.assert_close(found[0], (pixels / 255 - mean) / std, atol=1e-5, rtol=1e-5)
    other = images.batch(loaded, torch.tensor([3]), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    torch.testing.assert_close(other[0], pixels / 255)


def test_batch_without_statistics_is_refused(split, tmp_path: Path) -> None:
    loaded = images.Images(split(), WHOLE, None, tmp_path / "cache")
    with pytest.raises(ValueError, match="mean and std"):
        images.batch(loaded, [0])


@pytest.mark.parametrize("augment", ["flip", "crop_flip", "random_resized_crop"])
def test_augmentation_is_a_function_of_seed_epoch_and_example(
    split, tmp_path: Path, augment: images.Augment
) -> None:
    loaded = made(split(), tmp_path, augment)
    whole = every(loaded, train=True, seed=3, epoch=2)
    parts = [images.batch(loaded, rows, train=True, seed=3, epoch=2) for rows in ([7, 2], [0])]
    assert torch.equal(whole[[7, 2, 0]], torch.cat(parts))
    assert not torch.equal(whole, every(loaded, train=True, seed=3, epoch=3))
    assert not torch.equal(whole, every(loaded, train=True, seed=4, epoch=2))
    assert torch.equal(every(loaded), every(made(split(), tmp_path)))  # train=False: none


def test_no_augmentation_in_training_is_the_fixed_transform(split, tmp_path: Path) -> None:
    loaded = made(split(), tmp_path, "none")
    assert torch.equal(every(loaded, train=True, seed=1), every(loaded))


def test_flip_mirrors_some_and_leaves_others(split, tmp_path: Path) -> None:
    loaded = made(split(), tmp_path, "flip")
    still, found = every(loaded), every(loaded, train=True, epoch=1)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(found, still, strict=True)]
    untouched = [torch.equal(a, b) for a, b in zip(found, still, strict=True)]
    assert all(a != b for a, b in zip(mirrored, untouched, strict=True))
    assert 0 < sum(mirrored) < 8


@pytest.mark.parametrize("augment", ["flip", "random_resized_crop", "crop_flip"])
def test_card_without_hflip_never_flips(split, tmp_path: Path, augment: images.Augment) -> None:
    with_flip = made(split(), tmp_path, augment)
    with_flip = [every(with_flip, train=True, epoch=epoch) for epoch in range(3)]
    without = made(split(hflip=False), tmp_path, augment)
    flips = 0
    for epoch, other in enumerate(with_flip):
        for a, b in zip(every(without, train=True, epoch=epoch), other, strict=True):
            flips += torch.equal(a.flip(-1), b) and not torch.equal(a, b)
            assert torch.equal(a, b) or torch.equal(a.flip(-1), b)
    assert 0 < flips < 24


def test_originals_beyond_the_memory_limit_give_the_same(split, tmp_path: Path) -> None:
    part = split()
    one = 40 * 30 * 3
    held, some, none = (
        made(part, tmp_path, "random_resized_crop", memory=size) for size in (8 * one, 3 * one, 0)
    )
    assert [len(loaded._originals._held) for loaded in (held, some, none)] == [8, 3, 0]
    found = [every(loaded, train=True, epoch=1) for loaded in (held, some, none)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_decoding_happens_once(split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = split()
    first = every(made(part, tmp_path))
    monkeypatch.setattr(data.Split, "decoded", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(every(made(part, tmp_path, "flip")), first)


def test_cache_key_sees_files_and_transform(split, tmp_path: Path) -> None:
    part = split()
    keys = [made(part, tmp_path).key, made(part, tmp_path, interpolation="bicubic").key]
    keys += [made(part, tmp_path, preprocess=CENTER).key]
    keys += [made(part, tmp_path, preprocess=Preprocess(image_size=16, resize=18)).key]
    picture(50, (40, 30)).save(tmp_path / "photos" / "train" / "a" / "0.png")
    changed = made(split(), tmp_path)
    assert len({*keys, changed.key}) == 5
    assert made(part, tmp_path, "flip").key == keys[0]
    same = Preprocess(image_size=16, crop="none", resize=99)  # unused there
    assert made(part, tmp_path, preprocess=same).key == keys[0]


@pytest.mark.parametrize("augment", ["none", "random_resized_crop"])
def test_damaged_images_are_left_out_and_counted(
    split, tmp_path: Path, augment: images.Augment
) -> None:
    whole = every(made(split(), tmp_path))
    damage = {"train/a/1.png": png(picture(1, (40, 30)))[:500], "train/b/3.png": b""}
    part = split(damage=damage)
    for _ in range(2):  # decoded, and from the cache
        loaded = made(part, tmp_path, augment)
        assert len(part) == 8
        assert len(loaded) == len(loaded.ids) == len(loaded.labels) == 6
        assert loaded.skipped == part.skipped
        assert loaded.skipped == {"train/a/1.png": "truncated or damaged", "train/b/3.png": "empty"}
        assert loaded.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert torch.equal(every(loaded), whole[[0, 2, 3, 4, 5, 6]])


def test_task_counts_what_was_left_out(split, tmp_path: Path) -> None:
    split(damage={"test/a/0.png": b"", "test/a/1.png": b"", "train/a/0.png": b"x"})
    ref = TaskRef(name=str(tmp_path / "made.yaml"))
    task = data.open_task(ref, data_root=None, cache=tmp_path / "cache")
    before = task.split_hash
    made(task.train, tmp_path)
    made(task.test, tmp_path)
    assert task.skipped == {"train: truncated or damaged": 1, "test: empty": 2}
    assert task.split_hash == before == data.split_hash(ref, None, tmp_path / "cache")


def test_class_that_loses_its_last_image_is_refused(split, tmp_path: Path) -> None:
    part = split(damage={f"train/b/{index}.png": b"" for index in range(4)})
    with pytest.raises(UserError, match="1 classes have no usable train image"):
        made(part, tmp_path)


def test_many_damaged_images_are_refused(split, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(images, "SKIPPED_AT_MOST", 1)
    part = split(damage={f"train/b/{index}.png": b"" for index in range(2)})
    with pytest.raises(UserError, match="2 of 8 train images cannot be used"):
        made(part, tmp_path)


def test_cut_off_cache_file_is_a_user_error(split, tmp_path: Path) -> None:
    part = split()
    loaded = made(part, tmp_path)
    path = tmp_path / "cache" / "images" / f"{loaded.key}.npy"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        made(part, tmp_path)


def test_killed_decoding_leaves_nothing_that_looks_finished(
    split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, real = split(), data.Split.decoded

    def dies(self: data.Split, row: int):
        if row == 5:
            raise KeyboardInterrupt
        return real(self, row)

    monkeypatch.setattr(data.Split, "decoded", dies)
    with pytest.raises(KeyboardInterrupt):
        made(part, tmp_path)
    kept = [path.suffix for path in (tmp_path / "cache" / "images").iterdir()]
    assert set(kept) <= {".lock"}
    monkeypatch.setattr(data.Split, "decoded", real)
    assert len(made(part, tmp_path)) == 8


def test_cache_that_cannot_be_made_is_a_user_error(split, tmp_path: Path) -> None:
    part = split()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be kept"):
        images.Images(part, WHOLE, STATS, tmp_path / "file")


def test_statistics_by_hand(split, tmp_path: Path) -> None:
    loaded = made(split(), tmp_path)
    pixels = loaded.pixels(np.arange(8)) / 255.0
    mean, std = images.statistics(loaded)
    assert mean == pytest.approx(tuple(pixels.mean(axis=(0, 2, 3))))
    assert std == pytest.approx(tuple(pixels.std(axis=(0, 2, 3))))


def test_empty_split_has_no_images(tmp_path: Path) -> None:
    folder(tmp_path / "photos", {"test/a": 1, "test/b": 1})
    path = tmp_path / "made.yaml"
    path.write_text("name: made\nfolder: photos\nsizes: {train: 0, test: 2}\n")
    task = data.open_task(TaskRef(name=str(path)), data_root=None, cache=tmp_path / "cache")
    assert len(made(task.train, tmp_path)) == 0
    assert images.batch(made(task.train, tmp_path), []).shape == (0, 3, 16, 16)


@pytest.mark.real
def test_real_images_decode_without_a_loss(shared: Path, tmp_path: Path) -> None:
    ref = TaskRef(name="caltech101_8shot")
    task = data.open_task(ref, data_root=shared / "data" / "datasets", cache=tmp_path)
    loaded = made(task.test, tmp_path, preprocess=Preprocess(image_size=32))
    assert len(loaded) == 505
    assert task.skipped == {}
    spread = every(loaded).std(dim=(1, 2, 3))
    assert (spread > 0.01).all()  # no image came out blank

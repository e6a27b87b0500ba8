"""The transform of a run: which statistics, which interpolation, and who decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparse_transfer import config, data, inputs, models
from sparse_transfer.errors import UserError

OWN = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def loaded() -> models.LoadedModel:
    spec = config.ModelSpec(name="resnet20_cifar", weights="random", pretrained_cfg=OWN)
    return models.skeleton(spec, num_classes=3, image_size=16)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> data.Task:
    ref = config.TaskRef(name="digits", train_images=60)
    return data.open_task(ref, data_root=None, cache=tmp_path_factory.mktemp("cache"))


def resolve(loaded: Any, task: Any, tmp_path: Path, profile: Any = None, **fields: Any):
    preprocess = config.Preprocess(image_size=16, crop="none", **fields)
    return inputs.transform(preprocess, loaded, task, tmp_path, profile)


def test_the_model_decides_unless_told_otherwise(loaded, task, tmp_path: Path):
    found = resolve(loaded, task, tmp_path)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found.interpolation == "bicubic"


def test_imagenet_statistics(loaded, tmp_path: Path):
    found = resolve(loaded, None, tmp_path, normalise="imagenet", interpolation="bilinear")
    assert found.mean == (0.485, 0.456, 0.406) and found.std == (0.229, 0.224, 0.225)
    assert found.interpolation == "bilinear"


def test_statistics_of_a_data_set_are_those_of_its_training_images(loaded, task, tmp_path: Path):
    found = resolve(loaded, task, tmp_path, normalise="dataset")
    card = task.card
    if card.mean is not None:
        assert found.mean == card.mean
        task = data.Task(card.model_copy(update={"mean": None, "std": None}), *vars_of(task))
        found = resolve(loaded, task, tmp_path, normalise="dataset")
    pixels = found.images(task.train, tmp_path).pixels(range(len(task.train))) / 255
    np.testing.assert_allclose(found.mean, pixels.mean(axis=(0, 2, 3)), atol=1e-9)
    np.testing.assert_allclose(found.std, pixels.std(axis=(0, 2, 3)), atol=1e-6)


def vars_of(task: data.Task) -> tuple[Any, ...]:
    names = ("classes", "train", "validation", "test", "split_hash", "source")
    return tuple(getattr(task, name) for name in names)


def test_the_statistics_of_a_card_go_before_computed_ones(loaded, task, tmp_path: Path):
    card = task.card.model_copy(update={"mean": (0.5, 0.5, 0.5), "std": (0.1, 0.1, 0.1)})
    stated = data.Task(card, *vars_of(task))
    found = resolve(loaded, stated, tmp_path, normalise="dataset")
    assert (found.mean, found.std) == ((0.5, 0.5, 0.5), (0.1, 0.1, 0.1))


def test_statistics_of_no_data_set_are_an_error(loaded, tmp_path: Path):
    with pytest.raises(UserError, match="needs a task"):
        resolve(loaded, None, tmp_path, normalise="dataset")


@pytest.mark.parametrize("kind", [config.LinearProfile, config.FullProfile])
def test_a_profile_goes_before_the_arm(loaded, task, tmp_path: Path, kind):
    length = {"steps": 1} if kind is config.FullProfile else {}
    profile = kind(normalise="imagenet", interpolation="bilinear", **length)
    found = resolve(loaded, task, tmp_path, profile, normalise="model", interpolation="bicubic")
    assert found.mean == inputs.IMAGENET[0] and found.interpolation == "bilinear"
    silent = kind(**length)
    assert resolve(loaded, task, tmp_path, silent, normalise="imagenet").mean == found.mean


@pytest.mark.parametrize(
    ("layout", "expected"), [("rigl", "bicubic"), ("torchvision", "bilinear"), (None, "bilinear")]
)
def test_the_study_resized_bilinearly_but_for_the_weights_of_rigl(
    loaded, tmp_path: Path, layout, expected
):
    preprocess = config.Preprocess(image_size=16, crop="none")
    profile = config.LinearProfile(normalise="imagenet", interpolation="paper")
    found = inputs.transform(preprocess, loaded, None, tmp_path, profile, layout)
    assert found.interpolation == expected
    assert found.facts()["interpolation"] == expected


def test_an_interpolation_that_we_do_not_have_is_refused(tmp_path: Path):
    spec = config.ModelSpec(
        name="resnet20_cifar", weights="random", pretrained_cfg=OWN | {"interpolation": "lanczos"}
    )
    odd = models.skeleton(spec, num_classes=3, image_size=16)
    with pytest.raises(UserError, match="lanczos"):
        resolve(odd, None, tmp_path)
    assert resolve(odd, None, tmp_path, interpolation="bilinear").interpolation == "bilinear"


def test_facts_are_plain_json_with_every_decision(loaded, task, tmp_path: Path):
    facts = resolve(loaded, task, tmp_path, normalise="imagenet").facts()
    assert facts["preprocess"]["image_size"] == 16 and facts["normalise"] == "imagenet"
    assert {"mean", "std", "interpolation"} <= facts.keys()


def test_augmentation_is_a_function_of_seed_epoch_and_example(loaded, task, tmp_path: Path):
    images = resolve(loaded, task, tmp_path).images(task.train, tmp_path, "crop_flip")
    one, other = inputs.AugmentedImages(images, 1), inputs.AugmentedImages(images, 2)
    assert len(one) == 60 and torch.equal(one.labels, torch.as_tensor(images.labels))
    rows = torch.tensor([5, 3, 40])
    batch = one.batch(rows, 0)
    assert batch.shape == (3, 3, 16, 16) and batch.dtype == torch.float32
    assert torch.equal(one.batch(rows[1:], 0), batch[1:]), "the rest of the batch does not matter"
    assert not torch.equal(one.batch(rows, 1), batch)
    assert not torch.equal(other.batch(rows, 0), batch)

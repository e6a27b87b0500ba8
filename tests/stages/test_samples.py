"""Images for backends that round: train to calibrate, test to score, the same for all models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_transfer import checkpoint, config, devices, models, plan
from sparse_transfer.stages import bench, samples
from sparse_transfer.stages.context import Context

TASK = config.TaskRef(name="shapes")
PREPROCESS = config.Preprocess(image_size=16, crop="none")


def save(folder: Path, classes: int) -> Path:
    kwargs = {"channels": [4, 8, 8]}
    spec = config.ModelSpec(name="resnet20_cifar", weights="random", kwargs=kwargs)
    loaded = models.build(spec, num_classes=classes, image_size=16, seed=0)
    checkpoint.save(folder, loaded, loaded.model, None, {})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def classes(folder: Path) -> int:
    from sparse_transfer import data

    return len(data.open_task(TASK, data_root=None, cache=folder / "cache").classes)


@pytest.fixture(scope="module")
def opened(folder: Path, classes: int) -> samples.Samples:
    made = checkpoint.open_checkpoint(save(folder / "own", classes))
    return samples.open_samples(made, TASK, PREPROCESS, None, folder / "cache")


def test_calibration_sees_training_images_and_scoring_test_images(opened):
    assert opened.train.split.name == "train" and opened.test.split.name == "test"
    assert not set(opened.train.ids) & set(opened.test.ids)
    images = opened.calibration()
    assert images.shape == (min(samples.CALIBRATION, len(opened.train)), 3, 16, 16)
    assert torch.equal(images, opened.calibration())


def test_accuracies_by_hand(opened, classes: int):
    labels = opened.test.labels
    rows = samples._subset(opened.test, samples.SCORED)
    right = iter(torch.nn.functional.one_hot(labels[rows], classes).float().split(7))
    sizes = []

    def exact(images: Tensor) -> Tensor:
        sizes.append(len(images))
        found = next(right)
        return torch.cat([found, torch.zeros(7 - len(found), classes)])

    def always_0(images: Tensor) -> Tensor:
        return torch.eye(classes)[torch.zeros(len(images), dtype=torch.long)]

    found = opened.score(always_0, exact, 7)
    assert set(sizes) == {7}  # an engine of a fixed batch size gets no other
    assert found == {
        "scored_images": len(rows),
        "accuracy": pytest.approx(int((labels[rows] == 0).sum()) / len(rows)),
        "accuracy_float32": 1.0,
    }


def test_without_the_same_classes_predictions_are_compared(folder: Path, classes: int):
    made = checkpoint.open_checkpoint(save(folder / "other", classes + 2))
    found = samples.open_samples(made, TASK, PREPROCESS, None, folder / "cache")
    assert not found.labelled

    def first(images: Tensor) -> Tensor:
        return torch.eye(3)[torch.arange(len(images)) % 3]

    def second(images: Tensor) -> Tensor:
        return torch.eye(3)[torch.arange(len(images)) % 2]

    told = found.score(first, second, 6)
    count = told["scored_images"]
    place = np.arange(count) % 6  # of an image within its batch
    assert told["agreement"] == pytest.approx(float(np.mean(place % 3 == place % 2)))
    assert set(told) == {"scored_images", "agreement"}


def test_8_bit_integers_have_a_time_and_an_accuracy(folder: Path, classes: int):
    from sparse_transfer.backends.onnxruntime_int8 import Backend

    if Backend().available():
        pytest.skip(Backend().available())
    own = save(folder / "int8" / "checkpoint", classes)
    settings = config.Bench(backends=("dense", "onnxruntime-int8"), batch_size=4, repeats=3)
    rows, reasons = bench.measure_checkpoints(own, None, settings)
    assert [row["backend"] for row in rows] == ["dense"]
    assert reasons == [
        "onnxruntime-int8: it is calibrated on training images, and there are none: "
        "name its task (--task NAME)"
    ]
    node = plan.Run(
        "bench", plan.Subject("net", "dense", 0.0, 0),
        plan.BenchSpec(settings, 16, TASK, PREPROCESS), {},
    )  # fmt: skip
    context = Context(devices.accelerator(), None, folder / "cache")
    result = bench.run(node, {"checkpoint": own.parent}, folder / "out", context)
    assert result["unavailable"] == []
    exact, rounded = result["bench"]
    assert "accuracy" not in exact and rounded["backend"] == "onnxruntime-int8"
    assert rounded["scored_images"] > 50
    assert abs(rounded["accuracy"] - rounded["accuracy_float32"]) < 0.1
    assert 1e-4 < rounded["relative_error"] < 0.5
    assert "calibrated on 128 training images" in rounded["note"]

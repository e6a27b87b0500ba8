"""Recalibrated batch-norm statistics against ones computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from sparse_transfer import batchnorm
from sparse_transfer.devices import accelerator
from sparse_transfer.errors import UserError


class Pictures:
    """As much of `Images` as `batch` reads; it counts what is asked for."""

    stats = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    augment = "none"

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return self.count

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        self.asked.append(indices.tolist())
        return np.stack(
            [np.random.default_rng(i).integers(0, 256, (3, 16, 16), np.uint8) for i in indices]
        )

    def tensor(self, indices: list[int]) -> torch.Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in self.stats)
        return (torch.from_numpy(self.pixels(np.array(indices))) / 255 - mean) / std


def net() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=0.01), nn.Flatten(), nn.LazyLinear(2),
    )  # fmt: skip
    made.eval()(torch.zeros(1, 3, 16, 16))
    return made


def recalibrate(model: nn.Module, images: Any, count: int, seed: int = 0) -> None:
    batchnorm.recalibrate(model, images, count=count, seed=seed, accelerator=accelerator())


@pytest.mark.parametrize("count", [2, 60, 120, 150])
def test_statistics_are_the_cumulative_ones_computed_by_hand(count: int):
    model, images = net(), Pictures(150)
    recalibrate(model, images, count)
    asked = list(images.asked)
    rows = [row for batch in asked for row in batch]
    assert len(rows) == len(set(rows)) == count
    assert max(map(len, asked)) - min(map(len, asked)) <= 1, "each batch weighs alike"
    first, second = model[1], model[5]
    with torch.no_grad():
        before = [model[0](images.tensor(batch)) for batch in asked]
        means = torch.stack([x.mean((0, 2, 3)) for x in before]).mean(0)
        variances = torch.stack([x.var((0, 2, 3), unbiased=True) for x in before]).mean(0)
        torch.testing.assert_close(first.running_mean, means, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(first.running_var, variances, rtol=1e-5, atol=1e-6)
        # The second layer sees what the first gives under the statistics of each batch.
        hidden = []
        for x in before:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
            normal = (x - mean.view(1, -1, 1, 1)) / (variance.view(1, -1, 1, 1) + 1e-5).sqrt()
            hidden.append(model[4](normal.relu()))  # dropout is off
        means = torch.stack([x.mean((0, 2, 3)) for x in hidden]).mean(0)
    torch.testing.assert_close(second.running_mean, means, rtol=1e-4, atol=1e-5)


def test_weights_modes_and_momenta_are_as_before():
    model = net()
    weights = {name: value.clone() for name, value in model.named_parameters()}
    for training in (False, True):
        model.train(training)
        recalibrate(model, Pictures(10), 4)
        assert all(module.training is training for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert (model[1].momentum, model[5].momentum) == (0.3, 0.01)


def test_old_statistics_leave_no_trace():
    one, other = net(), net()
    with torch.no_grad():
        other[1].running_mean.fill_(7.0)
        other[5].running_var.fill_(9.0)
    for model in (one, other):
        recalibrate(model, Pictures(20), 10)
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)


def test_the_subset_follows_the_seed():
    subsets = []
    for seed in (0, 0, 1):
        images = Pictures(100)
        recalibrate(net(), images, 10, seed)
        subsets.append(images.asked)
    assert subsets[0] == subsets[1] != subsets[2]


def test_batch_norms_of_timm_count_too():
    """MobileNetV2's are a class of timm's with an activation inside."""
    model = timm.create_model("mobilenetv2_035", num_classes=2).eval()
    recalibrate(model, Pictures(8), 8)
    first = model.bn1
    with torch.no_grad():
        x = model.conv_stem(Pictures(8).tensor(list(range(8))))
    torch.testing.assert_close(first.running_mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_more_images_than_there_are_is_refused():
    model = net()
    before = model[1].running_mean.clone()
    with pytest.raises(UserError, match="asks for 11 images") as caught:
        recalibrate(model, Pictures(10), 11)
    assert "10" in caught.value.why and torch.equal(model[1].running_mean, before)


def test_a_model_without_statistics_is_told_apart():
    assert batchnorm.has_statistics(net())
    assert not batchnorm.has_statistics(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    assert not batchnorm.has_statistics(nn.BatchNorm2d(3, track_running_stats=False))

"""Static quantisation: ranges from the images, 8-bit weights, close to the float32 outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_transfer.backends import onnxruntime_int8
from sparse_transfer.errors import UserError

IMAGES = torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def backend() -> onnxruntime_int8.Backend:
    made = onnxruntime_int8.Backend()
    if made.available():
        pytest.skip(made.available())
    return made


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def test_it_is_near_the_model_within_the_calibrated_range_and_clips_outside(backend, net):
    run = backend.prepare(net, IMAGES[:4], IMAGES)
    net.eval()
    with torch.no_grad():
        inside, outside = net(IMAGES[4:8]), net(100 * IMAGES[4:8])
    scale = inside.abs().max()
    error = (run(IMAGES[4:8]) - inside).abs().max() / scale
    assert 1e-4 < error < 0.05  # it does round, and not much
    # what is far beyond anything that was seen in calibration is cut off at the seen range
    assert run(100 * IMAGES[4:8]).abs().max() < 3 * scale < outside.abs().max()
    assert "calibrated on 20 training images" in run.note


def test_batches_are_full(backend):
    found = list(onnxruntime_int8.batches(torch.arange(5), 3))
    assert [part.tolist() for part in found] == [[0, 1, 2], [3, 4, 0]]
    assert [part.tolist() for part in onnxruntime_int8.batches(torch.arange(2), 5)] == [
        [0, 1, 0, 1, 0]
    ]


@pytest.mark.parametrize("images", [IMAGES[:0], IMAGES[..., :6]])
def test_images_that_do_not_fit_are_refused(backend, net, images):
    with pytest.raises(UserError, match="cannot be calibrated"):
        backend.prepare(net, IMAGES[:4], images)

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F

from sparse_transfer import models
from sparse_transfer.config import ModelSpec

NARROW = {"channels": [8, 8, 8, 8]}


def test_the_stem_pads_below_and_to_the_right_alone():
    spec = ModelSpec(name="resnet50_rigl", weights="random", kwargs=NARROW)
    loaded = models.build(spec, num_classes=4, image_size=64, seed=0)
    model = loaded.model.eval()
    maps = torch.rand(2, 64, 8, 8)
    by_hand = maps.new_zeros(2, 64, 9, 9)
    by_hand[:, :, :8, :8] = maps
    windows = by_hand.unfold(2, 3, 2).unfold(3, 3, 2)  # (2, 64, 4, 4, 3, 3)
    assert torch.equal(model.maxpool(maps), windows.amax((4, 5)))
    assert not torch.equal(model.maxpool(maps), F.max_pool2d(maps, 3, 2, padding=1))
    assert loaded.opens_with == "sparse_transfer"
    assert loaded.spec["pretrained_cfg"]["interpolation"] == "bicubic"


def test_all_but_the_pooling_is_timms_resnet50():
    ours = timm.create_model("resnet50_rigl", **NARROW).eval()
    theirs = timm.create_model("resnet50", **NARROW).eval()
    theirs.load_state_dict(ours.state_dict())
    theirs.maxpool = ours.maxpool
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(images), theirs(images))

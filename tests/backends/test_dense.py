from __future__ import annotations

import torch
from torch import nn

from sparse_transfer.backends.dense import Backend


def test_it_folds_batch_norm_and_runs_channels_last():
    seen = []
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    run = Backend().prepare(net, torch.randn(2, 3, 8, 8))
    assert run.note == "1 of 1 batch norms folded"
    net[0].register_forward_hook(lambda *_: seen.append("the original ran"))
    output = run(torch.randn(2, 3, 8, 8))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert output.is_inference() and not seen

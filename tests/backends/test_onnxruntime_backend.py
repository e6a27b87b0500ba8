from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_transfer.backends import onnxruntime_backend


def test_threads_are_those_of_torch_and_are_noted():
    backend = onnxruntime_backend.Backend()
    if backend.available():
        pytest.skip("onnxruntime is not installed")
    run = backend.prepare(nn.Linear(2, 2), torch.zeros(1, 2))
    assert f"{torch.get_num_threads()} threads, CPU" in run.note

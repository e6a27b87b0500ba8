from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from sparse_transfer.backends import onnxruntime_backend
from sparse_transfer.errors import UserError


def test_missing_packages_are_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    backend = onnxruntime_backend.Backend()
    assert "onnxruntime not installed: pip install" in (backend.available() or "")
    with pytest.raises(UserError, match="cannot run"):
        backend.prepare(nn.Linear(2, 2), torch.zeros(1, 2))


def test_threads_are_those_of_torch_and_are_noted():
    backend = onnxruntime_backend.Backend()
    if backend.available():
        pytest.skip("onnxruntime is not installed")
    run = backend.prepare(nn.Linear(2, 2), torch.zeros(1, 2))
    assert f"{torch.get_num_threads()} threads, CPU" in run.note


def test_a_model_that_cannot_be_exported_is_refused():
    class Stubborn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    backend = onnxruntime_backend.Backend()
    if backend.available():
        pytest.skip("onnxruntime is not installed")
    with pytest.raises(UserError, match="Stubborn cannot be exported"):
        backend.prepare(Stubborn(), torch.zeros(1, 2))

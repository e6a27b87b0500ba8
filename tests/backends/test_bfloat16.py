"""The two backends in bfloat16 of our own: what they say, and what they need."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from sparse_transfer import models  # noqa: F401 - registers the small variants
from sparse_transfer.backends import dense, dense_bf16, sparse_bf16
from sparse_transfer.errors import UserError
from sparse_transfer.latency import TOLERANCE, agreement
from sparse_transfer.sparse import library, tuning


def test_dense_rounds_inside_and_returns_float32():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    backend = dense_bf16.Backend()
    run = backend.prepare(net, images)
    assert run.note == "1 of 1 batch norms folded; eager"
    with torch.no_grad():
        found, expected = run(images), net(images)
    assert found.dtype == torch.float32 and torch.equal(found, found.bfloat16().float())
    assert TOLERANCE < agreement("dense-bf16", found, expected, backend.tolerance) < 1e-2
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_dense_is_compiled_where_that_pays(monkeypatch):
    monkeypatch.setattr(dense, "WORTH", 0.0)
    monkeypatch.setattr(dense, "compile_frozen", lambda model: model)
    monkeypatch.setattr(dense.latency, "medians", lambda *_, **__: {"eager": 2.0, "compiled": 1.0})
    run = dense_bf16.Backend().prepare(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8))
    assert run.note.endswith("; compiled (eager 2e+03 ms, compiled 1e+03 ms)")


def test_sparse_says_what_runs_and_in_which_type(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path))
    backend = sparse_bf16.Backend()
    if backend.available():
        pytest.skip(backend.available())
    monkeypatch.setattr(tuning.Tuner, "_measure", always_dense)
    run = backend.prepare(timm.create_model("resnet20_cifar"), torch.randn(2, 3, 32, 32))
    assert run.note.startswith("dense: no layer is faster")
    assert run.note.endswith("; eager")  # what dense-bf16 says


def always_dense(self: tuning.Tuner, problem: tuning.Problem) -> tuning.Choice:
    return tuning.Choice("dense", (1, 1), 1, 1.0, 1.0)


def test_without_kernels_sparse_refuses(monkeypatch):
    monkeypatch.setattr(library, "_file", lambda level: None)
    assert "were not compiled" in (sparse_bf16.Backend().available() or "")
    with pytest.raises(UserError, match="backend sparse-bf16 cannot run"):
        sparse_bf16.Backend().prepare(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from sparse_transfer import latency
from sparse_transfer.backends import dense
from sparse_transfer.backends.sparse import Backend
from sparse_transfer.errors import UserError
from sparse_transfer.latency import Prepared
from sparse_transfer.sparse import engine, library


@pytest.mark.skipif(library.available() is not None, reason=str(library.available()))
def test_where_no_zero_is_worth_it_it_is_the_dense_backend(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path))
    made = Prepared(lambda images: images, "what dense says")
    monkeypatch.setattr(dense.Backend, "prepare", lambda *_: made)
    run = Backend().prepare(timm.create_model("mobilenetv1_100"), torch.randn(2, 3, 32, 32))
    assert run.run is made.run
    assert run.note.startswith("dense: no layer is faster") and run.note.endswith(made.note)


@pytest.mark.skipif(library.available() is not None, reason=str(library.available()))
def test_the_note_says_what_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path))
    monkeypatch.setattr(engine, "_compare", lambda *_: (3.0, 1.0))
    run = Backend().prepare(sparse_network(), torch.randn(4, 3, 24, 24))
    assert run.note.startswith("sparse: 3.00 times as fast as PyTorch")
    assert run.note.endswith(f"{library.best_level()}, {torch.get_num_threads()} threads")


@pytest.mark.skipif(library.available() is not None, reason=str(library.available()))
@pytest.mark.parametrize(("own", "note"), [(1.0, "sparse: 1.50 times"), (3.0, "dense: zeros")])
def test_a_small_gain_is_measured_again_against_the_dense_backend(
    tmp_path, monkeypatch, own: float, note: str
):
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path))
    monkeypatch.setattr(engine, "_compare", lambda *_: (1.5, 1.0))
    monkeypatch.setattr(latency, "medians", lambda runs, *_: {"sparse": own, "dense": 2.0})
    made = Prepared(lambda images: images, "what dense says")
    monkeypatch.setattr(dense.Backend, "prepare", lambda *_: made)
    run = Backend().prepare(sparse_network(), torch.randn(4, 3, 24, 24))
    assert run.note.startswith(note) and (run.run is made.run) == (own > 2)


def sparse_network() -> nn.Module:
    layers = [nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 8, 3)]
    with torch.no_grad():
        layers[1].weight *= torch.rand_like(layers[1].weight) < 0.02
    return nn.Sequential(*layers)


def test_without_kernels_it_is_not_available_and_refuses(monkeypatch):
    monkeypatch.setattr(library, "_file", lambda level: None)
    assert "were not compiled" in (Backend().available() or "")
    with pytest.raises(UserError, match="backend sparse cannot run"):
        Backend().prepare(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))

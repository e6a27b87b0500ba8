from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from sparse_transfer.backends.sparse import Backend
from sparse_transfer.errors import UserError
from sparse_transfer.sparse import library


def test_the_note_says_what_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path))
    if library.available():
        pytest.skip(library.available())
    run = Backend().prepare(timm.create_model("mobilenetv1_100"), torch.randn(2, 3, 32, 32))
    assert run.note.startswith("dense: no layer is faster")
    assert run.note.endswith(f"{library.best_level()}, {torch.get_num_threads()} threads")


def test_without_kernels_it_is_not_available_and_refuses(monkeypatch):
    monkeypatch.setattr(library, "_file", lambda level: None)
    assert "were not compiled" in (Backend().available() or "")
    with pytest.raises(UserError, match="backend sparse cannot run"):
        Backend().prepare(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))

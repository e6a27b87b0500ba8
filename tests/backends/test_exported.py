"""What the engines that take an ONNX graph have in common."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from sparse_transfer import plugins
from sparse_transfer.errors import UserError

# name → the package whose absence is said, and the extra that installs it
ENGINES = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "openvino": ("openvino", "openvino"),
    "openvino-bf16": ("openvino", "openvino"),
}


class Stubborn(nn.Module):
    """Its control flow depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


@pytest.mark.parametrize("name", ENGINES)
def test_missing_packages_are_named_with_what_installs_them(name, monkeypatch):
    find, (package, extra) = importlib.util.find_spec, ENGINES[name]
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    backend = plugins.load("backend", name)()
    said = f"{package} not installed: pip install 'sparse-transfer[{extra}]'"
    assert said in (backend.available() or "")
    with pytest.raises(UserError, match=f"backend {name} cannot run"):
        backend.prepare(nn.Linear(2, 2), torch.zeros(1, 2))


@pytest.mark.parametrize("name", ENGINES)
def test_a_model_that_cannot_be_exported_is_refused(name):
    backend = plugins.load("backend", name)()
    if backend.available():
        pytest.skip(backend.available())
    with pytest.raises(UserError, match="Stubborn cannot be exported") as caught:
        backend.prepare(Stubborn(), torch.zeros(1, 2))
    assert f"`{name}`" in caught.value.hint

"""OpenVINO: threads as PyTorch's, the precision that was asked for and no other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_transfer.backends import openvino_backend, openvino_bf16

EXAMPLE = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()


def error(backend, net: nn.Module) -> float:
    if backend.available():
        pytest.skip(backend.available())
    with torch.inference_mode():
        expected = net(EXAMPLE)
        output = backend.prepare(net, EXAMPLE)(EXAMPLE)
    assert output.dtype == torch.float32
    return float((output - expected).abs().max() / expected.abs().max())


def test_float32_means_float32(net, capfd):
    assert error(openvino_backend.Backend(), net) < 1e-5  # a CPU with bfloat16 is not to use it
    assert capfd.readouterr() == ("", "")


def test_bfloat16_means_bfloat16(net):
    assert 1e-4 < error(openvino_bf16.Backend(), net) < openvino_bf16.Backend.tolerance


def test_threads_are_those_of_torch_and_are_noted(net):
    backend = openvino_backend.Backend()
    if backend.available():
        pytest.skip(backend.available())
    note = backend.prepare(net, EXAMPLE).note
    assert note.startswith("openvino ") and "in f32" in note
    assert f"{torch.get_num_threads()} threads, CPU" in note


def test_a_cpu_without_bfloat16_is_said(monkeypatch):
    if openvino_backend.Backend().available():
        pytest.skip(openvino_backend.Backend().available())
    import openvino

    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(openvino, "Core", Core)
    reason = openvino_bf16.Backend().available()
    assert reason == "this CPU does not multiply bfloat16: OpenVINO lists FP32, INT8"

"""Sparse linear layers of a compiled network: what they compute, and which are taken."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from sparse_transfer.sparse import engine, linears
from sparse_transfer.sparse.tuning import Timing

pytestmark = pytest.mark.kernels


def thinned(layer: nn.Linear, density: float) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    layer.weight.data *= torch.rand(layer.weight.shape, generator=generator) < density
    return layer


@pytest.mark.parametrize("shape", [(5, 24), (1, 24), (3, 7, 24), (2, 5, 3, 24), (1, 1, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_layer_in_float64_for_any_leading_dimensions(shape, bias):
    torch.manual_seed(1)
    layer = thinned(nn.Linear(24, 10, bias=bias), 0.2)
    made = linears.SparseLinearModule(layer)
    rows = torch.randn(shape)
    with torch.inference_mode():
        found = made(rows)
        expected = layer.double()(rows.double())
    assert found.shape == expected.shape and found.is_contiguous()
    assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.fixture
def vit(monkeypatch: pytest.MonkeyPatch, tmp_path) -> nn.Module:
    """A small transformer with zeros, for which nothing is too narrow."""
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path))
    monkeypatch.setattr(linears, "LEAST_FEATURES", 16)
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10).eval()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "mlp" in name:
            thinned(module, 0.1)
    return model


IMAGES = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(2))


def taken(compiled: engine.Compiled) -> int:
    return sum(isinstance(m, linears.SparseLinearModule) for m in compiled.module.modules())


def test_layers_that_were_faster_run_sparse_and_the_network_computes_the_same(vit, monkeypatch):
    asked = []

    def faster(layer, made, shape):
        asked.append((layer.in_features, layer.out_features, *shape))
        return Timing(2.0, 1.0)

    monkeypatch.setattr(linears, "_measure", faster)
    monkeypatch.setattr(engine, "_compare", lambda *_: (2.0, 1.0))
    compiled = engine.compile(vit, IMAGES)
    layers = sum("mlp.fc" in name for name, m in vit.named_modules() if isinstance(m, nn.Linear))
    assert compiled.engine == "sparse" and taken(compiled) == layers > 0
    assert f"{layers} linear layers" in compiled.reason
    assert {shape[2] for shape in asked} == {3}  # for as many images as will come
    assert len(asked) == len(set(asked))  # equal layers are measured once
    with torch.inference_mode():
        for images in (IMAGES, IMAGES[:1]):
            expected = vit(images)
            assert (compiled(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    count = len(asked)
    assert taken(engine.compile(vit, IMAGES)) == layers and len(asked) == count  # kept on disk


def test_without_a_gain_the_network_is_the_dense_one(vit, monkeypatch):
    monkeypatch.setattr(linears, "_measure", lambda *_: Timing(1.05, 1.0))
    compiled = engine.compile(vit, IMAGES)
    assert compiled.engine == "dense" and taken(compiled) == 0
    assert "no layer is faster" in compiled.reason


def test_a_network_that_is_slower_as_a_whole_is_the_dense_one(vit, monkeypatch):
    monkeypatch.setattr(linears, "_measure", lambda *_: Timing(2.0, 1.0))
    monkeypatch.setattr(engine, "_compare", lambda *_: (1.0, 1.0))
    compiled = engine.compile(vit, IMAGES)
    assert compiled.engine == "dense" and taken(compiled) == 0


def test_narrow_layers_dense_ones_and_compiling_by_rule_measure_nothing(vit, monkeypatch):
    monkeypatch.setattr(linears, "_measure", lambda *_: pytest.fail("it was measured"))
    engine.compile(vit, IMAGES, tune=False)
    monkeypatch.setattr(linears, "LEAST_FEATURES", 10_000)
    engine.compile(vit, IMAGES)
    monkeypatch.setattr(linears, "LEAST_FEATURES", 16)
    monkeypatch.setattr(linears, "DENSEST", 0.01)
    engine.compile(vit, IMAGES)

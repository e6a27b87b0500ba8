"""Whole networks against PyTorch: layouts, fusion, regions, and where zeros do not pay."""

from __future__ import annotations

import gc
import os
import weakref

import psutil
import pytest
import timm
import torch
from torch import Tensor, nn

from sparse_transfer import models, sparse  # noqa: F401 - registers the small variants
from sparse_transfer.errors import UserError
from sparse_transfer.sparse import engine, tuning
from sparse_transfer.sparse.engine import Region
from sparse_transfer.sparse.planning import Planner
from sparse_transfer.sparse.program import Program

pytestmark = pytest.mark.kernels


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSE_TRANSFER_CACHE", str(tmp_path))
    torch.manual_seed(0)


def lively(model: nn.Module, density: float = 0.2) -> nn.Module:
    """Batch norms that do something, zeros in every convolution but depthwise ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            keep = torch.rand(module.weight.shape) < density
            module.weight.data.mul_(keep * density**-0.5)
    return model.eval()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def regions(compiled: sparse.Compiled) -> list[Region]:
    return [module for module in compiled.module.modules() if isinstance(module, Region)]


@pytest.mark.parametrize(
    ("name", "pixels", "batch", "kwargs", "whole"),
    [
        ("resnet18", 64, 2, {}, True),
        ("resnet50", 64, 1, {"channels": [32, 32, 64, 128]}, True),
        ("resnet20_cifar", 33, 17, {}, False),  # its shortcut pads channels
        ("resnet18_cifar", 32, 3, {"channels": [8, 16, 24, 40]}, True),
        ("vgg19_cifar", 32, 5, {"channels": [8, 8, 16, 16, 16]}, True),
        ("mobilenetv1_100", 70, 1, {}, True),
        ("mobilenetv2_050", 75, 3, {"pad_type": "same"}, True),  # padding of TensorFlow
        ("mobilenetv3_small_050", 64, 3, {}, True),
        ("efficientnet_b0", 64, 2, {}, True),
        ("regnety_002", 64, 2, {}, True),
        ("densenet121", 64, 1, {}, True),
        ("resnetv2_50", 64, 1, {}, True),  # norms before convolutions
        ("convnext_atto", 64, 1, {}, False),
    ],
)
def test_networks_agree_with_pytorch(name, pixels, batch, kwargs, whole):
    model = lively(timm.create_model(name, **kwargs))
    images = torch.randn(batch, 3, pixels, pixels)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    compiled = sparse.compile(model, images, tune=False)
    others = torch.randn(batch + 3, 3, pixels, pixels)
    with torch.no_grad():
        assert relative(compiled(images), model(images)) <= 1e-5
        assert relative(compiled(others), model(others)) <= 1e-5
    assert compiled.engine == "sparse"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    if whole:
        assert len(regions(compiled)) == 1
        left = [m for m in compiled.module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        assert not left


class Awkward(nn.Module):
    """Values read twice, sums of sums, concatenations, a gate, an unknown function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=2, dilation=2)
        self.c, self.d = nn.Conv2d(12, 12, (1, 5), stride=(1, 2), bias=False), nn.Conv2d(24, 7, 2)
        self.e, self.f = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.average, self.ceil = nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.relu(a)  # a is read again
        c = self.b(b) + a
        d = self.relu(c) + c + b  # sums of sums
        e = torch.cat([self.pool(d), self.average(self.e(d))], 1)
        f = self.f(self.relu(d)) * torch.sigmoid(self.e(d.mean((2, 3), keepdim=True)))
        g = torch.sin(f) + f  # the kernels have no sine
        parts = self.d(e), self.c(g), self.ceil(b)
        return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize(("batch", "pixels"), [(1, 20), (5, 13), (16, 9), (33, 6)])
def test_awkward_graphs_agree(batch, pixels):
    model, images = lively(Awkward(), 0.3), torch.randn(batch, 6, pixels, pixels)
    compiled = sparse.compile(model, images, tune=False)
    with torch.no_grad():
        assert relative(compiled(images), model(images)) <= 1e-5
    assert len(regions(compiled)) == 2


def test_without_zeros_the_callable_is_the_dense_path():
    images = torch.randn(2, 3, 32, 32)
    compiled = sparse.compile(timm.create_model("resnet20_cifar"), images)
    assert compiled.engine == "dense" and not regions(compiled)
    assert compiled.rows == () and "no layer is faster" in compiled.reason


def test_where_no_layer_is_faster_sparse_it_is_too(monkeypatch):
    def always_dense(self, problem):
        return tuning.Choice("dense", (1, 1), 1, 1.0, 1.0)

    monkeypatch.setattr(tuning.Tuner, "_measure", always_dense)
    images = torch.randn(2, 3, 32, 32)
    compiled = sparse.compile(lively(timm.create_model("resnet20_cifar")), images)
    assert compiled.engine == "dense" and not regions(compiled) and len(compiled.rows) > 10


@pytest.mark.parametrize(("factor", "expected"), [(0.5, "dense"), (2.0, "sparse")])
def test_the_whole_must_be_faster_than_pytorch(monkeypatch, factor, expected):
    monkeypatch.setattr(engine, "_compare", lambda *_: (factor, 1.0))
    images = torch.randn(2, 3, 32, 32)
    compiled = sparse.compile(lively(timm.create_model("resnet20_cifar"), 0.05), images)
    assert compiled.engine == expected and f"{factor:.2f} times" in compiled.reason


def test_an_engine_that_is_wrong_is_not_used(monkeypatch):
    monkeypatch.setattr(engine, "_error", lambda *_: float("nan"))
    images = torch.randn(2, 3, 32, 32)
    compiled = sparse.compile(lively(timm.create_model("resnet20_cifar")), images, tune=False)
    assert compiled.engine == "dense" and "is off by" in compiled.reason


def test_what_was_measured_is_not_measured_again(monkeypatch, tmp_path):
    model, images = lively(timm.create_model("resnet20_cifar")), torch.randn(2, 3, 32, 32)
    sparse.compile(model, images)
    (cache,) = tmp_path.glob("sparse-kernels-*.json")
    content = cache.read_text()
    monkeypatch.setattr(tuning.Tuner, "_measure", None)
    monkeypatch.setattr(engine, "_compare", None)
    sparse.compile(model, images)
    assert cache.read_text() == content
    cache.write_text(content[:30])  # cut off: measured anew, not an error
    with pytest.raises(TypeError, match="not callable"):
        sparse.compile(model, images)


def test_explain_has_a_line_for_each_convolution():
    model, images = lively(timm.create_model("resnet20_cifar")), torch.randn(2, 3, 32, 32)
    lines = sparse.compile(model, images, tune=False).explain().splitlines()
    assert lines[0].startswith("sparse: ") and lines[1].split()[:3] == [
        "layer",
        "weight",
        "density",
    ]
    assert any(line.startswith("layer1.0.conv1 ") and "16×16×3×3" in line for line in lines)
    assert len(lines) == 2 + 19


def test_channels_that_nobody_reads_are_not_computed():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    with torch.no_grad():
        net[0].weight[2] = 0  # always relu(bias), but read
        net[2].weight[:, [0, 5]] = 0  # not read
        net[2].weight[1] = 0  # its output is the bias
    images = torch.randn(2, 3, 12, 12)
    compiled = sparse.compile(net, images, tune=False)
    with torch.no_grad():
        assert relative(compiled(images), net(images)) <= 1e-6
    assert [row.outputs for row in compiled.rows] == [6, 4]


def test_threads_share_images_and_single_images():
    # without a classifier: PyTorch's own product may round differently with more threads
    model = lively(timm.create_model("resnet18", channels=[16, 24, 32, 48], num_classes=0))
    before = torch.get_num_threads()
    try:
        for batch in (1, 3, 16):
            images = torch.randn(batch, 3, 64, 64)
            compiled = sparse.compile(model, images, tune=False)
            torch.set_num_threads(1)
            alone = compiled(images)
            torch.set_num_threads(3)
            assert torch.equal(compiled(images), alone)
    finally:
        torch.set_num_threads(before)


def test_pixels_that_a_strided_shortcut_skips_are_not_moved(monkeypatch):
    """Where its input lies in other lanes than it is read in, only those that are read move."""
    moved, regrid = [], Program.regrid

    def watch(program, source, target, step=(1, 1)):
        moved.append((source.layout.image, target.layout.image, step))
        regrid(program, source, target, step)

    monkeypatch.setattr(Program, "regrid", watch)
    net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 6, 1, 2), nn.Conv2d(6, 5, 1))
    model, images = lively(net), torch.randn(1, 4, 28, 28)
    compiled = sparse.compile(model, images, tune=False)
    assert moved == [((28, 28), (14, 14), (2, 2))]
    with torch.inference_mode():
        assert relative(compiled(images), model(images)) <= 1e-5


def test_memory_does_not_grow():
    model, images = lively(timm.create_model("resnet20_cifar")), torch.randn(2, 3, 32, 32)
    compiled, process = sparse.compile(model, images, tune=False), psutil.Process(os.getpid())
    for _ in range(50):
        compiled(images)
    before = process.memory_info().rss
    for _ in range(1000):
        compiled(images)
    assert process.memory_info().rss - before < 4e6


def test_dense_weights_are_not_kept(monkeypatch):
    made: list[weakref.ref[Planner]] = []

    def planner(*args) -> Planner:
        planner = Planner(*args)
        made.append(weakref.ref(planner))  # it holds the steps, and they the weights
        return planner

    monkeypatch.setattr(engine, "Planner", planner)
    model = lively(timm.create_model("resnet50", channels=[16, 16, 24, 32]))
    gc.disable()
    try:
        compiled = sparse.compile(model, torch.randn(4, 3, 64, 64), tune=False)
        assert len(made) == 1 and made[0]() is None
    finally:
        gc.enable()
    assert compiled.engine == "sparse"
    assert {name for name, _ in compiled.module.named_parameters()} == {"fc.weight", "fc.bias"}


def test_no_images_are_no_outputs():
    model, images = lively(timm.create_model("resnet20_cifar")), torch.randn(2, 3, 32, 32)
    assert sparse.compile(model, images, tune=False)(images[:0]).shape == (0, 10)


def test_what_cannot_be_traced_runs_dense_and_says_so():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else -self.conv(x)

    model, images = lively(Branches(), 0.1), torch.randn(2, 3, 4, 4)
    compiled = sparse.compile(model, images)
    assert compiled.engine == "dense" and "cannot trace" in compiled.reason
    torch.testing.assert_close(compiled(images), model(images))


def test_what_cannot_be_compiled_is_refused():
    net, images = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    for model, example, words in (
        (nn.Conv2d(3, 4, 3).double(), images, "torch.float64"),
        (net, images[:, :1], "cannot be run on the example"),
        (nn.Conv2d(3, 4, 3, device="meta"), images, "meta"),
        (net, images.double(), "compute in float32"),
        (net, images[0], "must be"),
        (net, images[:0], "for no images"),
    ):
        with pytest.raises(UserError, match=words):
            sparse.compile(model, example)


def test_images_of_another_size_are_refused():
    model, images = lively(timm.create_model("resnet20_cifar")), torch.randn(2, 3, 32, 32)
    compiled = sparse.compile(model, images, tune=False)
    with pytest.raises(UserError, match=r"\(2, 3, 40, 40\); it must be \(any, 3, 32, 32\)"):
        compiled(torch.randn(2, 3, 40, 40))

"""Regions against float64 autograd of the same network with dense weights under a mask."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import Tensor, nn

from sparse_transfer import models  # noqa: F401 - registers the small variants
from sparse_transfer.errors import UserError
from sparse_transfer.sparse import library, training_regions
from sparse_transfer.sparse.drop_in import SparseConv2d
from sparse_transfer.sparse.saved_memory import SavedMemory
from sparse_transfer.sparse.training_regions import Region

pytestmark = pytest.mark.kernels
LEVELS = [] if library.available() else library.levels()


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def fuse(module: nn.Module, images: Tensor) -> nn.Module:
    return training_regions.fuse(module, images)[0]


class Block(nn.Module):
    """A basic block, or a bottleneck, with a shortcut that may be a convolution."""

    def __init__(self, into: int, out: int, stride: int, act: type[nn.Module], wide: bool) -> None:
        super().__init__()
        sizes = [(into, 8, 1, 1), (8, 8, 3, stride), (8, out, 1, 1)]
        if not wide:
            sizes = [(into, out, 3, stride), (out, out, 3, 1)]
        layers: list[nn.Module] = []
        for a, b, kernel, step in sizes:
            layers += [nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(b)]
            layers.append(act())
        self.main = nn.Sequential(*layers[:-1])
        self.short = nn.Sequential()
        if stride > 1 or into != out:
            conv = nn.Conv2d(into, out, 1, stride, bias=False)
            self.short = nn.Sequential(conv, nn.BatchNorm2d(out))
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.main(x) + self.short(x))


class BeforeAct(nn.Module):
    """Norms before convolutions: a sum is normalised, and added to."""

    def __init__(self, act: type[nn.Module]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(2))
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(self.act(norm(x)))
        return x


def network(name: str, act: type[nn.Module]) -> nn.Module:
    conv, norm = nn.Conv2d, nn.BatchNorm2d
    if name == "chain":
        return nn.Sequential(
            conv(3, 9, 3, 1, 1, bias=False), norm(9), act(),
            conv(9, 6, 1, bias=False), norm(6), act(),
        )  # fmt: skip
    if name == "biases":
        return nn.Sequential(
            conv(3, 9, 3, 2, 1), act(), conv(9, 6, 5, 1, 2), norm(6, affine=False), conv(6, 8, 3)
        )
    if name == "groups":  # and dilation
        return nn.Sequential(
            conv(3, 8, 3, padding=1), norm(8), act(), conv(8, 8, 3, 2, 1, groups=8, bias=False),
            norm(8), act(), conv(8, 4, 3, padding=2, dilation=2, groups=2, bias=False), norm(4),
        )  # fmt: skip
    if name == "basic":
        return nn.Sequential(Block(3, 8, 1, act, False), Block(8, 8, 1, act, False),
                             Block(8, 20, 2, act, False), Block(20, 20, 1, act, False))  # fmt: skip
    if name == "bottleneck":
        return nn.Sequential(
            Block(3, 16, 1, act, True), Block(16, 16, 1, act, True), Block(16, 24, 2, act, True)
        )
    if name == "pool":
        return nn.Sequential(
            conv(3, 9, 3, padding=1), norm(9), act(), nn.MaxPool2d(3, 2, 1),
            Block(9, 9, 1, act, False), nn.MaxPool2d(2, 2, 1), conv(9, 5, 3, 1, 1),
        )  # fmt: skip
    assert name == "before"
    return BeforeAct(act)


def lively(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return model.train()


def masked(model: nn.Module, density: float = 0.3) -> tuple[nn.Module, dict[str, Tensor]]:
    """The same with sparse convolutions, and their masks; the model's weights lose theirs."""
    kept = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            kept[name] = torch.rand(module.weight.shape) < density
            module.weight.data.mul_(kept[name] * density**-0.5)
    sparse = copy.deepcopy(model)
    for name, mask in kept.items():
        parent, _, child = name.rpartition(".")
        conv = model.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        layer = SparseConv2d.from_dense(copy.deepcopy(conv), mask)
        setattr(sparse.get_submodule(parent), child, layer)
    return sparse, kept


def off(found: Tensor, expected: Tensor, floor: float = 1e-9) -> float:
    return float(
        (found.double() - expected).detach().norm() / expected.detach().norm().clamp_min(floor)
    )


def agree(sparse: nn.Module, fused: nn.Module, kept: dict[str, Tensor], model: nn.Module,
          images: Tensor, tolerance: float = 1e-5) -> None:  # fmt: skip
    """Outputs, gradients to everything, and running statistics after one step."""
    truth, exact = copy.deepcopy(model).double(), images.double().requires_grad_()
    images = images.clone().requires_grad_()
    expected, found = truth(exact), fused(images)
    assert off(found, expected) <= 2e-6
    pull = torch.randn(expected.shape) * (1 + torch.rand(expected.shape))
    expected.backward(pull.double())
    found.backward(pull)
    assert off(images.grad, exact.grad) <= tolerance
    params = dict(truth.named_parameters())
    largest = max(float(p.grad.norm()) for p in params.values())
    for name, parameter in sparse.named_parameters():
        layer, _, last = name.rpartition(".")
        grad = (
            params[f"{layer}.weight"].grad[kept[layer]] if last == "values" else params[name].grad
        )
        # a bias before a norm has no gradient but rounding
        assert off(parameter.grad, grad, floor=0.1 * largest) <= tolerance, name
    buffers = dict(truth.named_buffers())
    for name, buffer in sparse.named_buffers():
        if "kept" not in name:
            torch.testing.assert_close(
                buffer.double(), buffers[name].double(), rtol=1e-5, atol=1e-6
            )


NETWORKS = ["chain", "biases", "groups", "basic", "bottleneck", "pool", "before"]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("size", "batch", "planned"), [(12, 5, 5), (33, 2, 2), (8, 19, 32)])
def test_smooth_networks_agree_with_float64(name, size, batch, planned):
    model = lively(network(name, nn.Identity))
    sparse, kept = masked(model)
    fused = fuse(sparse, torch.randn(planned, 3, size, size))
    assert sum(isinstance(m, Region) for m in fused.modules()) == 1
    agree(sparse, fused, kept, model, torch.randn(batch, 3, size, size))


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("name", NETWORKS)
def test_activations_pass_gradients_where_they_are_open(name, act):
    model = lively(network(name, act))
    sparse, kept = masked(model)
    images = 2 * torch.randn(3, 3, 10, 10)  # so few values that none lies at the bend
    agree(sparse, fuse(sparse, images), kept, model, images)


@pytest.mark.parametrize("level", LEVELS)
def test_levels_and_threads_agree(level, monkeypatch):
    monkeypatch.setenv(library.CHOICE, level)
    torch.set_num_threads(2)
    model = lively(network("basic", nn.Identity))
    sparse, kept = masked(model)
    images = torch.randn(7, 3, 16, 16)
    agree(sparse, fuse(sparse, images), kept, model, images)


@pytest.mark.parametrize("name", ["basic", "pool"])
def test_frozen_norms_use_their_running_statistics(name):
    model = lively(network(name, nn.Identity))
    sparse, kept = masked(model)
    images = torch.randn(4, 3, 9, 9)
    fused = fuse(sparse, images)
    norms = [m for m in sparse.modules() if isinstance(m, nn.BatchNorm2d)]
    theirs = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    agree(sparse, fused, kept, model, images)  # first all by the batch
    model, after = copy.deepcopy(model), dict(sparse.named_buffers())
    for key, buffer in model.named_buffers():
        buffer.copy_(after[key])
    sparse.zero_grad()
    theirs = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for mine, other in list(zip(norms, theirs, strict=True))[::2]:
        mine.eval(), other.eval()
    agree(sparse, fused, kept, model, images)


def test_a_large_mean_does_not_swallow_a_small_deviation():
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2)).train()
    model[0].weight.data.copy_(torch.eye(2)[:, :, None, None])
    sparse = nn.Sequential(
        SparseConv2d.from_dense(model[0], model[0].weight != 0), copy.deepcopy(model[1])
    )
    images = 300 + 0.125 * torch.randint(-1, 2, (40, 2, 14, 14))  # exact in float32
    found = fuse(sparse, images)(images)
    assert off(found, model.double()(images.double())) <= 1e-3  # 300 / 0.1 · 2⁻²⁴, and some
    assert off(sparse[1].running_var, model[1].running_var) <= 1e-7


def test_equal_values_in_a_window_give_the_gradient_to_the_first():
    conv = nn.Conv2d(1, 1, 1, bias=False)
    conv.weight.data.fill_(1)
    model = nn.Sequential(conv, nn.MaxPool2d(3, 2, 1))
    sparse, _ = masked(model, 2.0)
    sparse[0].values.data.fill_(1)
    images = torch.randint(0, 3, (3, 1, 11, 9)).float().requires_grad_()
    expected = images.detach().clone().requires_grad_()
    pull = torch.randn(3, 1, 6, 5)
    fuse(sparse, images.detach())(images).backward(pull)
    model[1](expected).backward(pull)
    assert torch.equal(images.grad, expected.grad)


def trained(fused: nn.Module, images: Tensor, steps: int) -> list[Tensor]:
    optimizer = torch.optim.SGD(fused.parameters(), 0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        fused(images).square().mean().backward()
        optimizer.step()
    return [value.clone() for value in fused.state_dict().values()]


def test_runs_are_the_same_bit_by_bit_and_copies_train_alike():
    torch.set_num_threads(2)
    sparse, _ = masked(lively(network("basic", nn.ReLU)))
    images = torch.randn(37, 3, 8, 8)
    fused = fuse(sparse, images)
    other = copy.deepcopy(fused)
    for one, two in zip(trained(fused, images, 3), trained(other, images, 3), strict=True):
        assert torch.equal(one, two)


def test_names_and_parameters_are_the_modules():
    sparse, _ = masked(lively(network("basic", nn.ReLU)))
    fused = fuse(sparse, torch.randn(2, 3, 8, 8))
    assert list(fused.state_dict()) == list(sparse.state_dict())
    assert {id(p) for p in fused.parameters()} == {id(p) for p in sparse.parameters()}
    trained(fused, torch.randn(2, 3, 8, 8), 1)
    assert all(
        torch.equal(a, b) for a, b in zip(fused.parameters(), sparse.parameters(), strict=True)
    )
    fused.eval()
    assert not any(module.training for module in sparse.children())


def test_gradients_add_up_and_forwards_may_come_before_backwards():
    sparse, _ = masked(lively(network("basic", nn.ReLU)))
    batches = [torch.randn(n, 3, 8, 8) for n in (3, 5)]
    fused = fuse(sparse, batches[0])
    alone = []
    for images in batches:
        sparse.zero_grad()
        fused(images).square().sum().backward()
        alone.append([p.grad.clone() for p in sparse.parameters()])
    sparse.zero_grad()
    losses = [fused(images).square().sum() for images in batches]
    losses[1].backward()
    losses[0].backward()
    for parameter, first, second in zip(sparse.parameters(), *alone, strict=True):
        torch.testing.assert_close(parameter.grad, first + second)


def test_saved_memory_comes_back_and_is_used_again():
    sparse, _ = masked(lively(network("basic", nn.ReLU)))
    images = torch.randn(4, 3, 16, 16)
    fused = fuse(sparse, images)
    [region] = [m for m in fused.modules() if isinstance(m, Region)]
    fused(images).sum().backward()
    memory = region._memory
    assert memory is not None
    block = memory._free
    assert block is not None  # backward gave it back
    held = fused(images).sum()
    assert memory._free is None
    with torch.no_grad():
        fused(images)  # not held by anything
    assert memory._free is not None and memory._free is not block
    held.backward()
    fused(images).sum().backward()
    assert memory._free is not None


def test_what_is_not_known_runs_in_pytorch_between_regions():
    model = lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.GELU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )  # fmt: skip
    )
    sparse, kept = masked(model)
    images = torch.randn(6, 3, 8, 8)
    fused = fuse(sparse, images)
    assert sum(isinstance(m, Region) for m in fused.modules()) == 2
    agree(sparse, fused, kept, model, images)
    plain = nn.Sequential(nn.Linear(3, 4))
    assert fuse(plain, torch.randn(2, 3)) is plain  # there is nothing to do


@pytest.mark.parametrize(
    ("name", "pixels", "batch", "kwargs"),
    [
        ("resnet18", 64, 3, {"channels": [16, 16, 24, 40]}),
        ("resnet50", 64, 2, {"channels": [8, 16, 24, 32]}),
        ("resnet18_cifar", 32, 5, {"channels": [8, 16, 24, 40]}),
        ("vgg19_cifar", 32, 3, {"channels": [8, 8, 16, 16, 16]}),
    ],
)
def test_whole_networks_agree(name, pixels, batch, kwargs):
    model = lively(timm.create_model(name, num_classes=7, **kwargs))
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.ReLU):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Identity())
    sparse, kept = masked(model)
    images = torch.randn(batch, 3, pixels, pixels)
    fused = fuse(sparse, images)
    assert sum(isinstance(m, Region) for m in fused.modules()) == 1
    agree(sparse, fused, kept, model, images, tolerance=2e-5)


def test_dense_stems_and_shortcuts_stay_in_the_region():
    stem = [nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.Identity()]
    model = lively(nn.Sequential(*stem, network("basic", nn.Identity)[2]))
    sparse, kept = masked(model)
    for path in ("0", "3.short.0"):
        parent, _, child = path.rpartition(".")
        dense = copy.deepcopy(model.get_submodule(path)).to(memory_format=torch.channels_last)
        setattr(sparse.get_submodule(parent), child, dense)
        del kept[path]
    images = torch.randn(3, 3, 24, 24)
    fused = fuse(sparse, images)
    [region] = [m for m in fused.modules() if isinstance(m, Region)]
    assert sum(node.do == "convolve" for node in region.nodes) == 4
    agree(sparse, fused, kept, model, images)


def test_a_padded_convolution_of_one_pixel_reads_zeros_around_its_images():
    """What is kept from step to step must not be read where no image is."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1, padding=1)]
    model = lively(nn.Sequential(*layers, nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)))
    sparse, kept = masked(model)
    images = torch.randn(3, 3, 13, 13)
    fused = fuse(sparse, images)
    [region] = [m for m in fused.modules() if isinstance(m, Region)]
    assert sum(node.do == "convolve" for node in region.nodes) >= 2
    agree(sparse, fused, kept, model, images)


def test_second_derivatives_are_refused():
    sparse, _ = masked(lively(network("chain", nn.ReLU)))
    images = torch.randn(2, 3, 8, 8)
    loss = fuse(sparse, images)(images).square().sum()
    with pytest.raises(UserError, match="cannot be differentiated again"):
        torch.autograd.grad(loss, list(sparse.parameters()), create_graph=True)


@pytest.mark.parametrize(
    "images", [torch.randn(2, 3, 9, 8), torch.randn(2, 3, 8, 8).double(), torch.randn(0, 3, 8, 8)]
)
def test_wrong_images_are_refused(images):
    sparse, _ = masked(lively(network("chain", nn.ReLU)))
    with pytest.raises(UserError):
        fuse(sparse, torch.randn(2, 3, 8, 8))(images)


def test_one_value_per_channel_has_no_variance():
    sparse, _ = masked(lively(network("chain", nn.ReLU)))
    images = torch.randn(1, 3, 1, 1)
    fused = fuse(sparse, images)
    with pytest.raises(UserError, match="no variance"):
        fused(images)
    fused.eval()(images)


class InPlace(nn.Module):
    """What is written over is read again: by its own name, by another, or before."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(2))
        self.act, self.same, self.how = nn.ReLU(inplace=True), nn.Identity(), how

    def forward(self, images: Tensor) -> Tensor:
        x = self.norms[0](self.first(images))
        y = x
        if self.how == "module":
            y = self.act(x)
        elif self.how == "unread":
            self.act(x)
        elif self.how == "function":
            y = nn.functional.relu(x, inplace=True)
        elif self.how == "method":
            y = x.relu_()
        elif self.how == "alias":
            y = self.same(x).relu_()
        elif self.how == "view":
            x[:, 2:].relu_()
        elif self.how == "unknown":
            nn.functional.silu(x, inplace=True)
        else:
            y += torch.tanh(x)
        return self.norms[1](self.second(y)) + x


@pytest.mark.parametrize(
    "how", ["module", "unread", "function", "method", "alias", "view", "unknown", "sum"]
)
def test_what_is_written_over_in_place_is_seen_by_its_other_readers(how):
    model = lively(InPlace(how))
    sparse, kept = masked(model)
    images = torch.randn(4, 3, 12, 12)
    fused = fuse(sparse, images)
    assert any(isinstance(m, Region) for m in fused.modules())
    agree(sparse, fused, kept, model, images, tolerance=1e-3)


def test_a_resnet_that_works_in_place_is_one_region():
    sparse, _ = masked(timm.create_model("resnet18", num_classes=3).train())
    assert sparse.act1.inplace
    fused = fuse(sparse, torch.randn(2, 3, 64, 64))
    [region] = [m for m in fused.modules() if isinstance(m, Region)]
    assert sum(node.layer is not None for node in region.nodes) == 20


def test_a_first_call_in_inference_mode_does_no_harm():
    model = lively(network("basic", nn.ReLU))
    sparse, kept = masked(model)
    images = torch.randn(4, 3, 16, 16)
    fused = fuse(sparse, images)
    with torch.inference_mode():
        fused(images)
        model(images)
    fused(images)  # the same plan
    model(images)
    agree(sparse, fused, kept, model, images, tolerance=1e-3)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network("chain", nn.SiLU)
        self.places = nn.Parameter(torch.randn(1, 3, 8, 8))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images + self.places)


@pytest.mark.parametrize("batch", [3, 1])
def test_a_learned_map_is_added_in_pytorch(batch):
    model = lively(Positions())
    sparse, kept = masked(model)
    images = torch.randn(batch, 3, 8, 8)
    agree(sparse, fuse(sparse, images), kept, model, images)


@pytest.mark.parametrize("path", ["1", "2", "3", "4"])
def test_hooks_are_called(path):
    model = lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8)),
            nn.Conv2d(8, 4, 1),
        )  # fmt: skip
    )
    sparse, _ = masked(model)
    layer, images, seen = sparse.get_submodule(path), torch.randn(2, 3, 12, 12), []
    layer.register_forward_pre_hook(lambda m, inputs: (inputs[0] + 1,))
    layer.register_forward_hook(lambda m, inputs, output: 2 * output)
    layer.register_full_backward_hook(lambda m, into, out: seen.append(1))
    fused = fuse(sparse, images)
    assert any(isinstance(m, Region) for m in fused.modules())
    found = fused(images)
    torch.testing.assert_close(found, copy.deepcopy(sparse)(images), rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert seen == [1]


def test_why_there_is_no_region():
    class Iterating(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack(list(x))

    images = torch.randn(2, 3, 8, 8)
    conv = SparseConv2d.from_dense(nn.Conv2d(3, 4, 3, padding=1), torch.rand(4, 3, 3, 3) < 0.2)
    for module, reason in (
        (nn.Sequential(conv, Iterating()), "cannot trace"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "no sparse convolution"),
    ):
        same, found = training_regions.fuse(module, images)
        assert same is module
        assert found is not None and reason in found
    assert training_regions.fuse(nn.Sequential(conv, nn.ReLU()), images)[1] is None


def test_statistics_of_a_diverged_batch_are_no_numbers():
    sparse, _ = masked(lively(network("chain", nn.ReLU)))
    images = torch.randn(2, 3, 8, 8)
    images[0] = torch.nan
    fuse(sparse, images)(images)
    sparse_norm = sparse.get_submodule("1")
    assert isinstance(sparse_norm, nn.BatchNorm2d)
    assert sparse_norm.running_var.isnan().all()


def test_memory_may_come_back_while_memory_is_taken():
    """A collection of garbage may happen anywhere, also where the lock is held."""
    memory = SavedMemory(library.current())

    def take() -> None:
        with memory._lock:
            memory.take(16)  # comes back at once

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert memory._free is not None

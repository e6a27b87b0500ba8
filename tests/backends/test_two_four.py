"""2:4 layers: which are eligible, what stands for them, what is chosen. A GPU only at the end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparse_transfer.backends import two_four
from sparse_transfer.backends.two_four import Backend, Product, is_eligible, is_two_four
from sparse_transfer.errors import UserError


def halved(module: nn.Module) -> nn.Module:
    """Two of every four neighbouring inputs removed, which ones differing by output."""
    weight = module.weight.data  # type: ignore[union-attr]
    order = torch.rand(weight.shape[0], weight.shape[1] // 4, 4, *weight.shape[2:]).argsort(2)
    weight.mul_((order < 2).reshape(weight.shape))
    return module


def pointwise(*arguments, **keywords) -> nn.Module:
    return nn.Conv2d(64, 32, 1, *arguments, **keywords)


def test_the_pattern_is_along_the_inputs():
    assert is_two_four(torch.tensor([[1.0, 0, 0, 2, 0, 3, 0, 0]]))
    assert not is_two_four(torch.tensor([[1.0, 2, 3, 0, 0, 0, 0, 0]]))
    assert is_two_four(torch.zeros(3, 8)) and not is_two_four(torch.zeros(3, 6))
    along_outputs = torch.zeros(4, 4)
    along_outputs[:2] = 1  # two of four down a column, all of four along a row
    assert not is_two_four(along_outputs) and is_two_four(along_outputs.T)
    assert is_two_four(torch.tensor([1.0, 0, 2, 0]).reshape(1, 4, 1, 1))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (halved(nn.Linear(64, 32)), True),
        (halved(pointwise()), True),
        (halved(pointwise(stride=2)), True),
        (nn.Linear(64, 32), False),  # dense
        (halved(nn.Linear(64, 10)), False),  # no multiple of 32 outputs
        (halved(nn.Linear(32, 32)), False),  # no multiple of 64 inputs
        (halved(pointwise(padding=1)), False),
        (halved(nn.Conv2d(64, 32, 3)), False),
        (nn.Conv2d(64, 64, 1, groups=64), False),
        (nn.BatchNorm2d(64), False),
    ],
    ids=str,
)
def test_which_layers_are_eligible(module: nn.Module, expected: bool):
    assert is_eligible(module) is expected


@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_the_convolution(stride, bias):
    conv = halved(pointwise(stride=stride, bias=bias)).double()
    x = torch.randn(3, 64, 7, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    product = Product(conv, conv.weight.detach().flatten(1))
    torch.testing.assert_close(product(x), conv(x))
    assert product(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(5, 64), (2, 7, 64)])
def test_a_product_is_the_linear_layer(shape):
    linear = halved(nn.Linear(64, 32))
    x = torch.randn(shape)
    torch.testing.assert_close(Product(linear, linear.weight.detach())(x), linear(x))


class Net(nn.Module):
    """A dense stem, two eligible layers, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3)
        self.body = nn.Sequential(halved(nn.Conv2d(64, 64, 1)), nn.ReLU())
        self.head = halved(nn.Linear(64, 32))
        self.unused = halved(nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("slow", ["dense", "sparse"])
def test_the_faster_form_of_each_layer_stays(slow, monkeypatch):
    def timed(runs, example, **_):
        assert set(runs) == {"dense", "sparse"} and example.shape[1] == 64
        return {name: 2.0 if name == slow else 1.0 for name in runs}

    monkeypatch.setattr(two_four.latency, "medians", timed)
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = net(x)
        made, chosen, eligible = two_four.convert(net, x, lambda weight: weight)
        torch.testing.assert_close(made(x), expected)
    assert (chosen, eligible) == (2 if slow == "dense" else 0, 3)
    for layer in (made.body[0], made.head):
        assert isinstance(layer, Product) == (slow == "dense")
    assert not isinstance(made.stem, Product) and not isinstance(made.unused, Product)


def test_without_such_a_gpu_it_says_why_and_refuses(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Backend().available() == "PyTorch finds no NVIDIA GPU here"
    with pytest.raises(UserError, match="two-four cannot run"):
        Backend().prepare(nn.Linear(2, 2), torch.zeros(1, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Old GPU")
    reason = Backend().available()
    assert reason == "Old GPU has compute capability 7.5; sparse tensor cores begin at 8.0"


def test_images_in_main_memory_are_refused(monkeypatch):
    monkeypatch.setattr(Backend, "available", lambda self: None)
    with pytest.raises(UserError, match="two-four cannot run") as caught:
        Backend().prepare(nn.Linear(2, 2), torch.zeros(1, 2))
    assert "--device cuda" in caught.value.why


def test_on_a_gpu_it_agrees_with_the_model():
    if Backend().available():
        pytest.skip(Backend().available())
    net = Net().eval()
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        expected = net(x)
    run = Backend().prepare(net, x.cuda())
    output = run(x.cuda()).cpu()
    assert output.dtype == torch.float32
    assert (output - expected).abs().max() < Backend.tolerance * expected.abs().max()
    assert "of 3 2:4 layers sparse" in run.note

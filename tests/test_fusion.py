from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from sparse_transfer import models  # noqa: F401 - registers the small variants
from sparse_transfer.fusion import fold_batch_norms


def lively(model: nn.Module) -> nn.Module:
    """Batch norms that do something, and a model in train mode."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    return model.train()


@pytest.mark.parametrize(
    ("name", "kwargs", "norms"),
    [
        ("resnet20_cifar", {"channels": [4, 8, 16]}, 19),
        ("resnet18", {"channels": [4, 4, 8, 8]}, 21),  # 20, and a shortcut from the 64-wide stem
        ("mobilenetv2_050", {"pad_type": "same"}, 52),  # BatchNormAct2d, padding of TensorFlow
        ("mobilenetv3_small_050", {}, 34),
    ],
)
def test_folding_keeps_the_function(name, kwargs, norms):
    model = lively(timm.create_model(name, **kwargs))
    fused, word = fold_batch_norms(model)
    assert word == f"{norms} of {norms} batch norms folded"
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        output, expected = fused(images), model.eval()(images)
    assert float((output - expected).abs().max() / expected.abs().max()) < 1e-5


def test_folding_copies_and_keeps_zeros():
    model = lively(timm.create_model("resnet20_cifar", channels=[4, 8, 16]))
    with torch.no_grad():
        model.conv1.weight[:, 0] = 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused, _ = fold_batch_norms(model)
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    weight = fused.get_parameter("conv1.weight")
    assert not weight[:, 0].any() and weight[:, 1:].ne(0).all()
    assert not torch.equal(weight, model.conv1.weight)


def test_a_convolution_that_is_read_twice_is_left():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.bn(x) + x

    model = lively(Twice())
    fused, word = fold_batch_norms(model)
    images = torch.randn(2, 3, 4, 4)
    assert word == "0 of 1 batch norms folded"
    assert torch.allclose(fused(images), model.eval()(images))


def test_what_cannot_be_traced_stays_unfused_and_says_so():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn(self.conv(x))
            return x if x.sum() > 0 else -x

    model = lively(Branches())
    fused, word = fold_batch_norms(model)
    assert word.startswith("batch norm not folded: torch.fx cannot trace the model")
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(fused(images), model.eval()(images))
    assert not fused.training

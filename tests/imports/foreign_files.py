"""Made state dicts in the layouts of other projects, from small networks with known outputs."""

from __future__ import annotations

import re
from collections.abc import Callable

import timm
import torch
from torch import Tensor, nn

State = dict[str, Tensor]
NARROW = {"channels": [8, 16, 16, 32]}  # a ResNet that is built in no time


def network(name: str = "resnet18", classes: int = 5, **kwargs) -> nn.Module:
    """A network whose batch norms, too, are far from their initial values, in eval mode."""
    torch.manual_seed(7)
    model = timm.create_model(name, num_classes=classes, **(NARROW if "resnet" in name else kwargs))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@torch.no_grad()
def prune(model: nn.Module, sparsity: float, skip: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Zero the smallest weights of every convolution and linear layer; parameter name → kept."""
    masks = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and path not in skip:
            cut = module.weight.abs().flatten().kthvalue(round(sparsity * module.weight.numel()))[0]
            masks[f"{path}.weight"] = module.weight.abs() > cut
            module.weight.mul_(masks[f"{path}.weight"])
    return masks


def wrapped(state: State, masks: dict[str, Tensor], noise: bool = False) -> State:
    """Layers inside their wrappers, with float masks; with `noise`, pruned weights are not zero."""
    made: State = {}
    layers = {name.removesuffix(".weight") for name in masks}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        made[f"{module}._layer.{leaf}" if module in layers else name] = tensor.clone()
    for name, mask in masks.items():
        module = name.removesuffix(".weight")
        made[f"{module}._weight_mask"] = mask.float()
        if noise:
            made[f"{module}._layer.weight"] += (~mask).float()
        if f"{module}._layer.bias" in made:
            made[f"{module}._bias_mask"] = torch.ones_like(made[f"{module}._layer.bias"])
    return made


def rigl(state: State) -> State:
    """timm's ResNet-50 names → those of the network converted from TensorFlow."""

    def name(ours: str) -> str:
        ours = re.sub(r"^conv1\.", "initial_conv.conv.", ours)
        ours = re.sub(r"^bn1\.", "initial_conv.bn.", ours)
        ours = re.sub(r"^(layer\d)\.(\d+)\.conv(\d)\.", r"\1.block.\2.conv\3.conv.", ours)
        ours = re.sub(r"^(layer\d)\.(\d+)\.bn(\d)\.", r"\1.block.\2.conv\3.bn.", ours)
        ours = re.sub(r"^(layer\d)\.(\d+)\.downsample\.0\.", r"\1.block.\2.shortcut.conv.", ours)
        return re.sub(r"^(layer\d)\.(\d+)\.downsample\.1\.", r"\1.block.\2.shortcut.bn.", ours)

    return {name(ours): tensor for ours, tensor in state.items()}


def pairs(state: State, masks: dict[str, Tensor]) -> State:
    """`weight` → `weight_orig` and `weight_mask`; the pruned originals are not zero."""
    made = {name: tensor for name, tensor in state.items() if name not in masks}
    for name, mask in masks.items():
        made[f"{name}_orig"] = state[name] + (~mask).float()
        made[f"{name}_mask"] = mask.float()
    return made


def soft_thresholds(state: State, layers: list[str], s: float) -> State:
    """Weights whose soft-thresholded values are those of `state`, and the head as a convolution."""
    threshold = 1 / (1 + torch.tensor(-s).exp())
    made = dict(state)
    for name in layers:
        weight = state[name]
        below = torch.rand_like(weight) * threshold * 0.9  # what the threshold takes away
        made[name] = torch.where(weight != 0, weight + weight.sign() * threshold, below)
        made[name.removesuffix("weight") + "sparseThreshold"] = torch.full((1, 1), s)
    made["fc.weight"] = made["fc.weight"][:, :, None, None]
    made.pop("fc.bias", None)
    return made


def conv_bn(inputs: int, outputs: int, size: int, stride: int, groups: int = 1) -> list[nn.Module]:
    padding = size // 2
    conv = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def mobilenet(form: str, classes: int = 5) -> tuple[State, Callable[[Tensor], Tensor]]:
    """A MobileNetV1 with random weights: its state dict in one of two forms, and its function.

    Built here from the paper's table (arXiv 1704.04861), independent of timm.
    """
    torch.manual_seed(11)
    widths = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    stem = nn.Sequential(*conv_bn(3, 32, 3, 2))
    blocks = [
        nn.Sequential(*conv_bn(n, n, 3, stride, groups=n), *conv_bn(n, m, 1, 1))
        for n, m, stride in zip(widths, widths[1:], strides, strict=False)
    ]
    head = nn.Linear(1024, classes)
    body = nn.Sequential(stem, *blocks).eval()
    nn.init.normal_(stem[0].weight, std=3.0)  # so that ReLU and ReLU6 differ

    def forward(images: Tensor) -> Tensor:
        return head(body(images).mean((2, 3)))

    parts: dict[str, nn.Module] = {"model": body, "fc": head}
    if form == "amc":
        parts = {"conv1": stem, "features": nn.Sequential(*blocks), "classifier.0": head}
    state = {f"{path}.{n}": t for path, part in parts.items() for n, t in part.state_dict().items()}
    return {name: tensor.clone() for name, tensor in state.items()}, forward

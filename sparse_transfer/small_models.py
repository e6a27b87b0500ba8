"""Small-image networks in timm's interface: ResNet-20/18/50 with a 3×3 stem, and VGG-19.

They are registered with timm under names that end in `_cifar`, so `timm.create_model` builds them
once this module is imported, and have no pretrained weights. What differs from timm's own:

- no stride and no pooling before the first stage, which a 32-pixel image could not afford;
- `channels`, one number per stage, sets every width (the stem has the width of the first stage),
  so that a small dense net can be given as many weights as a sparse one keeps;
- weights start from He's normal distribution over the fan-out (arXiv 1502.01852), the classifier
  from torch's default; batch norms start at one, *not* at zero in the last of a block as in timm:
  with zeros there, most weights would have no gradient at step 0 for a criterion to read.

`resnet20_cifar` is the network of He et al. (arXiv 1512.03385, section 4.2) with parameter-free
shortcuts (option A: every second pixel, zeros for the new channels). `resnet18_cifar` and
`resnet50_cifar` keep projection shortcuts (option B) as on ImageNet. `vgg19_cifar` has 16
convolutions with batch norm, four max-pools, a global average, and a single linear layer. At ten
classes `resnet50_cifar` has 23,467,712 and `vgg19_cifar` 20,024,000 weights in convolutions and
classifier, the counts of the literature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch.nn.functional as F
from timm.layers import (
    SelectAdaptivePool2d,  # pyright: ignore[reportPrivateImportUsage] - timm.layers has no __all__
)
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

NAMES = ("resnet20_cifar", "resnet18_cifar", "resnet50_cifar", "vgg19_cifar")
VGG19_DEPTHS = (2, 2, 4, 4, 4)


@final
class SubsampleShortcut(nn.Module):
    """Option A shortcut: (n, c, h, w) → (n, c_out, ⌈h/stride⌉, ⌈w/stride⌉), no parameters."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))


class AbstractSmallNet(nn.Module):
    """What timm expects around a feature extractor; subclasses make the features and the head."""

    num_classes: int
    num_features: int
    head_hidden_size: int
    drop_rate: float
    global_pool: nn.Module
    fc: nn.Module

    def _add_head(self, num_features: int, num_classes: int, global_pool: str) -> None:
        self.num_features = num_features
        self.grad_checkpointing = False
        self.reset_classifier(num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the classifier by a new one; 0 classes leave the pooled features."""
        self.num_classes = num_classes
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) images → (n, num_features, h', w') feature maps."""
        raise NotImplementedError("AbstractSmallNet is not a network: use one of its subclasses")

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps → (n, classes) logits, or (n, num_features) with `pre_logits`."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) images → (n, classes) logits."""
        return self.forward_head(self.forward_features(x))


@final
class SmallResNet(AbstractSmallNet):
    """A residual net with a 3×3 stem at full resolution, halving it before each later stage."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        channels: Sequence[int],
        project: bool,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if len(channels) != len(layers):
            raise ValueError(f"{len(layers)} stages need {len(layers)} channels, got {channels}")
        self.in_chans, self.drop_rate = in_chans, drop_rate
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.act1 = nn.ReLU(inplace=True)
        self.stages = [f"layer{index + 1}" for index in range(len(layers))]
        self.feature_info = []
        width = channels[0]
        for index, (name, depth, planes) in enumerate(
            zip(self.stages, layers, channels, strict=True)
        ):
            blocks = []
            for place in range(depth):
                stride = 2 if index and not place else 1
                out = planes * block.expansion
                shortcut = None
                if stride > 1 or width != out:
                    shortcut = _shortcut(width, out, stride, project)
                blocks.append(block(width, planes, stride, downsample=shortcut))
                width = out
            self.add_module(name, nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": 2**index, "module": name})
        self._add_head(width, num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) images → (n, num_features, h', w') feature maps."""
        x = self.act1(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x


@final
class SmallVgg(AbstractSmallNet):
    """Plain 3×3 convolutions with batch norm, max-pooling between stages, one linear layer."""

    def __init__(
        self,
        depths: Sequence[int],
        channels: Sequence[int],
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if len(channels) != len(depths):
            raise ValueError(f"{len(depths)} stages need {len(depths)} channels, got {channels}")
        self.in_chans, self.drop_rate = in_chans, drop_rate
        layers: list[nn.Module] = []
        self.feature_info = []
        width = in_chans
        for index, (depth, planes) in enumerate(zip(depths, channels, strict=True)):
            if index:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                conv = nn.Conv2d(width, planes, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(planes), nn.ReLU(inplace=True)]
                width = planes
            self.feature_info.append(
                {"num_chs": width, "reduction": 2**index, "module": f"features.{len(layers) - 1}"}
            )
        self.features = nn.Sequential(*layers)
        self._add_head(width, num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) images → (n, num_features, h', w') feature maps."""
        return self.features(x)


def _shortcut(width: int, out: int, stride: int, project: bool) -> nn.Module:
    """Option B (a strided 1×1 convolution with batch norm) or the parameter-free option A."""
    if project:
        conv = nn.Conv2d(width, out, 1, stride=stride, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out))
    if out < width:
        raise ValueError(f"parameter-free shortcuts cannot narrow {width} channels to {out}")
    return SubsampleShortcut(stride, out - width)


def _cfg(first_conv: str) -> dict[str, Any]:
    """Input statistics are CIFAR-10's; an experiment records the ones it trained with."""
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2470, 0.2435, 0.2616),
        "first_conv": first_conv,
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {name: _cfg("features.0" if name.startswith("vgg") else "conv1") for name in NAMES}
)


def _resnet(name: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> SmallResNet:
    return build_model_with_cfg(SmallResNet, name, pretrained, **(defaults | kwargs))


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-20 for CIFAR: three stages of three basic blocks, 0.27 M weights."""
    shape = {"block": BasicBlock, "layers": (3, 3, 3), "channels": (16, 32, 64), "project": False}
    return _resnet("resnet20_cifar", pretrained, kwargs, **shape)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-18 with a 3×3 stem, 11.2 M weights."""
    channels = (64, 128, 256, 512)
    shape = {"block": BasicBlock, "layers": (2, 2, 2, 2), "channels": channels, "project": True}
    return _resnet("resnet18_cifar", pretrained, kwargs, **shape)


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> SmallResNet:
    """ResNet-50 with a 3×3 stem, 23.5 M weights."""
    channels = (64, 128, 256, 512)
    shape = {"block": Bottleneck, "layers": (3, 4, 6, 3), "channels": channels, "project": True}
    return _resnet("resnet50_cifar", pretrained, kwargs, **shape)


@register_model
def vgg19_cifar(pretrained: bool = False, **kwargs: Any) -> SmallVgg:
    """VGG-19 with batch norm and one linear layer, 20.0 M weights."""
    shape = {"depths": VGG19_DEPTHS, "channels": (64, 128, 256, 512, 512)}
    return build_model_with_cfg(SmallVgg, "vgg19_cifar", pretrained, **(shape | kwargs))

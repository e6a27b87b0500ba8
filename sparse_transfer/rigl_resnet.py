"""ResNet-50 as RigL's published checkpoints compute it, in timm's interface: `resnet50_rigl`.

They were trained in TensorFlow (Evci et al. 2020, arXiv 1911.11134), whose SAME padding of a
pooling with stride two adds its one row and column at the bottom and at the right, where PyTorch's
padding of one adds them at the top and at the left as well. So the maps are padded by (0, 1, 0, 1)
and pooled without padding. The zeros of the padding are never larger than what they stand beside:
the pooling follows a ReLU. Everything else, and every parameter name, is timm's `resnet50`.

Images are resized bicubically. No weights are published in this layout of names; `sparse-transfer
import` converts the published ones.
"""

from __future__ import annotations

from typing import Any, final

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

NAMES = ("resnet50_rigl",)


@final
class RiglResNet(ResNet):
    """timm's ResNet with the asymmetric padding before its max-pooling."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.maxpool = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, stride=2))


default_cfgs = generate_default_cfgs(
    {
        "resnet50_rigl": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


@register_model
def resnet50_rigl(pretrained: bool = False, **kwargs: Any) -> RiglResNet:
    """ResNet-50 with TensorFlow's padding before the max-pooling, 25.6 M weights."""
    shape = {"block": Bottleneck, "layers": (3, 4, 6, 3)}
    return build_model_with_cfg(RiglResNet, "resnet50_rigl", pretrained, **(shape | kwargs))

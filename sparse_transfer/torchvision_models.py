"""torchvision's classifiers in timm's interface, registered with timm as `torchvision_NAME`.

`torchvision:resnet50` in a model spec stands for `torchvision_resnet50`, `torchvision:resnet50.TAG`
for one of its sets of weights in small letters (`imagenet1k_v1`); without a tag it is torchvision's
default. Parameters keep torchvision's names, so its weight files fit as they are. The input
transform of each set (mean, std, size, crop, interpolation) is the one that torchvision states.

The features are what enters the last layer of the classifier; of SqueezeNet, whose last layer is a
1×1 convolution before a ReLU and the pooling, they are the averages of its feature maps.
`googlenet` and `inception_v3` are left out: they return auxiliary outputs in training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import torchvision.models as tv
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

PREFIX, REGISTERED = "torchvision:", "torchvision_"
# the last layer of the classifier, by the beginning of the model's name
HEADS = {
    ("alexnet", "vgg"): "classifier.6",
    ("convnext",): "classifier.2",
    ("densenet",): "classifier",
    ("efficientnet", "mnasnet", "mobilenet_v2", "squeezenet"): "classifier.1",
    ("maxvit",): "classifier.5",
    ("mobilenet_v3",): "classifier.3",
    ("regnet", "resnet", "resnext", "shufflenet", "wide_resnet"): "fc",
    ("swin",): "head",
    ("vit",): "heads.head",
}
SIZE_ARGUMENTS = {"vit": "image_size", "maxvit": "input_size"}  # of those with a fixed input size
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class AbstractTorchvisionNet(nn.Module):
    """What timm has around a network; mixed into a class of torchvision, which has the forward."""

    num_classes: int
    num_features: int
    head_hidden_size: int
    head_path: str

    def get_classifier(self) -> nn.Module:
        """The last layer: linear, or SqueezeNet's 1×1 convolution."""
        return self.get_submodule(self.head_path)

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the last layer by a new one of its kind; 0 classes leave the features."""
        if global_pool != "avg":
            raise ValueError(f"torchvision's networks pool by averages, not by {global_pool}")
        old = self.get_classifier()
        self.num_classes = num_classes
        new: nn.Module = nn.Identity()
        if num_classes and isinstance(old, nn.Conv2d):
            new = nn.Conv2d(self.num_features, num_classes, 1)
        elif num_classes:
            # a classifier that was taken away had a bias, as all but one have
            new = nn.Linear(self.num_features, num_classes, getattr(old, "bias", True) is not None)
        self.set_submodule(self.head_path, new)

    def forward_features(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) images → input of the last layer: (n, d), of SqueezeNet (n, d, h', w')."""
        seen: list[Tensor] = []
        hook = self.get_classifier().register_forward_pre_hook(
            lambda _module, inputs: seen.append(inputs[0])
        )
        try:
            self(x)
        finally:
            hook.remove()
        return seen[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` returned → (n, classes) logits, or (n, d) with `pre_logits`."""
        if not pre_logits:
            x = self.get_classifier()(x)
            x = x.relu() if x.ndim == 4 else x
        return x.mean((2, 3)) if x.ndim == 4 else x


def head_path(name: str) -> str:
    """Where the last layer of the classifier of a torchvision model is."""
    return next(path for names, path in HEADS.items() if name.startswith(names))


def torchvision_names() -> list[str]:
    """The networks of torchvision that can be used, by torchvision's names."""
    return [name for name in tv.list_models(module=tv) if name not in ("googlenet", "inception_v3")]


@cache
def _in_timm_terms(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (AbstractTorchvisionNet, kind), {})


def _build(
    name: str, num_classes: int = 1000, in_chans: int = 3, **kwargs: Any
) -> AbstractTorchvisionNet:
    if in_chans != 3:
        raise ValueError("torchvision's networks take images of three channels")
    for start, argument in SIZE_ARGUMENTS.items():
        size = kwargs.pop("img_size", None) if name.startswith(start) else None
        if size is not None:
            kwargs[argument] = size if start == "vit" else (size, size)
    device = torch.get_default_device()
    # RegNet computes its widths with tensors, which have no values on the meta device
    with torch.device("cpu") if name.startswith("regnet") else nullcontext():
        model = tv.get_model(name, weights=None, num_classes=num_classes or 1000, **kwargs)
    model.to(device)
    # the class is extended, not wrapped, so that every parameter keeps torchvision's name
    model.__class__ = _in_timm_terms(type(model))
    assert isinstance(model, AbstractTorchvisionNet)
    model.head_path, model.num_classes = head_path(name), num_classes or 1000
    last = model.get_classifier()
    width = last.in_channels if isinstance(last, nn.Conv2d) else last.in_features
    model.num_features = model.head_hidden_size = int(width)  # pyright: ignore[reportArgumentType]
    if not num_classes:
        model.reset_classifier(0)
    return model


def _legacy_names(state: Mapping[str, Tensor], _model: nn.Module) -> dict[str, Tensor]:
    """DenseNet's published files say `norm.1` for today's `norm1`."""
    return {re.sub(r"\b(norm|relu|conv)\.([12])\b", r"\1\2", n): t for n, t in state.items()}


def _cfg(name: str, weights: Any) -> dict[str, Any]:
    """timm's pretrained_cfg of one set of torchvision's weights."""
    stated = weights.transforms.keywords
    size, resize = stated["crop_size"], stated.get("resize_size", 256)
    interpolation = stated.get("interpolation")
    return {
        "url": weights.url,
        "num_classes": 1000,
        "input_size": (3, size, size),
        "fixed_input_size": name.startswith(tuple(SIZE_ARGUMENTS)),
        "crop_pct": size / resize,
        "interpolation": interpolation.value if interpolation is not None else "bilinear",
        "mean": tuple(stated.get("mean", IMAGENET_MEAN)),
        "std": tuple(stated.get("std", IMAGENET_STD)),
        "classifier": head_path(name),
    }


def _cfgs() -> dict[str, dict[str, Any] | PretrainedCfg]:
    found: dict[str, dict[str, Any] | PretrainedCfg] = {}
    for name in torchvision_names():
        sets = tv.get_model_weights(name)
        default = sets.DEFAULT  # pyright: ignore[reportAttributeAccessIssue]
        for weights in sorted(sets, key=lambda one, first=default: one is not first):
            found[f"{REGISTERED}{name}.{weights.name.lower()}"] = _cfg(name, weights)
    return found


default_cfgs = generate_default_cfgs(_cfgs())
NAMES = tuple(f"{REGISTERED}{name}" for name in torchvision_names())


def _register(name: str) -> None:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        def build(**arguments: Any) -> AbstractTorchvisionNet:
            return _build(name, **arguments)

        return build_model_with_cfg(
            build, REGISTERED + name, pretrained, pretrained_filter_fn=_legacy_names, **kwargs
        )

    entry.__name__ = REGISTERED + name
    register_model(entry)


for _name in torchvision_names():
    _register(_name)

"""torchvision: plain weights under torchvision's names; its ResNets have the same names as timm's.

For any `--arch torchvision:NAME`, with that network's input transform, and for ResNets of timm,
with the transform of torchvision's older weights (resize 256, crop 224, bilinear).
"""

from sparse_transfer.imports.layout import IMAGENET_INPUT, Layout, as_it_is, unmarked
from sparse_transfer.torchvision_models import PREFIX

LAYOUT = Layout(
    marks=unmarked,
    translate=as_it_is,
    config=lambda architecture: {} if architecture.startswith(PREFIX) else IMAGENET_INPUT,
    precedence=5,
)

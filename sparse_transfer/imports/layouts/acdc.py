"""AC/DC, WoodFisher and the transfer study: layers wrapped with their masks, torchvision's names.

Marks: `X._layer.weight` beside `X._weight_mask`. Networks: ResNets under torchvision's names and
MobileNetV1 (arXiv 2106.12379, 2111.13445). Exported checkpoints of these projects have no masks and
no marks: they are `woodfisher` or `timm`, and their sparsity must be declared.
"""

from sparse_transfer.imports.layout import IMAGENET_INPUT, PROJECTS_NETWORKS, Layout, as_it_is, ends

LAYOUT = Layout(
    marks=lambda stored: ends(stored, r"\._layer\.weight") or ends(stored, r"\._weight_mask"),
    translate=as_it_is,
    config=lambda _architecture: IMAGENET_INPUT,
    networks=PROJECTS_NETWORKS,
)

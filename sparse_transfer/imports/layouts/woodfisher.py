"""WoodFisher and M-FAC: plain weights with zeros, their MobileNetV1, M-FAC's vector of masks.

Marks: the MobileNetV1 of Distiller (`model.0.0.weight`) or AMC (`conv1.0.weight`), or a vector
`mask` beside the state dict (arXiv 2004.14340, 2107.03356). Their plain ResNets have torchvision's
names and no mark: give `--layout woodfisher` to have it on record. WoodFisher's training
checkpoints, with wrapped layers, have the marks of `acdc`, whose code began as WoodFisher's.
"""

from sparse_transfer.imports.layout import (
    IMAGENET_INPUT,
    PROJECTS_NETWORKS,
    Layout,
    as_it_is,
    mobilenet_names,
)

LAYOUT = Layout(
    marks=lambda stored: stored.has_vector or bool(mobilenet_names(stored.state)),
    translate=as_it_is,
    config=lambda _architecture: IMAGENET_INPUT,
    networks=PROJECTS_NETWORKS,
    precedence=2,  # a MobileNetV1 with thresholds or wrapped layers is of the other projects
)

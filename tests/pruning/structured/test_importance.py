"""Channel importance against Torch-Pruning, SciPy, explicit gates, and numbers by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from sparse_transfer.pruning.driver import Pruner
from sparse_transfer.pruning.methods import snip
from sparse_transfer.pruning.structured.graph import trace
from sparse_transfer.pruning.structured.importance import (
    Importance,
    Slice,
    fan,
    lowest_counts,
    read,
    score,
)
from tests.pruning.structured.shrinking import model_of
from tests.pruning.training import batch, small_cnn


def scores_of(
    model: nn.Module, size: int, importance: Importance, gradients: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    graph = trace(model, image_size=size)
    alive = graph.all_alive()
    tensors = dict(model.named_parameters())
    return {
        name: score(importance, graph.slices(name, alive), group.channels, tensors, gradients or {})
        for name, group in graph.groups.items()
    }


@pytest.mark.parametrize(("importance", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("name", ["small_cnn", "resnet18_cifar", "vgg19_cifar"])
def test_magnitudes_are_torch_prunings(name: str, importance: Importance, power: int) -> None:
    model, size = model_of(name)
    found = scores_of(model, size, importance)
    types = [nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm]
    reference = torch_pruning.importance.MagnitudeImportance(
        p=power, normalizer=None, target_types=types
    )
    graph = torch_pruning.DependencyGraph().build_dependency(
        model,
        example_inputs=[torch.rand(1, 3, size, size)],
        unwrapped_parameters=[],
        customized_pruners={},
        ignored_layers=[],
        ignored_params=[],
    )
    assert len(found) >= 2
    for path, scores in found.items():
        layer = model.get_submodule(path)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        group = graph.get_pruning_group(layer, prune, list(range(len(scores))))
        torch.testing.assert_close(scores, reference(group), rtol=1e-5, atol=1e-7)


def test_bn_gamma_is_the_scale_and_the_mean_over_coupled_scales() -> None:
    model = small_cnn()
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.arange(-4.0, 4.0))
    assert scores_of(model, 8, "bn_gamma")["0"].tolist() == [4, 3, 2, 1, 0, 1, 2, 3]
    resnet, size = model_of("resnet18_cifar")
    stream = scores_of(resnet, size, "bn_gamma")["conv1"]
    norms = [resnet.get_parameter(f"{n}.weight") for n in ("bn1", "layer1.0.bn2", "layer1.1.bn2")]
    torch.testing.assert_close(stream, torch.stack(norms).abs().mean(0))


def test_fpgm_is_the_sum_of_distances_between_filters() -> None:
    model = small_cnn()
    filters = model.get_parameter("3.weight").detach().flatten(1).numpy()
    expected = cdist(filters, filters).sum(1)
    found = scores_of(model, 8, "fpgm")["3"].numpy()
    assert found == pytest.approx(expected, rel=1e-4)
    with torch.no_grad():  # distances between |w| would make opposite filters replaceable
        model.get_parameter("3.weight")[0] = -model.get_parameter("3.weight")[1]
    assert scores_of(model, 8, "fpgm")["3"][:2].min() > 0.5 * expected.mean()


class Gated(nn.Module):
    """small_cnn with a gate of ones on each of the first eight channels after batch norm."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.gate = model, nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        layers: Any = self.model
        return layers[2:](layers[:2](x) * self.gate[:, None, None])


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    images, labels = batch(0, 0, 8)
    model.train()
    model.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_taylor_is_the_derivative_by_a_gate() -> None:
    model = small_cnn()
    with torch.no_grad():
        model.get_parameter("1.bias").uniform_(-0.5, 0.5)
    gradients = gradients_of(model)
    gated = Gated(model)
    gate = gradients_of(gated)["gate"]
    # ReLU is homogeneous: the gate before it and the one that the next convolution sees are equal
    torch.testing.assert_close(scores_of(model, 8, "taylor", gradients)["0"], gate**2)


def test_a_filter_under_batch_norm_says_nothing() -> None:
    model = small_cnn()
    gradients = gradients_of(model)
    weight, gradient = model.get_parameter("3.weight"), gradients["3.weight"]
    own = (weight * gradient).flatten(1).sum(1)
    assert float(own.detach().abs().max()) < 1e-4 * float((weight * gradient).detach().abs().sum())


def test_taylor_without_a_norm_reads_the_filter_and_its_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
    x = torch.randn(8, 4)
    nn.functional.cross_entropy(model(x), torch.arange(8) % 5).backward()
    part = [
        Slice("0.weight", 0, "output", torch.arange(6), torch.arange(6)),
        Slice("2.weight", 1, "input", torch.arange(6), torch.arange(6)),
    ]
    tensors = dict(model.named_parameters())
    gradients = {name: p.grad for name, p in tensors.items() if p.grad is not None}
    found = score("taylor", part, 6, tensors, gradients)
    made = (tensors["0.weight"] * gradients["0.weight"]).sum(1)
    made = made + tensors["0.bias"] * gradients["0.bias"]
    reads = (tensors["2.weight"] * gradients["2.weight"]).sum(0)
    torch.testing.assert_close(made, reads)  # both are the derivative by the same gate
    torch.testing.assert_close(found, (made**2 + reads**2).detach() / 2)


def test_a_flattened_channel_counts_with_all_its_columns() -> None:
    model = small_cnn()
    classifier = model.get_parameter("7.weight").detach()  # 12 channels of 3x3
    first = model.get_parameter("3.weight").detach().square().flatten(1).sum(1)
    norm = model.get_parameter("4.weight").detach().square()
    columns = classifier.square().reshape(5, 12, 9).sum((0, 2))
    torch.testing.assert_close(scores_of(model, 8, "l2")["3"], (first + norm + columns) / 3)


def test_the_fan_by_hand() -> None:
    graph = trace(small_cnn(), image_size=8)
    slices = graph.slices("3", graph.all_alive())
    # 8*9 weights of a filter, one scale, 5*9 columns; bn_gamma sees one
    assert fan("l2", slices, 12, graph.shapes) == (72 + 1 + 45) / 3
    assert fan("bn_gamma", slices, 12, graph.shapes) == 1
    assert [part.weight for part in read("fpgm", slices)] == ["3.weight"]


def test_one_ranking_over_layers_by_hand() -> None:
    rule = lowest_counts([torch.tensor([5.0, 1.0, 3.0]), torch.tensor([2.0, 4.0])], [2, 1])
    # candidates 1, 3 of the first layer and 2 of the second: 1, 2, 3
    assert [rule(n) for n in range(4)] == [[0, 0], [1, 0], [1, 1], [2, 1]]
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    parts = list(values.split([20, 30]))
    below = values < np.partition(values.numpy(), 17)[17]
    assert lowest_counts(parts, [20, 30])(17) == [int(p.sum()) for p in below.split([20, 30])]


def test_taylor_ranks_like_snip_where_a_channel_is_one_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 9, 5)
    )
    images, labels = torch.randn(16, 1, 3, 3), torch.randint(5, (16,))
    nn.functional.cross_entropy(model(images), labels).backward()
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    part = [Slice("0.weight", 0, "output", torch.arange(12), torch.arange(12))]
    taylor = score("taylor", part, 12, tensors, gradients)
    pruner = Pruner(
        model,
        method=snip.Method(snip.Method.Options(batches=1, batch_size=16)),
        sparsity=0.5,
        layers={"0.weight": model.get_parameter("0.weight")},
        total_steps=0,
        steps_per_epoch=0,
        seed=0,
        examples=lambda step, number, count: (images, labels),
    )
    pruner.start()
    assert pruner.masks is not None
    kept = pruner.masks["0.weight"].flatten()
    assert kept.sum() == 6 and taylor[kept].min() > taylor[~kept].max()

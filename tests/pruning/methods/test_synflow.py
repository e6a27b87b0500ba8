"""synflow: the flow by hand, its conservation, no collapse, no data, and what is left alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.methods.snip import Method as Snip
from sparse_transfer.pruning.methods.snip import SnipOptions
from sparse_transfer.pruning.methods.synflow import Method, SynflowOptions, flow, linearised
from tests.pruning.scenes import examples_of, one_shot, scene_of
from tests.pruning.training import CLASSES, copy_of, same, small_cnn, tiny_mobilenet


class Inputs(nn.Module):
    """The first `width` channels at the first pixel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        return images[:, : self.width, 0, 0]


def chain(*matrices: Tensor) -> nn.Module:
    """Linear layers with these weights, with biases that must not count."""
    layers: list[nn.Module] = [Inputs(matrices[0].shape[1])]
    for matrix in matrices:
        layer = nn.Linear(matrix.shape[1], matrix.shape[0])
        with torch.no_grad():
            layer.weight.copy_(matrix)
            layer.bias.fill_(7.0)
        layers.append(layer)
    return nn.Sequential(*layers)


def shares(model: nn.Module, masks: Masks | None = None, size: int = 1) -> dict[str, Tensor]:
    return flow(linearised(model), masks or Masks.ones(prunable(model)), size)


def synflow(**options: object) -> Method:
    return Method(SynflowOptions.model_validate(options))


def test_the_flow_of_two_layers_by_hand() -> None:
    model = chain(torch.tensor([[1.0, -2.0], [3.0, 4.0]]), torch.tensor([[1.0, -1.0]]))
    found = shares(model)  # R = 10
    assert torch.allclose(found["1.weight"], torch.tensor([[0.1, 0.2], [0.3, 0.4]]))
    assert torch.allclose(found["2.weight"], torch.tensor([[0.3, 0.7]]))
    # Without the 4 R is 6, and the weight of the second path carries half of it.
    mask = torch.tensor([[True, True], [True, False]])
    masks = Masks({"1.weight": mask, "2.weight": torch.ones(1, 2, dtype=torch.bool)})
    found = shares(model, masks)
    assert torch.allclose(found["1.weight"], torch.tensor([[1.0, 2.0], [3.0, 0.0]]) / 6)
    assert torch.allclose(found["2.weight"], torch.tensor([[0.5, 0.5]]))


@pytest.mark.parametrize(
    ("make", "size"), [(small_cnn, 8), (tiny_mobilenet, 16)], ids=["cnn", "mobilenet"]
)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_every_layer_of_a_chain_carries_the_whole_flow(
    make: Callable[[], nn.Module], size: int, sparsity: float
) -> None:
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(30)  # far beyond the bound of ReLU6
    masks = Masks.ones(prunable(model))
    if sparsity:
        generator = torch.Generator().manual_seed(0)
        masks = Masks(
            {n: torch.rand(m.shape, generator=generator) > sparsity for n, m in masks.items()}
        )
    for name, share in shares(model, masks, size).items():
        assert share.sum().item() == pytest.approx(1.0, abs=1e-5)
        assert share.min() >= 0 and not share[~masks[name]].any()


def test_biases_normalisation_and_signs_do_not_count() -> None:
    model, other = small_cnn(), small_cnn()
    with torch.no_grad():
        for module in other:
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(3.0)  # type: ignore[union-attr]
                module.running_var.fill_(0.1)  # type: ignore[union-attr]
                module.weight.fill_(-2.0)
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(-1)
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.bias = None if module.bias is None else nn.Parameter(module.bias + 5)
    first, second = shares(model, size=8), shares(other, size=8)
    assert all(torch.equal(first[name], second[name]) for name in first)


def deep_and_narrow() -> nn.Module:
    torch.manual_seed(0)
    widths = [3, *[64] * 11]
    layers: list[nn.Module] = [Inputs(3)]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, CLASSES))


def is_connected(model: nn.Module, masks: Masks) -> bool:
    """Whether anything flows from the input to the output."""
    return all(bool(share.any()) for share in shares(model, masks).values())


def test_a_deep_narrow_network_stays_connected_where_others_break() -> None:
    model = deep_and_narrow()
    scene = scene_of(model, examples_of(4), image_size=1)
    masks = one_shot(synflow(), scene, 0.999).masks
    assert masks is not None and masks.kept() == 41  # for 12 layers
    assert min(masks.counts().values()) >= 2 and is_connected(model, masks)
    at_once = one_shot(synflow(iterations=1), scene, 0.999).masks
    snip = one_shot(Snip(SnipOptions(batches=1)), scene, 0.999).masks
    for other in (at_once, snip):
        assert other is not None and other.kept() == 41
        assert min(other.counts().values()) == 1  # the minimum that the selection leaves
        assert not is_connected(model, other)


def test_a_flow_beyond_float32_has_shares() -> None:
    huge = [torch.full((1, 1), 1e35) for _ in range(6)]
    assert all(share.item() == 1.0 for share in shares(chain(*huge)).values())
    with pytest.raises(UserError, match="not a finite number"):
        shares(chain(*huge, *huge))
    with pytest.raises(UserError, match="not a finite number"):
        shares(chain(torch.tensor([[float("nan")]])))


@pytest.mark.parametrize("fused", [True, False])
def test_attention_passes_the_mean_of_the_values(fused: bool) -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=12, num_classes=CLASSES, qkv_bias=True
    )
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused  # type: ignore[assignment]
    found = shares(model, size=32)
    # The last layers are in series; a block's are beside the shortcut, and value in series with
    # projection: both carry the flow of the branch.
    assert found["head.weight"].sum().item() == pytest.approx(1.0, abs=1e-5)
    for block in range(12):
        qkv = found[f"blocks.{block}.attn.qkv.weight"]
        query, key, value = qkv.chunk(3)
        assert not query.any() and not key.any()
        through = found[f"blocks.{block}.attn.proj.weight"].sum().item()
        assert 0 < through < 1 and value.sum().item() == pytest.approx(through, rel=1e-4)


def test_it_sees_no_data_and_leaves_the_model_alone() -> None:
    model = small_cnn()
    before = copy_of(model)
    masks = one_shot(synflow(), scene_of(model, image_size=8), 0.9).masks  # images would raise
    assert masks is not None and masks.kept() == 162
    assert same(before, copy_of(model)) and not Method.needs_images
    assert all(parameter.grad is None for parameter in model.parameters())


def test_pruning_goes_on_from_a_sparse_model() -> None:
    model = small_cnn()
    start = one_shot(synflow(iterations=5), scene_of(model, image_size=8), 0.5).masks
    assert start is not None
    start.apply(model.named_parameters())
    scene = scene_of(model, masks=start, image_size=8)
    further = one_shot(synflow(iterations=5), scene, 0.9).masks
    assert further is not None and further.kept() == 162
    assert all(bool((start[name] | ~further[name]).all()) for name in start)


def test_an_unknown_image_size_is_refused() -> None:
    with pytest.raises(UserError, match="size of the images"):
        one_shot(synflow(), scene_of(small_cnn()), 0.9)

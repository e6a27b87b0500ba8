"""The choice of the engine: a rule without a clock."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from sparse_transfer import engines
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.sparse import library

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(
    library.available() is not None, reason=library.available() or "they are here"
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """One that is large enough for the kernels at 64 pixels."""
    return timm.create_model("resnet10t", num_classes=10)


def masks_of(model: nn.Module, density: float) -> Masks:
    generator = torch.Generator().manual_seed(0)
    return Masks(
        {
            name: torch.rand(p.shape, generator=generator) < density
            for name, p in model.named_parameters()
            if p.ndim == 4
        }
    )


def choose(asked, model, masks, **settings):
    purpose = settings.pop("purpose", "training")
    device = settings.pop("device", CPU)
    return engines.chosen(asked, model, masks, device, purpose, **{"image_size": 64, **settings})


@needs_kernels
def test_auto_takes_the_kernels_where_few_products_are_left(network):
    found = choose("auto", network, masks_of(network, 0.1))
    assert found.name == "sparse"
    assert found.reason == "10 % of the products are left"
    # more than half is multiplied densely, all of it
    dense = choose("auto", network, masks_of(network, 0.6))
    assert dense.name == "dense"
    assert dense.reason.startswith("100 % of the products are left")


@needs_kernels
def test_auto_leaves_a_small_model_dense_and_whoever_asks_gets_it(network):
    masks = masks_of(network, 0.1)
    small = choose("auto", network, masks, image_size=16)
    assert small.name == "dense"
    assert "small" in small.reason
    assert choose("sparse", network, masks, image_size=16).name == "sparse"
    assert choose("sparse", network, masks_of(network, 0.9)).name == "sparse"
    assert choose("dense", network, masks) == engines.Choice("dense", "asked for")


@needs_kernels
@pytest.mark.parametrize("settings", [{"precision": "bf16"}, {"processes": 2}])
def test_what_the_kernels_cannot_do_is_dense_unless_they_were_asked_for(network, settings):
    masks = masks_of(network, 0.1)
    found = choose("auto", network, masks, **settings)
    assert found.name == "dense"
    with pytest.raises(UserError) as error:
        choose("sparse", network, masks, **settings)
    assert found.reason.lower() in str(error.value).lower()


@needs_kernels
def test_an_accelerator_keeps_its_model(network):
    found = choose("auto", network, masks_of(network, 0.1), device=torch.device("cuda", 0))
    assert found.name == "dense"
    assert "cuda:0" in found.reason


@needs_kernels
def test_a_masked_weight_of_two_layers_is_trained_densely():
    tied = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    tied[1].weight = tied[0].weight
    masks = Masks({"0.weight": torch.zeros(4, 4, 3, 3, dtype=torch.bool)})
    assert "one tensor" in choose("auto", tied, masks).reason
    with pytest.raises(UserError, match="one tensor"):
        choose("sparse", tied, masks)
    assert choose("sparse", tied, masks, purpose="features").name == "sparse"


@needs_kernels
def test_auto_counts_what_the_kernels_would_skip():
    """A classifier with zeros is multiplied densely, and SiLU ends every region."""
    wide = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 62 * 62, 600))
    kept = {name: torch.rand(p.shape) < 0.1 for name, p in wide.named_parameters() if p.ndim > 1}
    found = choose("auto", wide, Masks(kept))
    assert found.name == "dense"
    assert found.reason.startswith("96 % of the products are left")
    smooth = timm.create_model("resnet10t", num_classes=10, act_layer="silu")
    masks = masks_of(smooth, 0.1)
    assert "SiLU" in choose("auto", smooth, masks).reason
    assert choose("sparse", smooth, masks).name == "sparse"
    assert choose("auto", smooth, masks, purpose="features").name == "sparse"


def test_without_kernels_auto_is_dense_and_asking_for_them_says_why(network, monkeypatch):
    monkeypatch.setattr(library, "available", lambda: "the sparse kernels were not compiled")
    masks = masks_of(network, 0.1)
    assert choose("auto", network, masks).reason == "the sparse kernels were not compiled"
    with pytest.raises(UserError, match="The sparse kernels were not compiled"):
        choose("sparse", network, masks)


@pytest.mark.parametrize("asked", ["auto", "dense", "sparse"])
def test_a_model_without_zeros_is_dense_whatever_is_asked(network, asked):
    for masks in (None, Masks.ones(dict(network.named_parameters()))):
        found = choose(asked, network, masks)
        assert found == engines.Choice("dense", "the model has no zeros that are held")
        assert found.facts() == {"name": "dense", "reason": found.reason}


class Iterating(nn.Module):
    """Cannot be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(x))


@needs_kernels
def test_auto_trains_densely_where_layers_would_run_one_by_one():
    model = timm.create_model("resnet10t", num_classes=10)
    model.act1 = Iterating()
    masks = masks_of(model, 0.1)
    found = choose("auto", model, masks)
    assert found.name == "dense"
    assert "one by one" in found.reason and "cannot trace" in found.reason
    asked = choose("sparse", model, masks)
    assert asked.name == "sparse"
    assert "cannot trace" in asked.reason


@needs_kernels
def test_the_facts_of_the_sparse_engine_name_the_instruction_level(monkeypatch):
    monkeypatch.setenv(library.CHOICE, "portable")
    facts = engines.Choice("sparse", "asked for").facts()
    assert facts == {"name": "sparse", "reason": "asked for", "level": "portable"}

"""magnitude: what it keeps by allocation, against torch.nn.utils.prune and by pattern."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.criteria import strongest
from sparse_transfer.pruning.layers import prunable
from tests.pruning.training import make_pruner, prune, small_cnn


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_agrees_with_torch_prune(allocation: str, sparsity: float) -> None:
    model, reference = small_cnn(), small_cnn()
    for layers in (prunable(model), prunable(reference)):
        for number, layer in enumerate(layers.values()):
            torch.manual_seed(number)
            nn.init.normal_(layer)  # of one scale: torch would empty a layer, we would not
    masks = prune(model, "magnitude", sparsity, 0, allocation=allocation).masks
    assert masks is not None
    modules = {n: reference.get_submodule(n.removesuffix(".weight")) for n in masks}
    if allocation == "global":
        torch_prune.global_unstructured(
            [(module, "weight") for module in modules.values()],
            pruning_method=torch_prune.L1Unstructured,
            amount=masks.total - masks.kept(),
        )
    for name, module in modules.items():
        if allocation == "uniform":
            removed = masks[name].numel() - masks.counts()[name]
            torch_prune.l1_unstructured(module, "weight", amount=removed)
        assert torch.equal(module.get_buffer("weight_mask").bool(), masks[name])
        assert torch.equal(module.get_buffer("weight_mask") * module.get_parameter("weight_orig"),
                           model.get_parameter(name))  # fmt: skip


def test_a_pattern_keeps_the_largest_of_each_group() -> None:
    dense = small_cnn()
    masks = prune(
        small_cnn(), "magnitude", 0.75, 0, keep_dense=("first_conv",), allocation="1:4"
    ).masks
    assert masks is not None
    for name, mask in masks.items():
        assert torch.equal(mask, strongest(dense.get_parameter(name).abs(), (1, 4)))


def test_a_pattern_that_does_not_fit_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match="groups of 4"):
        make_pruner(small_cnn(), "magnitude", 0.5, 0, allocation="2:4")

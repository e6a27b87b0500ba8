"""lamp: its place beside gmp, independence of a layer's scale, and no empty layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_transfer.pruning.criteria import Stage, lamp, magnitude, remove
from sparse_transfer.pruning.masks import Masks
from tests.pruning.training import copy_of, prune, same, small_cnn


def test_it_is_gmp_with_the_allocation() -> None:
    left, right, other = small_cnn(), small_cnn(), small_cnn()
    digest = prune(left, "lamp", 0.9, 20, updates=6).summary()["digest"]
    prune(right, "gmp", 0.9, 20, updates=6, allocation="lamp")
    assert same(copy_of(left), copy_of(right))
    assert prune(other, "gmp", 0.9, 20, updates=6).summary()["digest"] != digest


def masks_of(model: nn.Module, sparsity: float) -> Masks:
    """One update at learning rates that change nothing: the scores of the weights as given."""
    masks = prune(model, "magnitude", sparsity, 0, allocation="lamp").masks
    assert masks is not None
    return masks


def test_rescaling_a_layer_changes_no_mask() -> None:
    plain, scaled = small_cnn(), small_cnn()
    with torch.no_grad():
        scaled.get_parameter("3.weight").mul_(2.0**10)
    assert masks_of(plain, 0.8).digest() == masks_of(scaled, 0.8).digest()
    by_magnitude = [prune(m(), "magnitude", 0.8, 0).summary()["digest"] for m in (small_cnn,)]
    assert by_magnitude[0] != masks_of(small_cnn(), 0.8).digest()


@pytest.mark.parametrize("sparsity", [0.9, 0.99, 0.995, 1 - 3 / 1620])
def test_no_layer_empties_however_small_its_weights(sparsity: float) -> None:
    model = small_cnn()
    with torch.no_grad():
        model.get_parameter("3.weight").mul_(1e-12)
    masks = masks_of(model, sparsity)
    assert masks.kept() == round(1620 * (1 - sparsity)) and min(masks.counts().values()) >= 1


def test_pruning_in_steps_of_still_weights_is_pruning_at_once() -> None:
    """Pruned weights are in no sum of a kept one, so the scores of the rest stay."""
    weights = {n: p.detach() for n, p in small_cnn().named_parameters() if p.dim() > 1}
    masks = Masks.ones(weights)
    before = lamp(magnitude(weights), masks)
    for sparsity in (0.3, 0.6, 0.8):
        masks = remove(masks, [Stage(magnitude(weights))], sparsity, "lamp")
        for name, scores in lamp(magnitude(weights), masks).items():
            torch.testing.assert_close(scores[masks[name]], before[name][masks[name]])
    at_once = remove(Masks.ones(weights), [Stage(magnitude(weights))], 0.8, "lamp")
    assert masks.digest() == at_once.digest()

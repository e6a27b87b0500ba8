from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_transfer import weights
from sparse_transfer.errors import UserError
from sparse_transfer.imports import storage
from sparse_transfer.pruning.methods.str_method import SoftThreshold

SEEDS = st.integers(0, 2**31)


@given(SEEDS, st.floats(-12, 3))
def test_the_soft_threshold_is_that_of_the_method(seed, s):
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    layer = SoftThreshold(weight, s)
    expected = layer(weight).detach()
    assert torch.equal(storage.soft_threshold(weight, torch.full((1, 1), s)), expected)


def test_the_soft_threshold_by_hand():
    # sigmoid(0) is 1/2
    out = storage.soft_threshold(torch.tensor([-2.0, -0.5, 0.25, 0.75]), torch.zeros(1, 1))
    assert out.tolist() == [-1.5, 0.0, 0.0, 0.25]


def test_a_threshold_that_is_not_one_number_is_refused():
    with pytest.raises(UserError, match=r"threshold of conv\.weight") as error:
        storage.plain(
            {
                "conv.weight": torch.ones(64, 3, 3, 3),
                "conv.sparseThreshold": torch.ones(64, 1, 1, 1),
            }
        )
    assert "(64, 1, 1, 1)" in error.value.why


def test_a_state_dict_with_other_names_than_text_is_refused(tmp_path):
    path = tmp_path / "numbers.pth"
    torch.save({"conv.weight": torch.ones(2, 2), 3: torch.ones(2)}, path)
    for read in (storage.read, weights.read):
        with pytest.raises(UserError, match="holds no state dict") as error:
            read(path)
        assert "3" in error.value.why


@given(SEEDS, st.floats(0, 1), st.sampled_from(["wrapped", "pairs"]))
def test_masks_are_applied_and_taken_out_whatever_they_are(seed, share, form):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 4, generator=generator)
    mask = torch.rand(5, 4, generator=generator) >= share
    inside, beside = {
        "wrapped": ("a.b._layer.weight", "a.b._weight_mask"),
        "pairs": ("a.b.weight_orig", "a.b.weight_mask"),
    }[form]
    stored = storage.plain({inside: weight, beside: mask.float(), "bn.bias": torch.ones(2)})
    assert set(stored.state) == {"a.b.weight", "bn.bias"}
    assert torch.equal(stored.state["a.b.weight"], weight * mask)
    assert torch.equal(stored.masks["a.b.weight"], mask)
    assert stored.marks == {inside, beside, "bn.bias"}


def test_masks_of_biases_are_applied_and_not_held():
    stored = storage.plain(
        {
            "fc._layer.weight": torch.ones(2, 2),
            "fc._layer.bias": torch.tensor([1.0, 2.0]),
            "fc._weight_mask": torch.ones(2, 2),
            "fc._bias_mask": torch.tensor([0.0, 1.0]),
        }
    )
    assert stored.state["fc.bias"].tolist() == [0.0, 2.0] and set(stored.masks) == {"fc.weight"}


def test_a_buffer_that_is_merely_called_mask_is_left_alone():
    state = {"attention.mask": torch.ones(2, 2), "x.attn_mask": torch.zeros(2)}
    stored = storage.plain(state)
    assert set(stored.state) == set(state) and not stored.masks


@pytest.mark.parametrize("shape", [(2, 3), (3, 2, 1)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(UserError, match=r"mask of a\.weight does not fit") as error:
        storage.plain({"a.weight_orig": torch.ones(3, 2), "a.weight_mask": torch.ones(shape)})
    assert str(tuple(shape)) in error.value.why and "(3, 2)" in error.value.why

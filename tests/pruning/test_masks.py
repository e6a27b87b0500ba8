"""Masks as values: packing, digests, enforcement on weights and optimizer state."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning import masks as masks_module
from sparse_transfer.pruning.masks import Masks, assert_zeros, enforce, mask_gradients
from tests.pruning.training import OPTIMIZERS


def random_masks(shapes: list[tuple[int, ...]], seed: int) -> Masks:
    generator = torch.Generator().manual_seed(seed)
    return Masks(
        {f"layer{i}.weight": torch.rand(s, generator=generator) < 0.4 for i, s in enumerate(shapes)}
    )


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(
        st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple), min_size=1, max_size=4
    ),
    seed=st.integers(0, 1000),
)
def test_packing_loses_nothing(shapes: list[tuple[int, ...]], seed: int) -> None:
    masks = random_masks(shapes, seed)
    packed = masks.pack()
    assert all(
        bits.numel() == -(-masks[name].numel() // 8) and bits.dtype == torch.uint8
        for name, bits in packed.items()
    )
    again = Masks.unpack(packed, {name: mask.shape for name, mask in masks.items()})
    assert list(again) == list(masks)
    assert all(torch.equal(again[name], masks[name]) for name in masks)
    assert again.digest() == masks.digest()


def test_counts_and_sparsity_by_hand() -> None:
    masks = Masks({"a": torch.tensor([True, False, False]), "b": torch.tensor([[True, True]])})
    assert (masks.total, masks.kept(), masks.counts()) == (5, 3, {"a": 1, "b": 2})
    assert masks.sparsity() == pytest.approx(0.4)
    assert "sparsity 0.4000" in repr(masks)


def test_digest_sees_names_shapes_and_bits_but_not_order() -> None:
    a, b = torch.tensor([[True, False]]), torch.tensor([True])
    digest = Masks({"a": a, "b": b}).digest()
    assert digest == Masks({"b": b, "a": a}).digest()
    others = [{"a": a, "c": b}, {"a": a.reshape(2), "b": b}, {"a": ~a, "b": b}]
    assert len({digest, *(Masks(other).digest() for other in others)}) == 4


def test_masks_are_bool_and_at_least_one() -> None:
    with pytest.raises(ValueError, match="weight"):
        Masks({"weight": torch.ones(3)})
    with pytest.raises(ValueError, match="none given"):
        Masks({})


def test_a_damaged_mask_file_is_refused() -> None:
    packed = {"a": torch.zeros(2, dtype=torch.uint8)}
    with pytest.raises(UserError, match="'a' cannot be read"):
        Masks.unpack(packed, {"a": (3,)})
    with pytest.raises(UserError, match="found nothing"):
        Masks.unpack(packed, {"a": (9,), "b": (3,)})


def masked_linear() -> tuple[nn.Linear, Masks]:
    torch.manual_seed(0)
    linear = nn.Linear(3, 3)
    return linear, Masks({"weight": torch.eye(3, dtype=torch.bool)})


def test_masked_forward_equals_deleting_the_weights_by_hand() -> None:
    linear, masks = masked_linear()
    images = torch.randn(4, 3)
    expected = images * linear.weight.detach().diagonal() + linear.bias.detach()
    enforce(masks, linear, None)
    assert torch.allclose(linear(images), expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_enforcement_reaches_every_state_tensor_of_the_weight_and_no_other(name: str) -> None:
    linear, masks = masked_linear()
    optimizer = OPTIMIZERS[name](linear.parameters())
    linear(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    bias_state = copy.deepcopy(optimizer.state[linear.bias])
    kept = linear.weight.detach().diagonal().clone()
    enforce(masks, linear, optimizer)
    per_weight = [s for s in optimizer.state[linear.weight].values() if s.shape == (3, 3)]
    assert len(per_weight) == {"sgd": 1, "nesterov": 1, "adam": 3, "adamw": 2}[name]
    for tensor in (linear.weight, *per_weight):
        assert torch.count_nonzero(tensor.masked_fill(masks["weight"], 0)) == 0
        assert torch.count_nonzero(tensor) == 3
    assert torch.equal(linear.weight.diagonal(), kept)
    assert all(torch.equal(optimizer.state[linear.bias][k], bias_state[k]) for k in bias_state)


def test_gradients_are_masked_where_there_are_any() -> None:
    linear, masks = masked_linear()
    mask_gradients(masks, linear)
    assert linear.weight.grad is None
    linear(torch.randn(4, 3)).square().sum().backward()
    assert linear.weight.grad is not None
    before = linear.weight.grad.clone()
    mask_gradients(masks, linear)
    assert torch.equal(linear.weight.grad, before * torch.eye(3))


def test_a_weight_off_zero_is_an_error_of_the_program_and_nan_one_of_the_user() -> None:
    linear, masks = masked_linear()
    enforce(masks, linear, None)
    assert_zeros(masks, linear)
    with torch.no_grad():
        linear.weight[0, 1] = 1e-30
    with pytest.raises(AssertionError, match="1 pruned weights of 'weight'"):
        assert_zeros(masks, linear)
    with torch.no_grad():
        linear.weight[0, 1] = torch.nan
    with pytest.raises(UserError, match="diverged"):
        assert_zeros(masks, linear)


def test_masks_follow_the_model_through_casts_copies_and_compilation() -> None:
    linear, masks = masked_linear()
    model, copied = copy.deepcopy((linear, masks))
    model = model.to(torch.bfloat16)
    enforce(copied.to("cpu"), model, None)
    assert torch.equal(model.weight != 0, masks["weight"])
    assert torch.count_nonzero(linear.weight) == 9
    compiled = torch.compile(linear, backend="eager")
    images = torch.randn(2, 3)
    compiled(images)
    enforce(masks, linear, None)
    expected = images * linear.weight.detach().diagonal() + linear.bias.detach()
    assert torch.allclose(compiled(images), expected)


def test_apply_masks_a_copy_of_the_weights_by_name() -> None:
    linear, masks = masked_linear()
    average = torch.optim.swa_utils.AveragedModel(linear)
    masks.apply(average.module.named_parameters())
    assert torch.equal(average.module.weight != 0, masks["weight"])
    assert torch.count_nonzero(average.module.bias) == 3


def test_masks_hold_under_distributed_data_parallel(tmp_path: Path) -> None:
    linear, masks = masked_linear()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    try:
        wrapped = nn.parallel.DistributedDataParallel(linear)
        optimizer = OPTIMIZERS["sgd"](wrapped.parameters())
        enforce(masks, linear, optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            wrapped(torch.randn(4, 3)).square().sum().backward()
            mask_gradients(masks, linear)
            optimizer.step()
        assert torch.equal(linear.weight != 0, masks["weight"])
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int32])
@pytest.mark.parametrize("layout", ["plain", "channels last", "mask only", "a view", "transposed"])
def test_zeroing_in_pieces_is_a_product_in_every_layout(dtype: torch.dtype, layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = (100 * torch.randn(300, 70, 3, 3, generator=generator)).to(dtype)
    mask = torch.rand(tensor.shape, generator=generator) > 0.5
    assert tensor.numel() > masks_module.CHUNK  # several pieces, the last a short one
    if layout == "channels last":
        tensor = tensor.to(memory_format=torch.channels_last)
    if layout == "mask only":
        mask = mask.to(memory_format=torch.channels_last)
    if layout == "a view":
        tensor = torch.cat([tensor, tensor])[300:]
    if layout == "transposed":
        tensor = tensor.transpose(0, 1).contiguous().transpose(0, 1)
    expected = tensor * mask
    masks = Masks({"w": mask})
    for made in (masks, masks.laid_out({"w": tensor})):
        found = tensor.clone(memory_format=torch.preserve_format)
        made.zero("w", found)
        assert torch.equal(found, expected)
        made.zero("w", tensor_copy := tensor[:])  # the tensor itself, whatever its storage
        assert torch.equal(tensor_copy, expected)
    assert masks.laid_out({"w": tensor})["w"].stride() == tensor.stride() or layout == "a view"


def test_masks_that_lie_like_their_weights_cost_a_byte_each_and_are_not_copied() -> None:
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    masks = Masks({"w": weight > 0}).laid_out({"w": weight})
    masks.zero("w", weight)
    assert not masks._copies and masks["w"].element_size() == 1
    assert masks.laid_out({"w": weight}) is masks

"""nm: exact groups, when, the reordering of channels, and the hardware format."""

from __future__ import annotations

import copy

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.criteria import strongest
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.methods.nm import NmOptions
from tests.pruning.training import OPTIMIZERS, copy_of, make_pruner, prune, same, small_cnn, train

FIRST = ("first_conv",)


def group_counts(mask: Tensor, m: int) -> set[int]:
    return set(mask.movedim(1, -1).reshape(-1, m).sum(1).tolist())


@pytest.mark.parametrize(
    ("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("3:4", 0.25), ("1:2", 0.5)]
)
def test_every_group_keeps_exactly_n(pattern: str, sparsity: float) -> None:
    model = small_cnn()
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    n, m = map(int, pattern.split(":"))
    pruner = prune(model, "nm", sparsity, 0, keep_dense=FIRST, pattern=pattern)
    assert pruner.masks is not None and list(pruner.masks) == ["3.weight", "7.weight"]
    for name, mask in pruner.masks.items():
        assert group_counts(mask, m) == {n}
        assert torch.equal(mask, strongest(dense[name].abs(), (n, m)))
        assert torch.equal(model.get_parameter(name), dense[name] * mask)
    assert pruner.masks.sparsity() == sparsity


@pytest.mark.parametrize("at", [0.0, 0.5])
def test_it_happens_once_and_is_held(at: float) -> None:
    model = small_cnn()
    pruner = make_pruner(model, "nm", 0.5, 10, keep_dense=FIRST, at=at)
    bound = OPTIMIZERS["nesterov"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    seen: list[Masks | None] = [pruner.masks]
    train(model, pruner, bound, range(1, 11), after_step=lambda step: seen.append(pruner.masks))
    pruner.finish()
    first = int(10 * at)
    assert all(masks is None for masks in seen[:first])
    assert len({masks.digest() for masks in seen[first:] if masks is not None}) == 1
    assert [event["step"] for event in pruner.summary()["events"]] == [first]


def test_at_the_start_it_is_one_shot_magnitude_with_a_pattern() -> None:
    left, right = small_cnn(), small_cnn()
    prune(left, "nm", 0.5, 8, keep_dense=FIRST)
    prune(right, "magnitude", 0.5, 8, keep_dense=FIRST, allocation="2:4")
    assert same(copy_of(left), copy_of(right))


def test_reordered_channels_keep_more_and_change_nothing_else() -> None:
    plain, model = small_cnn(), small_cnn()
    prune(plain, "nm", 0.5, 0, keep_dense=FIRST)
    pruner = prune(model, "nm", 0.5, 0, keep_dense=FIRST, permute=True)
    assert pruner.masks is not None
    assert {n for mask in pruner.masks.values() for n in group_counts(mask, 4)} == {2}
    kept = [m.get_parameter("3.weight").abs().sum().item() for m in (plain, model)]
    assert kept[1] > 1.003 * kept[0]
    assert torch.equal(plain.get_parameter("7.weight"), model.get_parameter("7.weight"))
    # The order is found again in the first layer, which is not pruned.
    dense = small_cnn()
    before, after = dense.get_parameter("0.weight"), model.get_parameter("0.weight")
    order = torch.tensor([int((before == row).flatten(1).all(1).nonzero()) for row in after])
    assert order.tolist() != list(range(8)) and order.sort().values.tolist() == list(range(8))
    assert torch.equal(after, before[order])
    expected = dense.get_parameter("3.weight")[:, order] * pruner.masks["3.weight"]
    assert torch.equal(model.get_parameter("3.weight"), expected)
    assert torch.equal(model.get_parameter("0.bias"), dense.get_parameter("0.bias")[order])


def test_a_run_with_reordered_channels_is_repeated_and_resumed_to_the_bit() -> None:
    whole = small_cnn()
    expected = prune(whole, "nm", 0.5, 10, keep_dense=FIRST, permute=True).summary()
    model = small_cnn()
    pruner = make_pruner(model, "nm", 0.5, 10, keep_dense=FIRST, permute=True)
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 5))
    saved = copy.deepcopy((model.state_dict(), bound.state_dict(), pruner.state_dict()))
    model = small_cnn(seed=1)
    pruner = make_pruner(model, "nm", 0.5, 10, keep_dense=FIRST, permute=True)
    bound = OPTIMIZERS["sgd"](model.parameters())
    model.load_state_dict(saved[0])
    bound.load_state_dict(saved[1])
    pruner.load_state_dict(saved[2])
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(5, 11))
    pruner.finish()
    assert same(copy_of(whole), copy_of(model)) and pruner.summary() == expected


def test_reordering_is_before_training_only() -> None:
    with pytest.raises(ValidationError, match="`permute` needs `at: 0`"):
        NmOptions(permute=True, at=0.5)


def test_what_does_not_fit_is_refused_before_the_first_step() -> None:
    with pytest.raises(UserError, match="2:4 sparsity is 0.5, but 0.9"):
        make_pruner(small_cnn(), "nm", 0.9, 10, keep_dense=FIRST)
    with pytest.raises(UserError, match="input channels that come in groups of 4"):
        make_pruner(small_cnn(), "nm", 0.5, 10)


def test_sparsity_zero_is_plain_training() -> None:
    pruned, plain = small_cnn(), small_cnn()
    prune(pruned, "nm", 0.0, 5, pattern="4:4")
    train(plain, None, OPTIMIZERS["sgd"](plain.parameters()), range(1, 6))
    assert same(copy_of(pruned), copy_of(plain))


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="the 2:4 format needs a CUDA GPU of compute capability 8.0 or newer",
)
def test_the_hardware_format_takes_the_result() -> None:
    torch.manual_seed(0)
    model = nn.Linear(128, 128, bias=False)
    prune(model, "nm", 0.5, 0)
    weight = model.weight.detach().half().cuda()
    inputs = torch.randn(64, 128).half().cuda()
    compressed = torch.sparse.to_sparse_semi_structured(weight)
    assert torch.equal(compressed.to_dense(), weight)
    product = nn.functional.linear(inputs, compressed)
    torch.testing.assert_close(product, inputs @ weight.T, rtol=1e-2, atol=1e-2)

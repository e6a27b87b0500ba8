"""gmp: its updates, monotone masks, and equivalence to one-shot where it must hold."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.methods.gmp import GmpOptions
from sparse_transfer.pruning.schedule import cubic
from tests.pruning.training import OPTIMIZERS, make_pruner, prune, small_cnn, train


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
@pytest.mark.parametrize("initial", [0.0, 0.3])
def test_sparsity_follows_the_cubic_and_masks_only_shrink(allocation: str, initial: float) -> None:
    model = small_cnn()
    pruner = make_pruner(
        model,
        "gmp",
        0.9,
        40,
        allocation=allocation,
        start=0.25,
        end=0.75,
        updates=5,
        initial_sparsity=initial,
    )
    seen: list[Masks | None] = []
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 41), after_step=lambda step: seen.append(pruner.masks))
    pruner.finish()
    total = 216 + 864 + 540
    expected = 0.0
    for step, masks in enumerate(seen, start=1):
        if step == 10:
            expected = initial
        elif step in (14, 18, 22, 26, 30):
            expected = cubic((step - 10) / 20, initial, 0.9)
        kept = total if masks is None else masks.kept()
        assert kept == round(total * (1 - expected)), step
    held = [masks for masks in seen if masks is not None]
    for before, after in zip(held, held[1:], strict=False):
        assert all(bool((before[name] | ~after[name]).all()) for name in after)


def test_one_update_equals_one_shot_of_the_weights_at_that_step() -> None:
    gradual, plain = small_cnn(), small_cnn()
    mask = prune(gradual, "gmp", 0.8, 1, start=0.0, end=1.0, updates=1).masks
    train(plain, None, OPTIMIZERS["sgd"](plain.parameters()), range(1, 2))
    reference = prune(plain, "magnitude", 0.8, 0).masks
    assert mask is not None and reference is not None
    assert mask.digest() == reference.digest()
    assert torch.equal(gradual.get_parameter("3.weight"), plain.get_parameter("3.weight"))


def test_impossible_windows_and_starts_are_refused() -> None:
    with pytest.raises(ValidationError, match="`start` must lie before `end`"):
        GmpOptions(start=0.5, end=0.5)
    with pytest.raises(UserError, match="cannot start at sparsity 0.9 to reach 0.8"):
        make_pruner(small_cnn(), "gmp", 0.8, 40, initial_sparsity=0.9)


def test_runs_share_every_bit_until_the_first_event() -> None:
    plain, pruned = small_cnn(), small_cnn()
    train(plain, None, OPTIMIZERS["sgd"](plain.parameters()), range(1, 10))
    pruner = make_pruner(pruned, "gmp", 0.9, 40, start=0.25)
    bound = OPTIMIZERS["sgd"](pruned.parameters())
    pruner.bind(bound)
    pruner.start()
    train(pruned, pruner, bound, range(1, 10))
    assert pruner.masks is None
    pairs = zip(plain.parameters(), pruned.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)

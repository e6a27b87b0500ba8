"""LTH-T: what is delivered is the given weights under the mask, bit for bit."""

from __future__ import annotations

import pytest
import torch

from sparse_transfer.errors import UserError
from tests.pruning.training import OPTIMIZERS, copy_of, make_pruner, prune, small_cnn


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps", [24, 3])
def test_the_delivered_weights_are_the_given_ones_under_the_mask(
    optimizer: str, steps: int
) -> None:
    model = small_cnn(seed=3)
    given = copy_of(model)
    pruner = prune(model, "lth_t", 0.8, steps, optimizer=optimizer, rounds=3)
    assert pruner.masks is not None and pruner.masks.kept() == round(pruner.masks.total * 0.2)
    for name, value in copy_of(model).items():
        mask = pruner.masks.get(name)
        assert torch.equal(value, given[name] if mask is None else given[name] * mask), name


def test_it_prunes_first_before_training_and_last_after_it() -> None:
    pruner = prune(small_cnn(), "lth_t", 1 - 0.8**3, 20)
    events = pruner.summary()["events"]
    assert [event["step"] for event in events] == [0, 10, 20]
    assert [event["sparsity"] for event in events] == pytest.approx([0.2, 0.36, 0.488])
    assert pruner.rewinds == {0: 0, 10: 0, 20: 0}


def test_training_between_the_rounds_decides_the_mask() -> None:
    model = small_cnn()
    one_shot = prune(small_cnn(), "magnitude", 0.8, 0).masks
    at_once = prune(small_cnn(), "lth_t", 0.8, 0, rounds=1).masks
    trained = prune(model, "lth_t", 0.8, 20, rounds=3).masks
    assert one_shot is not None and at_once is not None and trained is not None
    assert at_once.digest() == one_shot.digest()
    assert trained.digest() != one_shot.digest()


def test_rounds_need_training_between_them() -> None:
    with pytest.raises(UserError, match="(?s)prunes in 8 rounds.*`rounds: 1`"):
        make_pruner(small_cnn(), "lth_t", 0.8, 6)

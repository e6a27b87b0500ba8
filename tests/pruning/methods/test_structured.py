"""structured: one shot and gradual, even and ranked, each importance, and the milestones."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from sparse_transfer.pruning.methods.structured import StructuredOptions
from tests.pruning.structured.shrinking import make_pruner, model_of, prune
from tests.pruning.training import OPTIMIZERS, small_cnn


def channels_of(importance: str = "l2", **options: object) -> dict[str, list[int]]:
    """Which channels of small_cnn are left after pruning half of its MACs before training."""
    model = small_cnn()
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.tensor([9, 8, 7, 6, 0.1, 0.2, 0.3, 0.4]))
    pruner = make_pruner(model, "structured", 0.5, 0, start=0.0, importance=importance, **options)
    pruner.start()
    pruner.finish()
    return {name: left.nonzero()[:, 0].tolist() for name, left in pruner._alive.items()}


def test_large_scales_stay() -> None:
    assert channels_of("bn_gamma")["0"] == [0, 1, 2, 3]
    # l1 and l2 see the scale among weights that are alike: the large ones are among what stays
    assert {0, 1} < set(channels_of("l1")["0"]) and {0, 1, 2, 3} <= set(channels_of("l2")["0"])


def test_even_allocation_takes_the_same_share_of_every_layer() -> None:
    left = channels_of(allocation="uniform")
    # 8 and 12 channels: 6 go as 2 and 4 (2.4, 3.6) and leave 64*27*6 + 9*54*8 + 72*5 = 14616 of
    # 22140 MACs; 9 as 4 and 5 (3.6, 5.4) leave 9,547; 8 as 3 and 5 (3.2, 4.8) 11,790
    assert {name: len(kept) for name, kept in left.items()} == {"0": 4, "3": 7}


def test_criteria_differ() -> None:
    found = {str(channels_of(importance)) for importance in ("l1", "bn_gamma", "fpgm")}
    assert len(found) == 3


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_gradual_removal_meets_every_milestone(allocation: str) -> None:
    model, size = model_of("vgg19_cifar")
    pruner = prune(
        model,
        "structured",
        0.7,
        20,
        size=size,
        allocation=allocation,
        updates=5,
        start=0.1,
        end=0.6,
        step_size="constant",
    )
    summary = pruner.summary()
    assert [event["step"] for event in summary["events"]] == [4, 6, 8, 10, 12]
    for number, event in enumerate(summary["events"], 1):
        assert event["sparsity"] >= 0.7 * number / 5 - 1e-12
        assert event["sparsity"] < 0.7 * number / 5 + 0.12  # one channel of these narrow layers
    shares = [event["sparsity"] for event in summary["events"]]
    assert shares == sorted(shares)


def test_one_update_is_train_prune_fine_tune() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "structured", 0.5, 20)
    assert pruner.prunes == (10,)
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    assert pruner.shrinking is None and pruner.last_cut is None


def test_max_share_limits_every_layer() -> None:
    model, size = model_of("resnet18_cifar")
    pruner = prune(model, "structured", 0.5, 4, size=size, max_share=0.5)
    for left, before in pruner.summary()["channels"].values():
        assert left >= before / 2


def test_gradual_needs_a_window() -> None:
    with pytest.raises(ValidationError, match="`start` must lie before `end`"):
        StructuredOptions(updates=2, start=0.8)
    StructuredOptions(updates=1, start=0.8)

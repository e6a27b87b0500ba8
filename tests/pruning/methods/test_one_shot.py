"""magnitude and random: one event before training, and a floor that magnitude must beat."""

from __future__ import annotations

import pytest
import torch

from tests.pruning.training import prune, small_cnn


@pytest.mark.parametrize("method", ["magnitude", "random"])
@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_one_shot_needs_no_training(method: str, allocation: str) -> None:
    model = small_cnn()
    pruner = prune(model, method, 0.9, 0, allocation=allocation)
    assert pruner.masks is not None and pruner.masks.kept() == 162
    counts = pruner.masks.counts()
    if allocation == "uniform":
        assert counts == {"0.weight": 22, "3.weight": 86, "7.weight": 54}
    if allocation == "erk":  # 162 shared as 17 : 26 : 113, the sums of dimensions
        assert counts == {"0.weight": 18, "3.weight": 27, "7.weight": 117}
    assert [event["step"] for event in pruner.summary()["events"]] == [0]


def test_magnitude_keeps_the_largest_and_random_does_not() -> None:
    whole = torch.cat([p.detach().flatten().abs() for n, p in small_cnn().named_parameters()
                       if n in ("0.weight", "3.weight", "7.weight")])  # fmt: skip
    kept = {}
    for method in ("magnitude", "random"):
        model = small_cnn()
        prune(model, method, 0.9, 0)
        kept[method] = sum(model.get_parameter(n).abs().sum().item() for n in
                           ("0.weight", "3.weight", "7.weight"))  # fmt: skip
    assert kept["magnitude"] == pytest.approx(whole.topk(162).values.sum().item(), rel=0.05)
    assert kept["random"] == pytest.approx(0.1 * whole.sum().item(), rel=0.25)


def test_random_masks_are_a_function_of_the_seed() -> None:
    digests = [prune(small_cnn(s), "random", 0.5, 0, seed=s).summary()["digest"] for s in (0, 1)]
    again = prune(small_cnn(5), "random", 0.5, 0, seed=0).summary()["digest"]
    assert digests[0] == again != digests[1]

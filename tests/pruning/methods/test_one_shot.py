"""magnitude and random: one event before training, and a floor that magnitude must beat."""

from __future__ import annotations

import pytest
import torch

from sparse_transfer.errors import UserError
from tests.pruning.training import make_pruner, prune, small_cnn


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


def test_random_pruning_at_given_densities_keeps_those_counts_and_nothing_else_in_common() -> None:
    layers = {"0.weight": 30, "3.weight": 100, "7.weight": 194}
    pruned = prune(small_cnn(), "random", 0.8, 0, layers=layers).masks
    assert pruned is not None and pruned.counts() == layers
    other = prune(small_cnn(), "random", 0.8, 0, seed=1, layers=layers).masks
    assert other is not None and other.counts() == layers
    shared = sum(int((pruned[n] & other[n]).sum()) for n in layers)
    by_chance = sum(k * k / pruned[n].numel() for n, k in layers.items())
    assert shared == pytest.approx(by_chance, abs=25)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"0.weight": 30}, "does not fit the model at 3.weight, 7.weight"),
        ({"0.weight": 30, "3.weight": 100, "7.weight": 0}, "at 7.weight"),
        ({"0.weight": 217, "3.weight": 100, "7.weight": 7}, "at 0.weight"),
        ({"0.weight": 30, "3.weight": 100, "7.weight": 194, "x": 1}, "at x"),
        ({"0.weight": 30, "3.weight": 100, "7.weight": 193}, "keeps 323 weights.*keeps 324"),
    ],
)
def test_densities_that_do_not_fit_are_refused(layers: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        make_pruner(small_cnn(), "random", 0.8, 0, layers=layers)

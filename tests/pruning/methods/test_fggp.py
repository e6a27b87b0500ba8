"""fggp: pairing of weight and gradient, pools, ablations, refusals, and r = 1."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.driver import Pruner
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Target
from sparse_transfer.pruning.methods.fggp import FggpOptions, Method
from sparse_transfer.pruning.schedule import gradual
from tests.pruning.training import OPTIMIZERS, make_pruner, prune, small_cnn, train

W = torch.tensor([0.9, -0.1, 0.5, 0.2])
G = torch.tensor([0.01, 0.5, 0.02, 0.03])


def one_update(lr: float, **options: object) -> nn.Linear:
    """A net of four weights whose only update removes one, given the gradient G."""
    model = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(W[None])
    defaults = {"start": 0.0, "end": 1.0, "updates": 1}
    method = Method(FggpOptions.model_validate({**defaults, **options}))
    pruner = Pruner(
        model,
        method=method,
        sparsity=0.25,
        layers=prunable(model),
        total_steps=1,
        steps_per_epoch=1,
        seed=0,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    pruner.bind(optimizer)
    pruner.start()
    model(G[None]).sum().backward()
    pruner.after_backward(1)
    optimizer.step()
    pruner.after_step(1)
    pruner.finish()
    return model


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({}, 2),
        ({"rate": 1.0}, 1),  # (b): magnitude alone
        ({"rate": 0.25}, 0),  # (c): as many candidates as removals, the gradient alone
        ({"order": "magnitude_first"}, 3),
    ],
)
def test_four_weights_by_hand(options: dict[str, object], gone: int) -> None:
    weight = one_update(0.0, **options).weight[0]
    assert torch.nonzero(weight == 0).flatten().tolist() == [gone]


def test_the_weight_is_the_one_that_produced_the_gradient() -> None:
    # A step of 100 makes index 0 the smallest of the candidates 0 and 2: .9 - 1 against .5 - 2.
    weight = one_update(100.0).weight[0]
    assert torch.nonzero(weight == 0).flatten().tolist() == [2]
    assert weight[0].item() == pytest.approx(-0.1, abs=1e-5)


class MagnitudeOfTheForward(AbstractMethod[FggpOptions]):
    """Global gmp on the same snapshot of the weights as fggp's."""

    name, version, Options = "snapshot", 1, FggpOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        points = gradual(
            start=0.1, end=0.75, updates=8, total_steps=20, initial=0.0, final=target.sparsity
        )

        def event(sparsity: float) -> Event:
            return Event(
                "prune",
                sparsity,
                lambda scene: remove(
                    scene.masks, [Stage(magnitude(scene.forward_weights))], sparsity, "global"
                ),
                needs=frozenset({"forward_weights"}),
            )

        return {step: event(sparsity) for step, sparsity in points.items()}


def test_a_rate_of_one_is_global_gmp() -> None:
    fggp, reference = small_cnn(), small_cnn()
    masks = prune(fggp, "fggp", 0.9, 20, rate=1.0, updates=8).masks
    pruner = Pruner(
        reference,
        method=MagnitudeOfTheForward(FggpOptions()),
        sparsity=0.9,
        layers=prunable(reference),
        total_steps=20,
        steps_per_epoch=5,
        seed=0,
    )
    bound = OPTIMIZERS["sgd"](reference.parameters())
    pruner.bind(bound)
    pruner.start()
    train(reference, pruner, bound, range(1, 21))
    pruner.finish()
    assert masks is not None and pruner.masks is not None
    assert masks.digest() == pruner.masks.digest()
    pairs = zip(fggp.parameters(), reference.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    other = prune(small_cnn(), "fggp", 0.9, 20, rate=0.5, updates=8).masks
    assert other is not None and other.digest() != masks.digest()


@pytest.mark.parametrize(
    "options",
    [{}, {"order": "magnitude_first"}, {"pool": "annealed"}, {"sparse_start": 0.5}],
    ids=str,
)
def test_every_ablation_prunes_monotonically_to_the_target(options: dict[str, object]) -> None:
    model = small_cnn()
    pruner = make_pruner(model, "fggp", 0.9, 30, **options)
    seen: list[Masks] = []
    bound = OPTIMIZERS["nesterov"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    if "sparse_start" in options:
        assert pruner.masks is not None and pruner.masks.kept() == 810
        # ERK: the classifier full, the other 270 shared as 17 : 26, the sums of dimensions
        counts = pruner.masks.counts()
        assert counts == {"0.weight": 107, "3.weight": 163, "7.weight": 540}

    def keep(step: int) -> None:
        if pruner.masks is not None:
            seen.append(pruner.masks)

    train(model, pruner, bound, range(1, 31), after_step=keep)
    pruner.finish()
    assert seen[-1].kept() == 162
    for before, after in zip(seen, seen[1:], strict=False):
        assert all(bool((before[name] | ~after[name]).all()) for name in after)


def test_ablations_differ() -> None:
    variants: list[dict[str, object]] = [
        {},
        {"order": "magnitude_first"},
        {"pool": "annealed"},
        {"sparse_start": 0.5},
        {"rate": 0.8},
    ]
    digests = {prune(small_cnn(), "fggp", 0.9, 30, **v).summary()["digest"] for v in variants}
    assert len(digests) == len(variants)


def test_pool_sizes_by_hand() -> None:
    fixed, annealed = Method(FggpOptions()), Method(FggpOptions(pool="annealed"))
    assert fixed.candidates(101, 10, 0.3) == 50
    pools = [annealed.candidates(1000, 100, quarter / 4) for quarter in range(5)]
    assert pools == [550, 484, 327, 169, 104]  # 100 + floor(a * 900), a = .5 .4275 .2525 .0775 .005


def test_fewer_candidates_than_removals_are_refused_before_training() -> None:
    with pytest.raises(UserError, match="must remove .* but only .* are candidates") as refusal:
        make_pruner(small_cnn(), "fggp", 0.9, 100, updates=2)
    assert "more `updates`" in refusal.value.hint
    make_pruner(small_cnn(), "fggp", 0.9, 100, updates=2, pool="annealed")  # pool >= removals
    make_pruner(small_cnn(), "fggp", 0.98, 100)


def test_a_sparse_start_beyond_the_target_is_refused() -> None:
    with pytest.raises(UserError, match="cannot start at sparsity 0.5 to reach 0.4"):
        make_pruner(small_cnn(), "fggp", 0.4, 40, sparse_start=0.5)

"""IMP: geometric densities, rewinding of every tensor, rounds that replay the learning rate."""

from __future__ import annotations

import pytest
import torch

from sparse_transfer.errors import UserError
from sparse_transfer.loop import schedule_position
from sparse_transfer.pruning.method import Target
from sparse_transfer.pruning.methods.imp import geometric
from tests.pruning.training import OPTIMIZERS, copy_of, make_pruner, prune, small_cnn, train


def target(sparsity: float, active: int = 1000) -> Target:
    return Target(sparsity, active, {"w": (10, 100)}, 100)


def test_densities_fall_by_a_fifth_per_round() -> None:
    sparsities = geometric(target(1 - 0.8**5), 0.2, None)
    assert [1 - s for s in sparsities] == pytest.approx([0.8**r for r in range(1, 6)])
    assert len(geometric(target(0.9), 0.2, None)) == 11  # 0.8 ** 10 = .107 is still too dense
    assert geometric(target(0.9), 0.2, 2) == pytest.approx([1 - 0.1**0.5, 0.9])
    assert geometric(target(0.9, active=400), 0.5, None) == pytest.approx([0.8, 0.9])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_round_begins_at_the_remembered_state(optimizer: str) -> None:
    model = small_cnn()
    pruner = make_pruner(model, "imp", 0.75, 28, rounds=2, rewind=0.2)
    # first training 28 / (1 + 2 * .8) = 10.8 steps, rewinding step 2, rounds end at 11 and 19
    assert pruner.rewinds == {11: 5, 19: 5} and pruner.prunes == (11, 19)
    bound = OPTIMIZERS[optimizer](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 3))
    early = copy_of(model)
    train(model, pruner, bound, range(3, 11))
    assert pruner.masks is None
    for first, last, density in ((11, 18, 0.5), (19, 28, 0.25)):
        train(model, pruner, bound, range(first, first + 1))
        masks = pruner.masks
        assert masks is not None and masks.kept() == round(masks.total * density)
        for name, value in copy_of(model).items():
            expected = early[name] * masks[name] if name in masks else early[name]
            assert torch.equal(value, expected), name
        assert not any(v.any() for s in bound.state.values() for v in s.values() if v is not None)
        train(model, pruner, bound, range(first + 1, last + 1))
        for name, mask in masks.items():
            weight = model.get_parameter(name).detach()
            assert not weight[~mask].any() and (weight != early[name])[mask].any()
    pruner.finish()


def test_every_round_runs_through_the_whole_recipe_from_the_rewinding_step() -> None:
    restarts = make_pruner(small_cnn(), "imp", 0.75, 28, rounds=2, rewind=0.2).rewinds
    positions = [schedule_position(step, 28, restarts) for step in range(1, 29)]
    assert positions[:11] == pytest.approx([1 + step * 28 / 11 for step in range(11)])
    assert positions[11:19] == pytest.approx([6 + step * 23 / 8 for step in range(8)])
    assert positions[19:] == pytest.approx([6 + step * 23 / 9 for step in range(9)])
    # step 2 of 11 is what the rounds go on from: where the first training stood then
    assert positions[11] == pytest.approx(positions[2], abs=0.5)


def test_learning_rate_rewinding_keeps_the_weights() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "imp", 0.5, 20, rounds=1, rewind=0.2, rewinding="learning_rate")
    (end,) = pruner.rewinds
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, end))
    before: dict[str, torch.Tensor] = {}
    after_backward = pruner.after_backward

    def step(number: int) -> None:
        after_backward(number)
        assert not before
        before.update(copy_of(model))

    pruner.after_backward = step  # type: ignore[method-assign]
    train(model, pruner, bound, range(end, end + 1))
    assert pruner.masks is not None
    for name, mask in pruner.masks.items():
        assert (model.get_parameter(name).detach() != before[name])[mask].any()
        assert model.get_parameter(name).detach()[mask].ne(0).all()


def test_one_round_is_one_shot_magnitude_of_the_trained_weights() -> None:
    trained, model = small_cnn(), small_cnn()
    pruner = make_pruner(model, "imp", 0.6, 20, rounds=1, rewind=0.5)
    (end,) = pruner.rewinds
    train(trained, None, OPTIMIZERS["sgd"](trained.parameters()), range(1, end + 1))
    expected = prune(trained, "magnitude", 0.6, 0).masks
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, end + 1))
    assert expected is not None and pruner.masks is not None
    assert pruner.masks.digest() == expected.digest()


def test_a_training_too_short_for_its_rounds_is_refused() -> None:
    with pytest.raises(UserError, match="(?s)trains 12 times.*Train for at least 24 steps"):
        make_pruner(small_cnn(), "imp", 0.9, 11)
    with pytest.raises(UserError, match="cannot run in 0 training steps"):
        make_pruner(small_cnn(), "imp", 0.9, 0)
    for steps in range(24, 40):
        pruner = make_pruner(small_cnn(), "imp", 0.9, steps)
        assert len(pruner.rewinds) == 11 and max(pruner.rewinds) < steps

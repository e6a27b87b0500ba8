"""The training loop: order, schedule, decay groups, resume, masks, agreement with plain torch."""

import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparse_transfer import config, loop, signals
from sparse_transfer.devices import accelerator
from sparse_transfer.errors import StopRequested, TrainingDiverged, UserError
from sparse_transfer.pruning.driver import FixedMask, Pruner
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.methods import gmp


class Blobs:
    """A learnable made-up set; the augmentation is noise drawn from (epoch, example)."""

    def __init__(self, n: int = 70, classes: int = 3, size: int = 8) -> None:
        generator = torch.Generator().manual_seed(5)
        self.labels = torch.arange(n) % classes
        centres = torch.randn(classes, 3, size, size, generator=generator)
        self.images = centres[self.labels] + torch.randn(n, 3, size, size, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        noise = [
            torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1000 * epoch + int(i)))
            for i in indices
        ]
        return self.images[indices] + 0.1 * torch.stack(noise)


def net(seed: int = 0, dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, 3),
    )  # fmt: skip


def settings(**changes) -> config.Recipe:
    return config.Recipe(**{"steps": 12, "batch_size": 16, **changes})


def train(model: nn.Module, recipe: config.Recipe, keeper=None, data=None, **options):
    keeper = keeper or FixedMask(model, None)
    return loop.train(
        model, data or Blobs(), recipe, keeper=keeper, seed=3, accelerator=accelerator(), **options
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def pruner(model: nn.Module, sparsity: float, steps: int, **options) -> Pruner:
    method = gmp.Method(gmp.Method.Options(**options))
    layers = {"3.weight": model[3].weight}
    return Pruner(
        model, method=method, sparsity=sparsity, layers=layers, total_steps=steps,
        steps_per_epoch=5, seed=3,
    )  # fmt: skip


@given(st.integers(2, 300), st.integers(2, 64), st.integers(0, 5), st.sampled_from([2, 4]))
def test_an_epoch_holds_every_example_once_and_no_tiny_batch(n, size, epoch, smallest):
    batches = loop.epoch_batches(n, size, 1, epoch, smallest)
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    assert len(batches) == 1 or min(map(len, batches)) >= min(smallest, size)
    recipe = settings(batch_size=size, steps=1)
    assert loop.steps_per_epoch(n, recipe, smallest) == len(batches)


def test_order_is_a_function_of_seed_and_epoch():
    first = loop.epoch_batches(50, 8, 1, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(first, loop.epoch_batches(50, 8, 1, 0), strict=True)
    )
    assert not torch.equal(first[0], loop.epoch_batches(50, 8, 1, 1)[0])
    assert not torch.equal(first[0], loop.epoch_batches(50, 8, 2, 0)[0])


def test_learning_rates_by_hand():
    recipe = settings(
        steps=110, optimizer={"lr": 1.0}, schedule={"name": "cosine", "warmup_steps": 10}
    )
    rate = [loop.learning_rate(step, 110, 5, recipe) for step in range(1, 111)]
    assert rate[0] == 0.1 and rate[9] == 1.0 and rate[10] == 1.0
    assert math.isclose(rate[60], 0.5) and 0 < rate[-1] < 1e-3
    paper = settings(epochs=150, steps=None, optimizer={"lr": 0.01},
                     schedule={"name": "step", "milestones": (51, 101)})  # fmt: skip
    by_epoch = [loop.learning_rate(1 + 59 * epoch, 150 * 59, 59, paper) for epoch in range(150)]
    assert [round(r, 8) for r in by_epoch] == [0.01] * 51 + [0.001] * 50 + [0.0001] * 49


def test_norms_and_biases_are_not_decayed_whatever_their_name():
    model = nn.Sequential()
    model.add_module("downsample", nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    model.add_module("ln", nn.LayerNorm(4))
    decayed, free = loop.build_optimizer(model, config.Optimizer(weight_decay=0.1)).param_groups
    assert [p.ndim for p in decayed["params"]] == [4] and decayed["weight_decay"] == 0.1
    assert len(free["params"]) == 5 and free["weight_decay"] == 0
    everything = loop.build_optimizer(model, config.Optimizer(decay_norm_and_bias=True))
    assert [len(g["params"]) for g in everything.param_groups] == [6]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_it_is_plain_torch_when_there_is_nothing_to_prune(optimizer):
    recipe = settings(
        optimizer={"name": optimizer, "lr": 0.02, "weight_decay": 1e-3,
                   "decay_norm_and_bias": True},
        schedule={"name": "constant"}, label_smoothing=0.1, clip_norm=0.5,
    )  # fmt: skip
    ours, plain, data = net(), net(), Blobs()
    train(ours, recipe, data=data)
    make = {"sgd": lambda p: torch.optim.SGD(p, 0.02, 0.9, weight_decay=1e-3, nesterov=True),
            "adam": lambda p: torch.optim.Adam(p, 0.02, weight_decay=1e-3),
            "adamw": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=1e-3)}  # fmt: skip
    reference, step = make[optimizer](plain.parameters()), 0
    plain.train()
    for epoch in range(3):
        for batch in loop.epoch_batches(70, 16, 3, epoch):
            if step == 12:
                break
            step += 1
            reference.zero_grad()
            logits = plain(data.batch(batch, epoch))
            nn.functional.cross_entropy(logits, data.labels[batch], label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            reference.step()
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)


def test_accumulation_is_the_gradient_of_all_its_examples():
    """Without batch norm two batches of 8 are one of 16."""
    torch.manual_seed(0)
    once = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    twice = copy.deepcopy(once)
    data = Blobs(n=16)
    train(once, settings(steps=3, batch_size=16), data=data)
    train(twice, settings(steps=3, batch_size=8, accumulation=2), data=data)
    for a, b in zip(once.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_zero_steps_change_nothing():
    model = net()
    before = copy.deepcopy(model)
    train(model, settings(steps=0))
    assert same(model, before)


def test_two_runs_share_every_bit_until_the_first_mask_event():
    """The first event is after step 2; the weights that step 2 gave are equal before it."""
    seen = {}
    for name, sparsity in (("dense", 0.0), ("sparse", 0.9)):
        model = net(dropout=0.3)
        keeper = pruner(model, sparsity, 12, start=0.25, end=0.8, updates=3)
        snapshots: list[dict] = []

        def keep(done, total, model=model, snapshots=snapshots):
            snapshots.append({k: v.clone() for k, v in model.state_dict().items()})

        train(model, settings(), keeper, progress=keep)
        seen[name] = snapshots
    equal = [
        all(torch.equal(a[key], b[key]) for key in a)
        for a, b in zip(seen["dense"], seen["sparse"], strict=True)
    ]
    first_event = equal.index(False)
    assert first_event > 1 and all(equal[:first_event]) and not any(equal[first_event:])


@pytest.mark.parametrize("stop_at", [5, 7, 10])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_resumed_is_bit_identical_to_uninterrupted(tmp_path: Path, stop_at, ema, monkeypatch):
    recipe = settings(
        steps=15, ema=ema, optimizer={"name": "adamw", "lr": 0.01, "weight_decay": 0.1}
    )
    straight = net(dropout=0.3)
    keeper = pruner(straight, 0.8, 15, updates=5)
    train(straight, recipe, keeper)

    resumed = net(dropout=0.3)

    def stop(done, total):
        if done == stop_at:
            monkeypatch.setattr(signals, "_received", [15])

    with pytest.raises(StopRequested):
        train(resumed, recipe, pruner(resumed, 0.8, 15, updates=5), resume=tmp_path, progress=stop)
    monkeypatch.setattr(signals, "_received", [])
    again = net(seed=99, dropout=0.3)  # nothing of the interrupted process but its file is used
    if stop_at == 5:  # stopped before the first epoch end was saved
        again = net(dropout=0.3)
    second = pruner(again, 0.8, 15, updates=5)
    trained = train(again, recipe, second, resume=tmp_path)
    assert trained.resumed_from == {5: None, 7: 1, 10: 1}[stop_at]
    assert same(again, straight)
    assert second.masks is not None and keeper.masks is not None
    assert second.masks.digest() == keeper.masks.digest()


def test_another_thread_count_is_said_on_resume(tmp_path: Path, monkeypatch):
    def stop(done, total):
        if done == 7:
            monkeypatch.setattr(signals, "_received", [15])

    model = net()
    with pytest.raises(StopRequested):
        train(model, settings(), resume=tmp_path, progress=stop)
    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert "threads 77" in train(net(), settings(), resume=tmp_path).warnings[0]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fixed_mask_stays_exactly_zero(optimizer, precision):
    model = net()
    mask = torch.rand(8, 8, 3, 3, generator=torch.Generator().manual_seed(1)) > 0.7
    masks = Masks({"3.weight": mask})
    masks.apply(model.named_parameters())
    recipe = settings(
        optimizer={"name": optimizer, "lr": 0.05, "weight_decay": 0.1},
        clip_norm=1.0, accumulation=2, ema=0.5, precision=precision,
    )  # fmt: skip
    train(model, recipe, FixedMask(model, masks))
    assert torch.count_nonzero(model[3].weight[~mask]) == 0
    assert torch.count_nonzero(model[3].weight[mask]) > 0


def test_averaged_weights_are_masked_when_the_mask_came_late():
    model = net()
    keeper = pruner(model, 0.9, 12, start=0.5, end=1.0, updates=2)
    train(model, settings(ema=0.99), keeper)
    assert torch.count_nonzero(model[3].weight) == round(0.1 * model[3].weight.numel())


def test_frozen_batch_norm_keeps_statistics_and_affine():
    model = net()
    before = copy.deepcopy(model[1].state_dict())
    train(model, settings(), freeze_bn=True)
    assert all(torch.equal(value, before[key]) for key, value in model[1].state_dict().items())
    assert not torch.equal(model[0].weight, net()[0].weight)


def test_a_diverging_training_says_so():
    with pytest.raises(TrainingDiverged, match="not a finite number"):
        train(net(), settings(optimizer={"lr": 1e30}, schedule={"name": "constant"}))


def test_the_loss_falls_on_a_learnable_set():
    losses = train(net(), settings(steps=60, optimizer={"lr": 0.05})).losses
    assert losses[-1] < 0.5 * losses[0]


def test_a_line_and_a_floor_by_hand():
    line = settings(
        steps=11, optimizer={"lr": 1.0},
        schedule={"name": "linear", "warmup_steps": 1, "floor": 0.1},
    )  # fmt: skip
    rate = [loop.learning_rate(step, 11, 5, line) for step in range(1, 12)]
    assert rate == pytest.approx([1.0, *(1 - 0.09 * i for i in range(10))])
    curve = settings(steps=10, optimizer={"lr": 1.0}, schedule={"name": "cosine", "floor": 0.2})
    rate = [loop.learning_rate(step, 10, 5, curve) for step in range(1, 11)]
    assert rate[0] == 1.0 and rate[5] == pytest.approx(0.6) and rate[-1] > 0.2


@given(st.integers(1, 60), st.dictionaries(st.integers(0, 60), st.integers(0, 9), max_size=5))
def test_a_schedule_is_itself_and_after_a_restart_the_rest_of_it_squeezed(total, restarts):
    assert [loop.schedule_position(t, total, {}) for t in range(1, total + 1)] == list(
        range(1, total + 1)
    )
    restarts = {at: min(to, total - 1) for at, to in restarts.items() if at < total}
    positions = [loop.schedule_position(step, total, restarts) for step in range(1, total + 1)]
    ends = sorted({*restarts, total} - {0})
    for begun, end in zip(sorted({0, *restarts}), ends, strict=True):
        first, part = restarts.get(begun, 0), positions[begun:end]
        assert part[0] == first + 1  # the step after it, whatever the stride
        stride = (total - first) / (end - begun)
        assert part == pytest.approx([first + 1 + i * stride for i in range(end - begun)])


def test_milestones_and_warm_up_are_squeezed_too():
    recipe = settings(
        epochs=10, steps=None, optimizer={"lr": 1.0},
        schedule={"name": "step", "milestones": [5, 8], "warmup_steps": 4},
    )  # fmt: skip
    rates = [
        loop.learning_rate(loop.schedule_position(t, 40, {20: 0}), 40, 4, recipe)
        for t in range(1, 41)
    ]
    assert rates[:20] == rates[20:]
    expected = [0.25, 0.75, *[1] * 8, *[0.1] * 6, *[0.01] * 4]
    assert rates[:20] == pytest.approx(expected)


def test_the_learning_rate_begins_anew_after_each_pruning_without_a_second_warm_up():
    recipe = settings(
        optimizer={"lr": 1.0, "momentum": 0.0, "nesterov": False},
        schedule={"name": "linear", "warmup_steps": 2},
    )
    model = net()
    keeper = pruner(model, 0.5, 12, start=0.25, end=0.75, updates=2)
    assert keeper.prunes == (6, 9)
    seen: list[float] = []
    after_step = keeper.after_step

    def look(step: int) -> None:
        seen.append(keeper._optimizer.param_groups[0]["lr"])  # type: ignore[union-attr]
        after_step(step)

    keeper.after_step = look  # type: ignore[method-assign]
    train(model, recipe, keeper, restart_on_prune=True)
    third = [1, 2 / 3, 1 / 3]
    assert seen == pytest.approx([0.5, 1, 0.8, 0.6, 0.4, 0.2, *third, *third])


def test_a_rewinding_of_the_method_goes_before_a_restart_of_the_recipe():
    keeper, seen = pruner(net(), 0.5, 12, start=0.25, end=0.75, updates=2), []
    keeper.rewinds = {9: 6}
    after_step = keeper.after_step

    def look(step: int) -> None:
        seen.append(keeper._optimizer.param_groups[0]["lr"])  # type: ignore[union-attr]
        after_step(step)

    keeper.after_step = look  # type: ignore[method-assign]
    line = settings(optimizer={"lr": 1.0}, schedule={"name": "linear"})
    train(keeper._model, line, keeper, restart_on_prune=True)
    assert seen[6] == 1 and seen[9] == pytest.approx(0.5)


def test_an_average_of_what_cannot_be_averaged_is_refused():
    keeper = pruner(net(), 0.5, 12)
    keeper.averages = False
    with pytest.raises(UserError, match="cannot be trained with `ema`"):
        train(net(), settings(ema=0.9), keeper)

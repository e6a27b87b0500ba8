"""The shipped profiles of the study, line by line as its code runs them (arXiv 2111.13445)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparse_transfer import config, experiment_file, loop, models, probes

# epochs 0-50 at the base rate, 51-100 at a tenth, 101-149 at a hundredth
RATES = [1.0] * 51 + [0.1] * 50 + [0.01] * 49
IMAGES = 3_680  # of Pets: 57 batches of 64 and one of 32


def trained(name: str) -> config.FullProfile | config.OnlineProfile:
    profile = experiment_file.load_recipe(name)
    assert isinstance(profile, config.FullProfile | config.OnlineProfile)
    return profile


def linear(name: str = "paper-linear") -> config.LinearProfile:
    profile = experiment_file.load_recipe(name)
    assert isinstance(profile, config.LinearProfile)
    return profile


@pytest.mark.parametrize(("name", "base"), [("paper-full", 0.001), ("paper-linear-online", 0.01)])
def test_the_learning_rate_of_every_step_of_150_epochs(name, base):
    profile = trained(name)
    per_epoch = loop.steps_per_epoch(IMAGES, profile)
    total = loop.total_steps(IMAGES, profile)
    assert (per_epoch, total) == (58, 8_700)  # the last partial batch is kept
    for step in range(1, total + 1):
        rate = loop.learning_rate(step, total, per_epoch, profile)
        assert rate == pytest.approx(base * RATES[(step - 1) // per_epoch]), step


def test_the_probe_has_the_learning_rate_of_its_epoch():
    rates = [lr for lr, _ in probes._batches(linear(), [21], 100)]
    assert rates == pytest.approx([0.01 * rate for rate in RATES for _ in range(2)])


def test_the_papers_nominal_epochs_are_other_milestones():
    nominal = linear().model_copy(update={"milestones": (50, 100)})
    rates = [lr for lr, _ in probes._batches(nominal, [21], 64)]
    assert rates == pytest.approx([0.01] * 50 + [0.001] * 50 + [0.0001] * 50)


def test_the_last_partial_batch_of_the_probe_is_kept():
    sizes = [rows.shape[1] for _, rows in probes._batches(linear(), [21], 150)][:3]
    assert sizes == [64, 64, 22]


def test_everything_else_of_the_linear_profile():
    profile = linear()
    assert (profile.epochs, profile.batch_size, profile.momentum) == (150, 64, 0.9)
    assert (profile.weight_decay, profile.gamma) == (5e-4, 0.1)
    assert (profile.normalise, profile.interpolation) == ("imagenet", "paper")


@pytest.mark.parametrize("name", ["paper-full", "paper-linear-online"])
def test_everything_else_of_the_trained_profiles(name):
    profile = trained(name)
    assert (profile.epochs, profile.steps, profile.batch_size) == (150, None, 64)
    assert (profile.normalise, profile.interpolation) == ("dataset", "paper")
    assert profile.augment == "random_resized_crop" and profile.precision == "fp32"
    assert profile.label_smoothing == 0 and profile.clip_norm is None and profile.ema is None
    assert profile.accumulation == 1 and profile.schedule.warmup_steps == 0
    assert profile.optimizer.momentum == 0.9 and not profile.optimizer.nesterov
    if isinstance(profile, config.FullProfile):
        assert profile.bn == "train" and profile.card_lr
        assert not profile.lr_grid and not profile.validation


def test_weight_decay_reaches_every_trainable_parameter():
    spec = config.ModelSpec(name="resnet18", weights="random")
    model = models.build(spec, num_classes=5, image_size=32, seed=0).model
    optimizer = loop.build_optimizer(model, trained("paper-full").optimizer)
    decayed = [
        id(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if group["weight_decay"] == 5e-4
    ]
    assert sorted(decayed) == sorted(id(parameter) for parameter in model.parameters())
    assert all(group["dampening"] == 0 for group in optimizer.param_groups)


def test_a_new_head_has_the_distribution_of_a_fresh_linear_layer():
    spec = config.ModelSpec(name="resnet18", weights="random")
    model = models.build(spec, num_classes=5, image_size=32, seed=0).model
    models.new_head(model, 400, seed=21)
    bound = 1 / 512**0.5
    for weights in (model.get_parameter("fc.weight"), probes.initial_head(21, 512, 400)):
        fresh = nn.Linear(512, 400).weight.detach().std().item()
        assert weights.abs().max() <= bound
        assert weights.detach().std().item() == pytest.approx(fresh, rel=0.02)


def test_the_same_seed_gives_the_same_head_and_order_and_another_gives_others():
    for made in (
        lambda seed: probes.initial_head(seed, 8, 3),
        lambda seed: probes.epoch_order(seed, 0, 100),
    ):
        assert torch.equal(made(21), made(21))
        assert not torch.equal(made(21), made(51))


@pytest.mark.parametrize("name", ["modern-linear", "modern-full", "model-linear"])
def test_the_other_profiles_take_the_models_own_transform(name):
    profile = experiment_file.load_recipe(name)
    assert not isinstance(profile, config.Recipe)
    assert (profile.normalise, profile.interpolation) == ("model", "model")


def test_the_modern_profile_searches_its_learning_rate_on_held_out_images():
    profile = trained("modern-full")
    assert isinstance(profile, config.FullProfile)
    assert len(profile.lr_grid) > 2 and profile.validation == 0.2

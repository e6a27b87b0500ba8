"""What every pruning method must do, today's and tomorrow's: one test for each promise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from sparse_transfer import plugins
from sparse_transfer.config import Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.driver import events_of
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from tests.pruning.training import (
    CLASSES,
    OPTIMIZERS,
    copy_of,
    make_pruner,
    prune,
    same,
    small_cnn,
    tiny_mobilenet,
    train,
)

METHODS = [n for n in plugins.names("pruner") if not plugins.load("pruner", n).removes_channels]
STEPS = 24
PATTERNED = {"nm": 0.5, "sr_ste": 0.5}  # 2:4 is nothing else, and three input channels are no group
OPTIONS: dict[str, dict[str, Any]] = {"woodfisher": {"gradients": 8, "updates": 2}}  # for speed
KEEP_DENSE = ("first_conv", "head", "depthwise")


def timm_model(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=CLASSES, **kwargs)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "small_cnn": (small_cnn, 8),
    "mobilenet": (tiny_mobilenet, 16),
    "test_resnet": (lambda: timm_model("test_resnet"), 32),
    "test_vit": (lambda: timm_model("test_vit", img_size=32), 32),
}


def sparsity_for(method: str) -> float:
    return PATTERNED.get(method, 0.8) if plugins.load("pruner", method).has_target else 0.0


def kept_dense(method: str) -> tuple[str, ...]:
    return ("first_conv",) if method in PATTERNED else ()


def start_of(
    method: str, model: nn.Module, sparsity: float, keep_dense: tuple[str, ...]
) -> Masks | None:
    """None, or the masks of a sparse model for a method that refuses a dense one."""
    loaded = plugins.load("pruner", method)
    shapes = {name: tuple(layer.shape) for name, layer in prunable(model, keep_dense).items()}
    try:
        events_of(loaded(loaded.Options()), sparsity=sparsity, shapes=shapes, total_steps=STEPS)
    except UserError:
        return prune(model, "magnitude", sparsity, 0, keep_dense=keep_dense).masks
    return None


@pytest.mark.parametrize("method", METHODS)
def test_it_describes_itself(method: str) -> None:
    loaded = plugins.load("pruner", method)
    assert loaded.name == method
    assert isinstance(loaded.version, int) and loaded.version >= 1
    assert issubclass(loaded.Options, Frozen)
    assert loaded.Options.__doc__
    assert plugins.summary("pruner", method).endswith(".")
    assert len(plugins.summary("pruner", method)) <= 100
    document = plugins.document("pruner", method)
    for label in ("Family", "Schedule", "Cost", "Source", "Deviations"):
        assert f"\n{label}: " in document, label


@pytest.mark.parametrize("model_name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_it_reaches_its_target_and_touches_nothing_else(method: str, model_name: str) -> None:
    make, size = MODELS[model_name]
    model, target = make(), sparsity_for(method)
    start = start_of(method, model, target, KEEP_DENSE)
    layers = prunable(model, KEEP_DENSE)
    dense = [p for name, p in model.named_parameters() if name not in layers]
    pruner = make_pruner(
        model, method, target, STEPS, keep_dense=KEEP_DENSE, masks=start, size=size,
        **OPTIONS.get(method, {}),
    )  # fmt: skip
    bound = OPTIMIZERS["nesterov"](model.parameters())
    pruner.bind(bound)
    after_step = pruner.after_step

    def watched(step: int) -> None:
        before = [p.detach().clone() for p in dense]
        after_step(step)
        untouched = all(torch.equal(a, b) for a, b in zip(before, dense, strict=True))
        assert untouched or step in pruner.rewinds

    def zeros(step: int) -> None:
        if pruner.masks is not None:
            assert min(pruner.masks.counts().values()) >= 1
            for name, mask in pruner.masks.items():
                weight = model.get_parameter(name)
                assert not weight.detach().masked_fill(mask, 0).any()
                momentum = bound.state[weight]["momentum_buffer"]
                assert not momentum.masked_fill(mask, 0).any()

    pruner.after_step = watched  # type: ignore[method-assign]
    pruner.start()
    train(model, pruner, bound, range(1, STEPS + 1), size=size, after_step=zeros)
    pruner.finish()
    summary = pruner.summary()
    if target:
        assert pruner.masks is not None
        assert list(pruner.masks) == list(layers)
        assert pruner.masks.kept() == round(pruner.masks.total * (1 - target))
        assert summary["target_sparsity"] == target
        assert all(event["sparsity"] <= target for event in summary["events"])
    if pruner.masks is not None:
        assert summary["measured_sparsity"] == pytest.approx(pruner.masks.sparsity(), abs=1e-12)
        assert summary["digest"] == pruner.masks.digest()
        assert summary["kept_weights"] == sum(v["kept"] for v in summary["layers"].values())
    assert list(dict(model.named_parameters())) == list(dict(make().named_parameters()))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits(method: str) -> None:
    runs = []
    for _ in range(2):
        model = small_cnn()
        keep_dense, sparsity = kept_dense(method), sparsity_for(method)
        start = start_of(method, model, sparsity, keep_dense)
        pruner = prune(
            model, method, sparsity, STEPS, seed=3, masks=start, keep_dense=keep_dense,
            **OPTIONS.get(method, {}),
        )  # fmt: skip
        runs.append((pruner.summary()["digest"], copy_of(model)))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(method: str, optimizer: str) -> None:
    whole, sparsity, keep_dense = small_cnn(), sparsity_for(method), kept_dense(method)
    start = start_of(method, whole, sparsity, keep_dense)
    options = {"masks": start, "keep_dense": keep_dense, **OPTIONS.get(method, {})}
    expected = prune(whole, method, sparsity, STEPS, optimizer=optimizer, **options)
    for stop in (3, 11, 17):
        model = small_cnn()
        pruner = make_pruner(model, method, sparsity, STEPS, **options)
        bound = OPTIMIZERS[optimizer](model.parameters())
        pruner.bind(bound)
        pruner.start()
        train(model, pruner, bound, range(1, stop + 1))
        saved = copy.deepcopy((model.state_dict(), bound.state_dict(), pruner.state_dict()))

        model = small_cnn(seed=1)
        pruner = make_pruner(model, method, sparsity, STEPS, **options)
        model.load_state_dict(saved[0])
        bound = OPTIMIZERS[optimizer](model.parameters())
        bound.load_state_dict(saved[1])
        pruner.load_state_dict(saved[2])
        pruner.bind(bound)
        train(model, pruner, bound, range(stop + 1, STEPS + 1))
        pruner.finish()
        assert same(copy_of(whole), copy_of(model))
        assert pruner.summary() == expected.summary()


@pytest.mark.parametrize("steps", [0, STEPS])
@pytest.mark.parametrize(
    "method", [name for name in METHODS if plugins.load("pruner", name).has_target]
)
def test_sparsity_zero_is_plain_training(method: str, steps: int) -> None:
    pruned, plain = small_cnn(), small_cnn()
    pruner = prune(pruned, method, 0.0, steps, keep_dense=kept_dense(method))
    train(plain, None, OPTIMIZERS["sgd"](plain.parameters()), range(1, steps + 1))
    assert same(copy_of(pruned), copy_of(plain))
    assert pruner.masks is None and pruner.summary()["measured_sparsity"] == 0


@pytest.mark.parametrize("method", METHODS)
def test_zeros_stay_zero_under_adamw_with_accumulated_gradients(method: str) -> None:
    model, sparsity, keep_dense = small_cnn(), sparsity_for(method), kept_dense(method)
    start = start_of(method, model, sparsity, keep_dense)
    pruner = make_pruner(
        model, method, sparsity, STEPS, masks=start, keep_dense=keep_dense,
        **OPTIONS.get(method, {}),
    )  # fmt: skip
    bound = OPTIMIZERS["adamw"](model.parameters())
    pruner.bind(bound)
    pruner.start()

    def zeros(step: int) -> None:
        for name, mask in (pruner.masks or {}).items():
            weight = model.get_parameter(name)
            tensors = [weight, *(s for s in bound.state[weight].values() if s.dim())]
            assert len(tensors) == 3
            assert not any(t.detach().masked_fill(mask, 0).any() for t in tensors)

    train(
        model, pruner, bound, range(1, STEPS + 1), accumulation=2, clip=1.0, bf16=True,
        after_step=zeros,
    )  # fmt: skip
    pruner.finish()
    if sparsity:
        assert pruner.masks is not None
        assert pruner.masks.kept() == round(pruner.masks.total * (1 - sparsity))


@pytest.mark.parametrize(
    "method",
    [n for n in METHODS if plugins.load("pruner", n).has_target and n not in PATTERNED],
)
def test_no_layer_is_ever_empty(method: str) -> None:
    model = small_cnn()
    with torch.no_grad():
        model.get_parameter("3.weight").mul_(1e-6)  # global rankings would remove it all
    start = start_of(method, model, 0.995, ())
    pruner = prune(model, method, 0.995, STEPS, masks=start, **OPTIONS.get(method, {}))
    assert pruner.masks is not None
    assert pruner.masks.kept() == 8
    assert min(pruner.masks.counts().values()) >= 1

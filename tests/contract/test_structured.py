"""What every structured method must do: one test for each promise of the driver and its methods."""

from __future__ import annotations

import copy
import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparse_transfer import cost, loop, plugins, signals
from sparse_transfer.config import Frozen
from sparse_transfer.devices import accelerator
from sparse_transfer.errors import StopRequested, UserError
from sparse_transfer.pruning.structured.driver import StructuredPruner, check_structured
from sparse_transfer.pruning.structured.method import AbstractStructuredMethod
from tests.pruning.structured.shrinking import (
    METHODS,
    MODELS,
    OPTIONS,
    make_pruner,
    model_of,
    prune,
)
from tests.pruning.training import OPTIMIZERS, copy_of, same, small_cnn, train
from tests.test_loop import Blobs, settings

STEPS = 20
TRUSTING = {"trust": 0.05, "range_test": True, "shuffle": True}
VARIANTS = [(name, {}) for name in METHODS] + [
    ("progressive", TRUSTING),
    ("structured", {"updates": 5, "importance": "taylor", "allocation": "uniform"}),
]


def method_of(name: str, **options: object) -> AbstractStructuredMethod[Frozen]:
    loaded = plugins.load("pruner", name)
    return loaded(loaded.Options(**(OPTIONS[name] | options)))


@pytest.mark.parametrize("name", METHODS)
def test_it_is_a_plugin_that_says_what_it_is(name: str) -> None:
    loaded = plugins.load("pruner", name)
    assert loaded.name == name and loaded.version >= 1
    assert loaded.has_target and loaded.removes_channels
    assert issubclass(loaded, AbstractStructuredMethod) and issubclass(loaded.Options, Frozen)
    assert loaded.Options.__doc__
    assert plugins.summary("pruner", name).endswith(".")
    lines = plugins.document("pruner", name).splitlines()
    for label in ("Family:", "Schedule:", "Cost:", "Source:", "Deviations:"):
        assert any(line.startswith(label) for line in lines)


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
@pytest.mark.parametrize("model_name", ["small_cnn", "test_resnet", "vgg19_cifar"])
@pytest.mark.parametrize("name", METHODS)
def test_it_reaches_its_target(name: str, model_name: str, optimizer: str) -> None:
    model, size = model_of(model_name)
    dense, names = cost.macs(model, size).dense, [n for n, _ in model.named_parameters()]
    parameters = sum(p.numel() for p in model.parameters())
    pruner = prune(model, name, 0.6, STEPS, optimizer=optimizer, size=size)
    summary = pruner.summary()
    left = cost.macs(model, size).dense
    assert summary["macs"] == left <= 0.4 * dense == 0.4 * summary["macs_dense"]
    assert summary["measured_sparsity"] == pytest.approx(1 - left / dense, abs=1e-12)
    now = sum(p.numel() for p in model.parameters())
    assert summary["sparsity_of_all_parameters"] == pytest.approx(1 - now / parameters)
    assert summary["unit"] == "channels" and pruner.masks is None
    removed = sum(event["channels"] for event in summary["events"])
    assert removed == sum(before - left for left, before in summary["channels"].values()) > 0
    assert [event["step"] for event in summary["events"]] == list(pruner.prunes)
    assert all(
        layer["kept"] == model.get_parameter(n).numel() for n, layer in summary["layers"].items()
    )
    assert [n for n, _ in model.named_parameters()] == names
    plan = pruner.shrinking
    assert plan is not None and summary["digest"] == plan.digest()
    json.dumps(summary)
    again, _ = model_of(model_name)
    plan.apply(again)
    again.load_state_dict(model.state_dict())  # the plan rebuilds the very shapes


@pytest.mark.parametrize("model_name", ["mobilenetv2_035", "tiny_mobilenet", "resnet20_cifar"])
def test_it_works_with_coupled_and_padded_channels(model_name: str) -> None:
    model, size = model_of(model_name)
    pruner = prune(model, "structured", 0.4, 6, optimizer="adamw", size=size)
    assert cost.macs(model, size).dense == pruner.summary()["macs"]


def test_no_channel_goes_that_need_not() -> None:
    for sparsity in (0.3, 0.5, 0.8):
        model = small_cnn()
        pruner = make_pruner(model, "structured", sparsity, 0, start=0.0, max_share=1.0)
        graph = pruner._graph
        assert graph is not None
        weights = dict(model.named_parameters())
        scores = {n: pruner._layer(n, weights).scores for n in graph.groups}
        pruner.start()
        goal = (1 - sparsity) * graph.macs_dense
        assert graph.macs(pruner._alive) <= goal
        # the one that the ranking took last, back again, misses the target
        ranked = [
            (float(value / s.mean()), n, i)
            for n, s in scores.items()
            for i, value in enumerate(s)
            if not pruner._alive[n][i]
        ]
        _, group, index = max(ranked)
        back = {n: left.clone() for n, left in pruner._alive.items()}
        back[group][index] = True
        assert graph.macs(back) > goal
        alive = [float(v / s.mean()) for n, s in scores.items() for v in s[pruner._alive[n]]]
        assert max(ranked)[0] <= min(alive)


@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_the_same_seed_removes_the_same_channels(name: str, options: dict[str, object]) -> None:
    runs = []
    for _ in range(2):
        model = small_cnn()
        pruner = prune(model, name, 0.6, STEPS, seed=3, **options)
        runs.append((pruner.summary(), copy_of(model)))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])


def state_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


@pytest.mark.parametrize("optimizer", ["nesterov", "adamw"])
@pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(
    name: str, options: dict[str, object], optimizer: str, tmp_path: Path
) -> None:
    whole = small_cnn().to(memory_format=torch.channels_last)
    expected = make_pruner(whole, name, 0.6, STEPS, **options)
    bound = OPTIMIZERS[optimizer](whole.parameters())
    expected.bind(bound)
    expected.start()
    saved: dict[int, dict] = {}

    def save(step: int) -> None:
        if step in (1, 6, 11, 16):
            tensors = {k: v.contiguous() for k, v in expected.state_dict().items()}
            save_file(tensors, tmp_path / f"{step}.safetensors")
            state = copy.deepcopy(bound.state_dict())
            saved[step] = {"model": copy_of(whole), "optimizer": state}

    train(whole, expected, bound, range(1, STEPS + 1), after_step=save)  # type: ignore[arg-type]
    expected.finish()
    for stop, state in saved.items():
        model = small_cnn(seed=1).to(memory_format=torch.channels_last)
        pruner = make_pruner(model, name, 0.6, STEPS, **options)
        again = OPTIMIZERS[optimizer](model.parameters())
        pruner.bind(again)
        pruner.load_state_dict(load_file(tmp_path / f"{stop}.safetensors"))  # the loop's order
        model.load_state_dict(state["model"])
        again.load_state_dict(state["optimizer"])
        pruner.start()
        train(model, pruner, again, range(stop + 1, STEPS + 1))  # type: ignore[arg-type]
        pruner.finish()
        assert same(copy_of(whole), copy_of(model))
        assert same(state_of(bound, whole), state_of(again, model))
        assert pruner.summary() == expected.summary()


@pytest.mark.parametrize("steps", [0, STEPS])
@pytest.mark.parametrize("name", METHODS)
def test_sparsity_zero_is_plain_training(name: str, steps: int) -> None:
    pruned, plain = small_cnn(), small_cnn()
    pruner = prune(pruned, name, 0.0, steps)
    train(plain, None, OPTIMIZERS["sgd"](plain.parameters()), range(1, steps + 1))
    assert same(copy_of(pruned), copy_of(plain))
    summary = pruner.summary()
    assert pruner.shrinking is None and summary["digest"] is None and pruner.last_cut is None
    assert summary["measured_sparsity"] == 0 and summary["macs"] == cost.macs(plain, 8).dense


@pytest.mark.parametrize("name", METHODS)
def test_training_goes_on_after_a_removal(name: str) -> None:
    model = small_cnn()
    pruner = make_pruner(model, name, 0.6, STEPS)
    bound = OPTIMIZERS["nesterov"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    removals = 0
    for step in range(1, STEPS + 1):
        train(model, pruner, bound, range(step, step + 1))  # type: ignore[arg-type]
        held = list(chain(*(group["params"] for group in bound.param_groups)))
        own = list(model.parameters())
        assert all(a is b for a, b in zip(held, own, strict=True))
        assert set(bound.state) == set(own)
        assert all(bound.state[p]["momentum_buffer"].shape == p.shape for p in own)
        if pruner.last_cut is not None:
            removals += 1
            pruner.last_cut = None
            before = [p.detach().clone() for p in own]
            probe = torch.optim.SGD(own, lr=0.1)
            train(model, None, probe, range(90, 91))
            assert all(bool((a != b).any()) for a, b in zip(own, before, strict=True))
    pruner.finish()
    assert removals == sum(event["channels"] > 0 for event in pruner.summary()["events"]) >= 1


def test_the_last_cut_brings_an_average_along() -> None:
    model = small_cnn()
    average: dict[str, Tensor] = copy_of(model)

    def follow(step: int) -> None:
        cut = pruners[0].last_cut
        if cut is not None:
            for name in average:
                average[name] = cut.cut(name, average[name])
            pruners[0].last_cut = None
        for name, value in model.state_dict().items():
            assert average[name].shape == value.shape
            average[name] = value.clone()

    pruner = make_pruner(model, "progressive", 0.6, STEPS)
    pruners: list[StructuredPruner] = [pruner]
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, STEPS + 1), after_step=follow)  # type: ignore[arg-type]
    assert len(pruner.summary()["events"]) > 2


def test_an_optimizer_wrapped_by_accelerate_is_found() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "structured", 0.6, 0, start=0.0)
    inner = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(Accelerator(cpu=True).prepare_optimizer(inner))
    pruner.start()
    assert pruner.last_cut is not None and pruner.prunes == (0,) and pruner.rewinds == {}
    held = inner.param_groups[0]["params"]
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_every_layer_keeps_what_it_must(name: str) -> None:
    model = small_cnn()
    with torch.no_grad():
        for layer in ("3.weight", "4.weight", "7.weight"):
            model.get_parameter(layer).mul_(1e-6)  # a ranking would take it all
    pruner = prune(model, name, 0.7, STEPS, min_channels=3)
    assert min(left for left, _ in pruner.summary()["channels"].values()) >= 3


CHECK = {
    "sparsity": 0.5,
    "keep_dense": (),
    "image_size": 8,
    "total_steps": STEPS,
    "has_images": True,
}


def refused(
    name: str, model: nn.Module, options: dict[str, object], **changes: object
) -> UserError:
    with pytest.raises(UserError) as refusal:
        check_structured(method_of(name, **options), model=model, **(CHECK | changes))  # type: ignore[arg-type]
    return refusal.value


def test_what_cannot_be_done_is_refused_before_the_run() -> None:
    with torch.device("meta"):
        model = small_cnn()
    for name in METHODS:
        check_structured(method_of(name), model=model, **CHECK)  # type: ignore[arg-type]
    check_structured(
        method_of("structured", updates=3, step_size="learning_rate"), model=model, **CHECK
    )  # type: ignore[arg-type]
    assert "outside [0, 1)" in refused("structured", model, {}, sparsity=50).what
    assert "0.5 for 50 %" in refused("structured", model, {}, sparsity=50).hint
    assert "gradually in 2" in refused("progressive", model, {}, total_steps=2).what
    images = refused("progressive", model, {"trust": 0.1}, has_images=False)
    assert "needs training images" in images.what
    early = refused("structured", model, {"importance": "taylor", "start": 0.0})
    assert "no gradient" in early.why


def test_a_target_out_of_reach_says_how_far_one_can_go() -> None:
    model = small_cnn()
    error = refused("structured", model, {"min_channels": 6}, sparsity=0.9)
    # 6 and 6 channels of 8 and 12: 64*27*6 + 9*54*6 + 54*5 = 13554 of 22140 MACs
    assert "0.6122" in error.why and "highest possible sparsity here is 0.3878" in error.hint
    check_structured(
        method_of("structured", min_channels=6),
        model=model,
        **(CHECK | {"sparsity": 0.3878}),  # type: ignore[arg-type]
    )
    refused("structured", model, {"min_channels": 6}, sparsity=0.3879)
    dense = refused("structured", model, {}, keep_dense=("first_conv",), sparsity=0.9)
    assert "2 other groups stay whole" in dense.why  # the first convolution's and the output


def test_slimming_needs_batch_norm() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    error = refused("slimming", plain, {})
    assert "nothing that `bn_gamma` reads" in error.why
    vit, size = MODELS["test_vit"][0](), MODELS["test_vit"][1]
    # a transformer has none in its blocks, but the other methods prune its hidden units
    assert "nothing that `bn_gamma` reads" in refused("slimming", vit, {}, image_size=size).why
    check_structured(
        method_of("structured"),
        model=vit,
        **(CHECK | {"image_size": size, "sparsity": 0.3}),  # type: ignore[arg-type]
    )


def test_a_frozen_layer_is_refused_by_gradient_scores() -> None:
    model = small_cnn()
    model.get_parameter("1.weight").requires_grad_(False)
    with pytest.raises(UserError, match="needs the gradient of '1.weight'"):
        prune(model, "progressive", 0.5, STEPS)


def test_a_state_of_another_model_is_refused() -> None:
    state = make_pruner(small_cnn(), "structured", 0.5, STEPS).state_dict()
    model, size = model_of("vgg19_cifar")
    other = make_pruner(model, "structured", 0.5, STEPS, size=size)
    with pytest.raises(UserError, match="saved channels do not fit"):
        other.load_state_dict(state)


def test_processes_remove_what_the_first_one_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_cnn()
    pruner = make_pruner(model, "structured", 0.5, 0, start=0.0)
    first = {"0": torch.arange(8) < 4, "3": torch.arange(12) % 2 == 0}

    def broadcast(tensor: Tensor, src: int) -> None:
        """Another process, the first one, chose `first`."""
        assert src == 0
        tensor.copy_(torch.cat(list(first.values())))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    pruner.start()
    assert pruner.summary()["channels"] == {"0": [4, 8], "3": [6, 12]}
    assert all(torch.equal(left, first[name]) for name, left in pruner._alive.items())
    assert torch.equal(model.get_parameter("0.weight"), small_cnn().get_parameter("0.weight")[:4])


@pytest.mark.parametrize(("name", "ema"), [("progressive", None), ("slimming", 0.9)])
def test_the_real_loop_resumes_bit_by_bit(
    name: str, ema: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps make an epoch: interrupted at step 12 the loop goes on from step 10."""
    recipe = settings(steps=15, ema=ema, clip_norm=1.0, optimizer={"name": "adamw", "lr": 0.01})

    def stop(done: int, total: int) -> None:
        if done == 12:
            monkeypatch.setattr(signals, "_received", [15])

    def run(seed: int, **options: Any) -> tuple[nn.Module, StructuredPruner]:
        model = small_cnn(seed)
        pruner = make_pruner(model, name, 0.6, 15)
        device = accelerator()
        loop.train(model, Blobs(), recipe, keeper=pruner, seed=3, accelerator=device, **options)
        return model, pruner

    straight, expected = run(0)
    with pytest.raises(StopRequested):
        run(0, resume=tmp_path, progress=stop)
    monkeypatch.setattr(signals, "_received", [])
    resumed, pruner = run(99, resume=tmp_path)
    assert pruner.prunes[0] < 10 and expected.summary()["events"][0]["channels"] > 0
    assert same(copy_of(straight), copy_of(resumed))
    assert pruner.summary() == expected.summary()

"""The driver: zeros through every optimizer, fixed masks, resume, relaxed methods, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparse_transfer import plugins
from sparse_transfer.config import Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.driver import FixedMask, Pruner, events_of
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks, keeps_zeros
from sparse_transfer.pruning.method import AbstractMethod, Change, Event, Need, Scene, Target
from tests.pruning.training import (
    OPTIMIZERS,
    batch,
    copy_of,
    examples,
    make_pruner,
    prune,
    same,
    small_cnn,
    train,
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "loop", [{}, {"clip": 0.1}, {"accumulation": 2}, {"bf16": True, "clip": 0.1}], ids=str
)
@pytest.mark.parametrize("method", ["magnitude", "gmp"])
def test_zeros_stay_zero_in_weights_gradients_and_state(
    optimizer: str, loop: dict, method: str
) -> None:
    model = small_cnn()
    pruner = make_pruner(model, method, 0.8, 12)
    bound = OPTIMIZERS[optimizer](model.parameters())
    pruner.bind(bound)
    pruner.start()
    during: list[Masks | None] = [pruner.masks]  # what gradients were masked by, step by step

    def check(step: int) -> None:
        for name, mask in (pruner.masks or {}).items():
            weight = model.get_parameter(name)
            states = [s for s in bound.state[weight].values() if s.shape == weight.shape]
            assert states, "the optimizer keeps state by weight"
            for tensor in (weight.detach(), *states):
                assert not tensor.masked_fill(mask, 0).any()
        for name, mask in (during[-1] or {}).items():
            gradient = model.get_parameter(name).grad
            assert gradient is not None and not gradient.masked_fill(mask, 0).any()
        during.append(pruner.masks)

    train(model, pruner, bound, range(1, 13), after_step=check, **loop)
    pruner.finish()
    assert pruner.masks is not None
    assert pruner.masks.kept() == round(0.2 * pruner.masks.total)


def test_clipping_sees_the_gradients_of_kept_weights_only() -> None:
    model = small_cnn()
    pruner = prune(model, "magnitude", 0.9, 0)
    train(model, pruner, torch.optim.SGD(model.parameters(), lr=0.0), range(1, 2))
    assert pruner.masks is not None
    for name, mask in pruner.masks.items():
        gradient = model.get_parameter(name).grad
        assert gradient is not None and gradient.any()
        assert not gradient.masked_fill(mask, 0).any()


@settings(max_examples=10, deadline=None)
@given(
    widths=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    sparsity=st.floats(0.1, 0.8),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    seed=st.integers(0, 100),
)
def test_any_small_net_ends_exactly_at_its_target(
    widths: list[int], sparsity: float, optimizer: str, seed: int
) -> None:
    torch.manual_seed(seed)
    sizes = [192, *widths, 5]
    linear = [nn.Linear(i, o) for i, o in zip(sizes, sizes[1:], strict=False)]
    model = nn.Sequential(nn.Flatten(), *linear)
    pruner = prune(model, "gmp", sparsity, 6, optimizer=optimizer, seed=seed)
    assert pruner.masks is not None
    assert pruner.masks.kept() == round(pruner.masks.total * (1 - sparsity))
    assert min(pruner.masks.counts().values()) >= 1


class Drifting(torch.optim.SGD):
    """An optimizer that moves weights without a gradient, and has a buffer of its own."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["noise"] = torch.randn_like(p)
                p.data.add_(self.state[p]["noise"], alpha=1e-3)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_unknown_optimizer_is_enforced_after_every_step(wrapped: bool) -> None:
    model = small_cnn()
    masks = prune(model, "magnitude", 0.8, 0).masks
    assert masks is not None
    optimizer = Drifting(model.parameters(), lr=0.01, momentum=0.9)
    Accelerator(cpu=True)
    bound = AcceleratedOptimizer(optimizer) if wrapped else optimizer
    for keeper in (FixedMask(model, masks), make_pruner(model, "dense", 0.0, 3, masks=masks)):
        keeper.bind(bound)
        keeper.start()
        train(model, keeper, optimizer, range(1, 4))
        for name, mask in masks.items():
            weight = model.get_parameter(name)
            for tensor in (weight.detach(), *optimizer.state[weight].values()):
                assert not tensor.masked_fill(mask, 0).any()


def test_which_optimizers_keep_zeros_of_themselves() -> None:
    Accelerator(cpu=True)
    weights = [nn.Parameter(torch.ones(2))]
    assert all(keeps_zeros(make(weights)) for make in OPTIMIZERS.values())
    assert keeps_zeros(AcceleratedOptimizer(torch.optim.AdamW(weights)))
    assert not keeps_zeros(torch.optim.Adam(weights, eps=0.0))
    assert not keeps_zeros(Drifting(weights, lr=0.1))
    assert not keeps_zeros(None)


def fine_tune(model: nn.Module, held: FixedMask | None, optimizer: str = "sgd") -> None:
    bound = OPTIMIZERS[optimizer](model.parameters())
    if held is not None:
        held.bind(bound)
        held.start()
    train(model, held, bound, range(1, 6))
    if held is not None:
        held.finish()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fixed_mask_is_held_through_fine_tuning(optimizer: str) -> None:
    model = small_cnn()
    masks = prune(model, "magnitude", 0.7, 0).masks
    assert masks is not None
    digest = masks.digest()
    before = copy_of(model)
    held = FixedMask(model, masks)
    fine_tune(model, held, optimizer)
    assert held.summary()["digest"] == digest
    assert held.summary()["measured_sparsity"] == masks.sparsity()
    for name, mask in masks.items():
        weight = model.get_parameter(name).detach()
        assert torch.equal(weight != 0, mask)
        assert not torch.equal(weight, before[name])


def test_a_fixed_mask_of_nothing_changes_no_bit() -> None:
    plain, none, ones = small_cnn(), small_cnn(), small_cnn()
    fine_tune(plain, None)
    fine_tune(none, FixedMask(none, None))
    fine_tune(ones, FixedMask(ones, Masks.ones(prunable(ones))))
    assert same(copy_of(plain), copy_of(none)) and same(copy_of(plain), copy_of(ones))


def test_masks_that_do_not_fit_are_refused() -> None:
    model = small_cnn()
    with pytest.raises(UserError, match="do not fit the model at 3.weight"):
        FixedMask(model, Masks({"3.weight": torch.ones(2, dtype=torch.bool)}))
    with pytest.raises(UserError, match="do not fit the model at x, 0.weight, 3.weight and 1 more"):
        make_pruner(model, "gmp", 0.5, 20, masks=Masks({"x": torch.ones(2, dtype=torch.bool)}))


def test_pruning_goes_on_from_a_sparse_model() -> None:
    model = small_cnn()
    first = prune(model, "magnitude", 0.5, 0).masks
    assert first is not None
    pruner = make_pruner(model, "gmp", 0.8, 20, masks=first)
    steps: list[float] = []
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    assert pruner.masks is not None and pruner.masks.digest() == first.digest()
    train(
        model,
        pruner,
        bound,
        range(1, 21),
        after_step=lambda step: steps.append(pruner.masks.sparsity()),  # type: ignore[union-attr]
    )
    pruner.finish()
    assert steps == sorted(steps) and steps[0] == pytest.approx(0.5, abs=1e-3)
    assert steps[-1] == pytest.approx(0.8, abs=1e-3)
    assert all(bool((first[n] | ~m).all()) for n, m in pruner.masks.items())
    with pytest.raises(UserError, match="already 0.5000 sparse"):
        make_pruner(small_cnn(), "gmp", 0.4, 20, masks=first)


def test_the_dense_method_holds_a_mask_it_is_given() -> None:
    model = small_cnn()
    masks = prune(model, "magnitude", 0.5, 0).masks
    pruner = prune(model, "dense", 0.0, 5, masks=masks)
    assert masks is not None and pruner.summary()["digest"] == masks.digest()


def test_the_resume_state_survives_a_safetensors_file(tmp_path: Path) -> None:
    model = small_cnn()
    pruner = make_pruner(model, "gmp", 0.8, 20)
    bound = OPTIMIZERS["adam"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 9))
    save_file(pruner.state_dict(), tmp_path / "pruner.safetensors")
    again = make_pruner(model, "gmp", 0.8, 20)
    again.load_state_dict(load_file(tmp_path / "pruner.safetensors"))
    again.start()  # has had its start: nothing may happen
    assert again.summary() == pruner.summary()
    other = make_pruner(nn.Sequential(nn.Linear(300, 5)), "gmp", 0.8, 20)
    with pytest.raises(UserError, match="belongs to another model"):
        other.load_state_dict(pruner.state_dict())


def test_summary_can_be_read() -> None:
    summary = prune(small_cnn(), "gmp", 0.75, 10, updates=3).summary()
    total = 216 + 864 + 540
    assert summary["method"] == "gmp" and summary["options"]["updates"] == 3
    assert summary["prunable_weights"] == total
    assert summary["kept_weights"] == round(total * 0.25)
    assert summary["measured_sparsity"] == pytest.approx(0.75)
    assert summary["sparsity_of_all_parameters"] == pytest.approx(0.75 * total / (total + 53))
    assert summary["layers"]["3.weight"]["weights"] == 864
    assert [event["step"] for event in summary["events"]] == [3, 6, 8]
    assert summary["events"][-1] == {"step": 8, "epoch": 1.6, "kind": "prune", "sparsity": 0.75}


@pytest.mark.parametrize(
    ("method", "sparsity", "steps", "message"),
    [
        ("gmp", 1.0, 20, "outside"),
        ("gmp", -0.1, 20, "outside"),
        ("gmp", 90.0, 20, "Write 0.9 for 90 %"),
        ("dense", 0.5, 20, "'dense' cannot be given a sparsity"),
        ("magnitude", 0.999, 20, "would empty a layer"),
        ("gmp", 0.9, 0, "cannot run in 0 training steps"),
        ("fggp", 0.9, 1, "cannot run in 1 training steps"),
        ("acdc", 0.9, 10, "Train for at least 20 steps"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_step(
    method: str, sparsity: float, steps: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_pruner(small_cnn(), method, sparsity, steps)
    loaded = plugins.load("pruner", method)
    shapes = {name: tuple(layer.shape) for name, layer in prunable(small_cnn()).items()}
    with pytest.raises(UserError, match=message):
        events_of(loaded(loaded.Options()), sparsity=sparsity, shapes=shapes, total_steps=steps)


def test_a_missing_gradient_is_named() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "fggp", 0.5, 20, start=0.0, updates=20)
    model.get_parameter("3.weight").requires_grad_(False)
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    with pytest.raises(UserError, match="needs the gradient of '3.weight'"):
        train(model, pruner, bound, range(1, 21))


def test_a_diverged_training_is_the_user_s_to_mend() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "gmp", 0.5, 20)
    bound = torch.optim.SGD(model.parameters(), lr=1e30)
    pruner.bind(bound)
    pruner.start()
    with pytest.raises(UserError, match="diverged"):
        train(model, pruner, bound, range(1, 21))


class Swap(AbstractMethod[Frozen]):
    """An event that takes the optimizer's place, drops half and regrows what was pruned."""

    name, version, Options = "swap", 1, Frozen

    def schedule(self, target: Target) -> dict[int, Event]:
        def start(scene: Scene) -> Masks:
            return remove(scene.masks, [Stage(magnitude(scene.weights))], target.sparsity, "global")

        def invert(scene: Scene) -> Masks:
            return Masks({name: ~mask for name, mask in scene.masks.items()})

        return {
            0: Event("prune", target.sparsity, start),
            3: Event("regrow", target.sparsity, invert, skips_optimizer=True),
        }


def test_regrown_weights_start_at_zero_and_an_event_may_skip_the_optimizer() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    layers = prunable(model)
    pruner = Pruner(
        model,
        method=Swap(Frozen()),
        sparsity=0.5,
        layers=layers,
        total_steps=4,
        steps_per_epoch=1,
        seed=0,
    )
    bound = OPTIMIZERS["adam"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    dropped = pruner.masks
    train(model, pruner, bound, range(1, 3))
    bias = model.get_parameter("1.bias").detach().clone()
    train(model, pruner, bound, range(3, 4))
    assert pruner.skips_optimizer(3) and not pruner.skips_optimizer(2)
    assert torch.equal(model.get_parameter("1.bias"), bias)
    weight = model.get_parameter("1.weight")
    assert not weight.any() and not bound.state[weight]["exp_avg"].any()
    train(model, pruner, bound, range(4, 5))
    pruner.finish()
    assert dropped is not None and pruner.masks is not None
    assert torch.equal(weight != 0, ~dropped["1.weight"])


class Looking(AbstractMethod[Frozen]):
    """Prunes at once, then keeps what an event at step 1 is shown."""

    name, version, Options = "looking", 1, Frozen

    def schedule(self, target: Target) -> dict[int, Event]:
        def start(scene: Scene) -> Masks:
            return remove(scene.masks, [Stage(magnitude(scene.weights))], target.sparsity, "global")

        def look(scene: Scene) -> Masks:
            self.seen = scene
            return scene.masks

        needs: frozenset[Need] = frozenset({"gradients", "forward_weights"})
        return {
            0: Event("prune", target.sparsity, start),
            1: Event("look", target.sparsity, look, needs=needs),
        }


def test_an_event_sees_dense_unclipped_gradients_and_the_weights_that_gave_them() -> None:
    model, method = small_cnn(), Looking(Frozen())
    pruner = Pruner(
        model,
        method=method,
        sparsity=0.8,
        layers=prunable(model),
        total_steps=1,
        steps_per_epoch=1,
        seed=0,
    )
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    reference = copy.deepcopy(model)
    train(reference, None, torch.optim.SGD(reference.parameters(), lr=0.0), range(1, 2))
    train(model, pruner, bound, range(1, 2), clip=1e-3)
    assert pruner.masks is not None
    for name, mask in pruner.masks.items():
        expected = reference.get_parameter(name)
        assert expected.grad is not None and expected.grad[~mask].any()
        assert torch.equal(method.seen.gradients[name], expected.grad)
        assert torch.equal(method.seen.forward_weights[name], expected)
        assert torch.equal(method.seen.weights[name], model.get_parameter(name))
        assert not torch.equal(method.seen.weights[name], expected)


class SoftThreshold(nn.Module):
    """w → sign(w) max(|w| - sigmoid(s), 0), the reparametrization of STR (arXiv 2002.03231)."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.tensor(-3.0))

    def forward(self, weight: Tensor) -> Tensor:
        return weight.sign() * (weight.abs() - self.s.sigmoid()).relu()


class Relaxed(AbstractMethod[Frozen]):
    name, version, Options, has_target = "soft threshold", 1, Frozen, False

    def schedule(self, target: Target) -> dict[int, Event]:
        return {}

    def relax(self, layers: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Module]:
        return {name: SoftThreshold() for name in layers}

    def relaxed_options(self) -> Mapping[str, float]:
        return {"lr": 0.5, "weight_decay": 0.0}

    def penalty(self, relaxed: Mapping[str, nn.Module]) -> Tensor:
        return -0.01 * torch.stack([module.s for module in relaxed.values()]).sum()  # type: ignore[arg-type]


def relaxed_run(
    hook: Callable[[nn.Module, Pruner], None] = lambda model, pruner: None,
) -> tuple[nn.Module, Pruner]:
    model = small_cnn()
    layers = prunable(model, ["first_conv"])
    pruner = Pruner(
        model,
        method=Relaxed(Frozen()),
        sparsity=0.0,
        layers=layers,
        total_steps=8,
        steps_per_epoch=4,
        seed=0,
    )
    groups = pruner.parameter_groups()
    extra = {id(p) for group in groups for p in group["params"]}
    own = [p for p in model.parameters() if id(p) not in extra]
    bound = torch.optim.SGD([{"params": own}, *groups], lr=0.05, momentum=0.9, weight_decay=1e-2)
    assert bound.param_groups[1]["lr"] == 0.5 and len(bound.param_groups[1]["params"]) == 2
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 9))
    hook(model, pruner)
    pruner.finish()
    return model, pruner


def test_the_soft_threshold_itself_by_hand() -> None:
    soft = SoftThreshold()
    with torch.no_grad():
        soft.s.fill_(torch.logit(torch.tensor(0.75)).item())
    assert soft(torch.tensor([-2.0, 0.5, 1.0])).tolist() == pytest.approx([-1.25, 0.0, 0.25])


def test_a_relaxed_method_trains_and_leaves_plain_weights_and_a_mask() -> None:
    outputs: list[Tensor] = []
    images = torch.randn(3, 3, 8, 8)

    def look(model: nn.Module, pruner: Pruner) -> None:
        thresholds = pruner.parameter_groups()[0]["params"]
        assert all(s.item() > -3.0 for s in thresholds)  # the penalty pushed them up
        assert pruner.masks is None
        model.eval()
        outputs.append(model(images).detach())

    model, pruner = relaxed_run(look)
    assert list(copy_of(model)) == list(copy_of(small_cnn()))
    assert type(model[3]) is nn.Conv2d  # type: ignore[index]
    assert torch.equal(model(images), outputs[0])
    assert pruner.masks is not None and list(pruner.masks) == ["3.weight", "7.weight"]
    for name, mask in pruner.masks.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
        assert 0 < mask.float().mean() < 1
    summary = pruner.summary()
    assert summary["target_sparsity"] is None
    assert summary["measured_sparsity"] == pytest.approx(pruner.masks.sparsity())


def test_masks_travel_with_copies_of_the_model() -> None:
    model = small_cnn()
    pruner = make_pruner(model, "magnitude", 0.6, 3)
    pruner.start()
    model, pruner = copy.deepcopy((model, pruner))
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    train(model, pruner, bound, range(1, 4))
    pruner.finish()
    assert pruner.masks is not None
    assert all(torch.equal(model.get_parameter(n) != 0, m) for n, m in pruner.masks.items())


class Remembering(AbstractMethod[Frozen]):
    """Event 0 remembers the model, event 3 looks at images, event 5 rewinds and prunes."""

    name, version, Options, needs_images = "remembering", 1, Frozen, True

    def __init__(self, options: Frozen) -> None:
        super().__init__(options)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def schedule(self, target: Target) -> dict[int, Event]:
        def remember(scene: Scene) -> Change:
            return Change(scene.masks, memory=dict(scene.model.state_dict()))

        def look(scene: Scene) -> Masks:
            images, labels = scene.examples(0, 6)
            assert not scene.model.training and all(p.grad is None for p in parameters(scene))
            nn.functional.cross_entropy(scene.model(images), labels).backward()
            torch.rand(3)
            self.seen.append((images, labels))
            return scene.masks

        def rewind(scene: Scene) -> Change:
            masks = remove(
                scene.masks, [Stage(magnitude(scene.weights))], target.sparsity, "global"
            )
            return Change(masks, values=scene.memory)

        model = frozenset[Need]({"model"})
        return {
            0: Event("remember", 0.0, remember, needs=model),
            3: Event("look", 0.0, look, needs=model),
            5: Event("rewind", target.sparsity, rewind, resets_optimizer=True, rewinds_to=2),
        }


def parameters(scene: Scene) -> list[nn.Parameter]:
    return list(scene.model.parameters())


def remembering(model: nn.Module) -> Pruner:
    return Pruner(
        model,
        method=Remembering(Frozen()),
        sparsity=0.5,
        layers=prunable(model),
        total_steps=5,
        steps_per_epoch=5,
        seed=0,
        examples=lambda step, number, count: examples(step, number, count),
    )


@pytest.mark.parametrize("stop", [None, 1, 4])
def test_an_event_may_remember_look_at_images_and_rewind(stop: int | None) -> None:
    model = small_cnn()
    begun = copy_of(model)
    pruner = remembering(model)
    assert pruner.rewinds == {5: 2} and pruner.prunes == (5,)
    bound = OPTIMIZERS["nesterov"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, (stop or 5) + 1))
    if stop is not None:
        saved = copy.deepcopy((model.state_dict(), bound.state_dict(), pruner.state_dict()))
        model = small_cnn(seed=7)
        pruner = remembering(model)
        pruner.load_state_dict(saved[2])
        model.load_state_dict(saved[0])
        bound = OPTIMIZERS["nesterov"](model.parameters())
        bound.load_state_dict(saved[1])
        pruner.bind(bound)
        train(model, pruner, bound, range(stop + 1, 6))
    masks = pruner.masks
    assert masks is not None and masks.sparsity() == pytest.approx(0.5, abs=1e-3)
    for name, value in model.state_dict().items():
        expected = begun[name] * masks[name] if name in masks else begun[name]
        assert torch.equal(value, expected), name
    assert not any(v.any() for s in bound.state.values() for v in s.values() if v is not None)


def test_looking_at_images_disturbs_nothing() -> None:
    model = small_cnn()
    pruner = remembering(model)
    bound = OPTIMIZERS["sgd"](model.parameters())
    pruner.bind(bound)
    pruner.start()
    train(model, pruner, bound, range(1, 3))
    before, random_state = copy_of(model), torch.get_rng_state()
    model.train()
    images, labels = batch(3, 0, 8)
    nn.functional.cross_entropy(model(images), labels).backward()
    gradients = [p.grad for p in model.parameters()]
    held = [g.clone() for g in gradients if g is not None]
    pruner.after_step(3)
    seen = pruner._method.seen  # type: ignore[attr-defined]
    assert len(seen) == 1 and seen[0][0].shape == (6, 3, 8, 8)
    assert torch.equal(seen[0][0], examples(3, 0, 6)[0])
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(a is b for a, b in zip(gradients, (p.grad for p in model.parameters()), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(held, (g for g in gradients), strict=True))
    assert all(module.training for module in model.modules())
    after = copy_of(model)
    buffers = [name for name, _ in model.named_buffers()]
    assert same(
        {n: v for n, v in before.items() if n not in buffers},
        {n: v for n, v in after.items() if n not in buffers},
    )


def test_a_method_that_looks_at_images_is_refused_where_there_are_none() -> None:
    shapes = {name: tuple(layer.shape) for name, layer in prunable(small_cnn()).items()}
    with pytest.raises(UserError, match="needs training images"):
        events_of(
            Remembering(Frozen()), sparsity=0.5, shapes=shapes, total_steps=5, has_images=False
        )


class Shrinking(AbstractMethod[Frozen]):
    """Every step takes a hundredth of the learning rate off each weight's magnitude."""

    name, version, Options, has_target = "shrinking", 1, Frozen, False
    learns_mask, shrinks = True, True

    def schedule(self, target: Target) -> dict[int, Event]:
        return {}

    def shrink(self, weights: Mapping[str, Tensor], rate: float) -> None:
        for weight in weights.values():
            weight.copy_(weight.sign() * (weight.abs() - 0.01 * rate).relu())


def test_a_soft_method_shrinks_after_each_step_and_its_zeros_become_the_mask() -> None:
    weight, gradient = torch.tensor([[0.5, -0.0004, 0.002]]), torch.tensor([[1.0, 0.0, 0.0]])
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    pruner = Pruner(
        model,
        method=Shrinking(Frozen()),
        sparsity=0.0,
        layers=prunable(model, ["first_conv"]),
        total_steps=1,
        steps_per_epoch=1,
        seed=0,
    )
    bound = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner.bind(bound)
    pruner.start()
    model[0].weight.grad = gradient.clone()  # type: ignore[union-attr]
    pruner.after_backward(1)
    bound.step()
    pruner.after_step(1)
    assert model[0].weight.tolist()[0] == pytest.approx([0.399, 0.0, 0.001])
    assert pruner.masks is None
    pruner.finish()
    assert pruner.masks is not None and pruner.masks["0.weight"].tolist() == [[True, False, True]]
    assert pruner.summary()["measured_sparsity"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", ["rigl", "fggp", "granet", "l1", "group_lasso"])
def test_a_frozen_layer_is_refused_before_the_first_step(method: str) -> None:
    model = small_cnn()
    model.get_parameter("3.weight").requires_grad_(False)
    has_target = plugins.load("pruner", method).has_target
    with pytest.raises(UserError, match="gradient of '3.weight'"):
        make_pruner(model, method, 0.5 if has_target else 0.0, 40)
    make_pruner(model, "gmp", 0.5, 40)  # needs none

"""The driver: carries any pruning method, or a fixed mask, through the one training loop.

The loop calls, in this order: `parameter_groups` and `bind` around making the optimizer, `start`,
for each optimizer step `penalty`, `after_backward`, `skips_optimizer`, `after_step`, after each
epoch `end_epoch`, and `finish`. Everything else (when, which weights, what becomes of the optimizer
state) is the method's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sparse_transfer.config import Frozen
from sparse_transfer.devices import share_buffers
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import check_keep, keep_count
from sparse_transfer.pruning.masks import Masks, assert_zeros, enforce, keeps_zeros, mask_gradients
from sparse_transfer.pruning.method import AbstractMethod, Change, Event, Scene, Target
from sparse_transfer.pruning.structured.shrink import ShrinkPlan
from sparse_transfer.seeds import derive

logger = logging.getLogger(__name__)

# (step, number, count) → images and labels: what a run shows the events that ask for examples
StepExamples = Callable[[int, int, int], tuple[Tensor, Tensor]]
_Shapes = Mapping[str, tuple[int, ...]]


def events_of(
    method: AbstractMethod[Frozen],
    *,
    sparsity: float,
    shapes: _Shapes,
    total_steps: int,
    has_images: bool = True,
    active: int | None = None,
) -> dict[int, Event]:
    """The events of a run, or the reason why it cannot be done; nothing is run.

    Args:
        sparsity: target in [0, 1) over the prunable weights; 0 gives no events.
        shapes: shape of the weight, (out, in, *kernel), by prunable layer.
        has_images: whether there are training images to show to the method.
        active: weights that are left at the start; None for a dense model.

    Raises:
        UserError: sparsity outside [0, 1), a layer that would be empty, a schedule that does not
            fit into the training, a method without target asked for one, no images to look at.
    """
    if active is None:
        active = sum(torch.Size(shape).numel() for shape in shapes.values())
    return _events(method, sparsity, shapes, active, total_steps, has_images)


def averages(method: AbstractMethod[Frozen], events: Mapping[int, Event]) -> bool:
    """Whether an average of the weights over training is a network of the same zeros.

    Not where a method rewinds (it would mix trainings), nor where zeros come and go.
    """
    rewinds = any(event.rewinds_to is not None for event in events.values())
    return not rewinds and not method.shrinks


@final
class Pruner:
    """One method, pruning one model in one training.

    With sparsity 0 it does nothing at all: the run is bit-identical to plain training.

    Args:
        model: the plain, unwrapped module.
        method: an instance of a plugin's `Method`.
        sparsity: target share of zeros over `layers`, in [0, 1).
        layers: prunable weights by parameter name (`layers.prunable`).
        total_steps: optimizer steps of the whole training.
        steps_per_epoch: optimizer steps of one epoch; `summary` gives epochs beside steps.
        seed: of random choices, which are functions of seed and step.
        masks: of a model that is already sparse; pruning goes on from them.
        examples: training images for methods that look at some: (step, number, count) → images
            and labels on the model's device, a function of its arguments; None without images.
        image_size: pixels of the square input, for methods that make one.

    Attributes:
        masks: the masks now; None as long as every weight trains.
        rewinds: step → the recipe's step that the learning-rate schedule goes on from after it.
        prunes: steps after which fewer weights are left than before.
        averages: whether an average of the weights over training is a network of the same zeros.
        last_cut: always None; tells the loop that no parameter was replaced by a smaller one.

    Raises:
        UserError: the target cannot be reached, see `events_of`.
    """

    masks: Masks | None

    def __init__(
        self,
        model: nn.Module,
        *,
        method: AbstractMethod[Frozen],
        sparsity: float,
        layers: Mapping[str, nn.Parameter],
        total_steps: int,
        steps_per_epoch: int,
        seed: int,
        masks: Masks | None = None,
        examples: StepExamples | None = None,
        image_size: int | None = None,
    ) -> None:
        self._model, self._method = model, method
        self._examples, self._image_size = examples, image_size
        self._sparsity, self._seed = sparsity, seed
        self._steps_per_epoch = steps_per_epoch
        self._shapes = {name: layer.shape for name, layer in layers.items()}
        self._weights = sum(shape.numel() for shape in self._shapes.values())
        _check_fit(masks, self._shapes)
        active = self._weights if masks is None else masks.kept()
        has_images = examples is not None
        self._events = _events(method, sparsity, self._shapes, active, total_steps, has_images)
        events = sorted(self._events.items())
        frozen = [name for name, layer in layers.items() if not layer.requires_grad]
        if frozen and (method.shrinks or any("gradients" in e.needs for _, e in events)):
            raise _frozen(method.name, frozen[0])
        self.rewinds = {t: e.rewinds_to for t, e in events if e.rewinds_to is not None}
        self.prunes = _pruning_steps(events, 1.0 - active / self._weights)
        self.last_cut: ShrinkPlan | None = None
        self.averages = averages(method, self._events)
        self._memory: dict[str, Tensor] = {}
        # With target 0 a method does nothing at all, its penalties and proximal steps included.
        self._works = bool(sparsity) or not method.has_target
        self._optimizer: torch.optim.Optimizer | None = None
        self._keeps_zeros = False
        self._captured: dict[str, dict[str, Tensor]] = {}
        self._step = -1  # before `start`
        self._relaxed = dict(method.relax(layers)) if self._works else {}
        for name, relaxation in self._relaxed.items():
            parametrize.register_parametrization(*self._place(name), relaxation)
        self._hold(masks)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of the parameters that a relaxed method adds; usually none.

        They are parameters of the model from now on: leave them out of the model's own groups.
        """
        extra = [p for relaxation in self._relaxed.values() for p in relaxation.parameters()]
        return [{"params": extra, **self._method.relaxed_options()}] if extra else []

    def penalty(self) -> Tensor | None:
        """A term to add to the loss of the last pass of a step, or None."""
        return self._method.penalty(self._relaxed) if self._relaxed else None

    def bind(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer whose state is masked; once, the model being on its device."""
        self._optimizer = optimizer
        self._keeps_zeros = keeps_zeros(optimizer)
        self._hold(self.masks)

    def start(self) -> None:
        """Run the events of step 0. A resumed run has had them, and nothing happens."""
        if self._step < 0:
            self._hold(self.masks)
            self._enforce()
            self._step = 0
            self._run_event(0)

    def after_backward(self, step: int) -> None:
        """Capture what the event of this step needs, then mask the gradients.

        Args:
            step: number of the optimizer step that follows, from 1; gradients are complete
                (accumulated, reduced) and not clipped yet.

        Raises:
            UserError: a needed gradient is missing.
        """
        event = self._events.get(step)
        if event is not None and "gradients" in event.needs:
            self._captured["gradients"] = self._gradients()
        if event is not None and "forward_weights" in event.needs:
            captured = {name: weight.detach().clone() for name, weight in self._layers().items()}
            self._captured["forward_weights"] = captured
        if self.masks is not None:
            mask_gradients(self.masks, self._model)

    def skips_optimizer(self, step: int) -> bool:
        """Whether the event of this step takes the place of the optimizer step."""
        return step in self._events and self._events[step].skips_optimizer

    def after_step(self, step: int) -> None:
        """Enforce the masks on weights and optimizer state, then run the event of this step."""
        assert step == self._step + 1, f"step {step} after step {self._step}"
        self._step = step
        if self._method.shrinks and self._works and not self.skips_optimizer(step):
            with torch.no_grad():
                self._method.shrink(self._layers(), self._rate())
        if not self._keeps_zeros:
            self._enforce()
        self._run_event(step)

    def end_epoch(self) -> None:
        """Verify that what is pruned is exactly zero."""
        if self.masks is not None:
            assert_zeros(self.masks, self._model)

    def finish(self) -> None:
        """Leave plain weights with exact zeros under their own names, and verify them.

        Relaxed modules are removed: the weights they gave stay, and what is zero is the mask.
        """
        left = [step for step in self._events if step > self._step]
        assert not left, f"finished at step {self._step} before the events at {left}"
        for name in self._relaxed:
            _make_plain(*self._place(name))
        if self._relaxed or (self._method.learns_mask and self._works):
            weights = {name: weight.detach() for name, weight in self._layers().items()}
            self._hold(self._method.final_masks(weights))
            self._enforce()
            self._relaxed = {}
        self.end_epoch()

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs: step, packed masks, memory. No random state exists."""
        packed = {} if self.masks is None else self.masks.pack()
        masks = {f"mask.{name}": bits for name, bits in packed.items()}
        memory = {f"memory.{name}": value for name, value in self._memory.items()}
        return {"step": torch.tensor(self._step), **masks, **memory}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            UserError: the state belongs to other layers.
        """
        packed, memory = _under(state, "mask."), _under(state, "memory.")
        device = next(self._model.parameters()).device
        self._memory = {name: value.to(device) for name, value in memory.items()}
        self._step = int(state["step"])
        self._hold(Masks.unpack(packed, self._shapes) if packed else None)

    def summary(self) -> dict[str, Any]:
        """What was done, ready for JSON; sparsities are shares of zeros in [0, 1]."""
        kept = self.masks.counts() if self.masks is not None else None
        parameters = sum(p.numel() for p in self._model.parameters())
        zeros = self._weights - (sum(kept.values()) if kept else self._weights)
        return {
            "method": self._method.name,
            "version": self._method.version,
            "options": self._method.options.model_dump(mode="json"),
            "target_sparsity": self._sparsity if self._method.has_target else None,
            "measured_sparsity": zeros / self._weights,
            "sparsity_of_all_parameters": zeros / parameters,
            "prunable_weights": self._weights,
            "kept_weights": self._weights - zeros,
            "layers": {
                name: {"weights": shape.numel(), "kept": kept[name] if kept else shape.numel()}
                for name, shape in self._shapes.items()
            },
            "events": [
                {
                    "step": step,
                    "epoch": step / self._steps_per_epoch if self._steps_per_epoch else 0.0,
                    "kind": event.kind,
                    "sparsity": event.sparsity,
                }
                for step, event in sorted(self._events.items())
                if step <= self._step
            ],
            "digest": self.masks.digest() if self.masks is not None else None,
            **self._method.facts(self._memory, self._weights),
        }

    def _run_event(self, step: int) -> None:
        event = self._events.get(step)
        if event is None:
            return
        layers = self._layers()
        scene = Scene(
            weights=layers,
            masks=self.masks or Masks.ones(layers),
            gradients=self._captured.pop("gradients", {}),
            forward_weights=self._captured.pop("forward_weights", {}),
            generator=torch.Generator().manual_seed(derive(self._seed, "mask", step)),
            memory=self._memory,
            model=self._model,
            examples=partial(self._examples or _no_examples, step),
            image_size=self._image_size,
        )
        if "model" in event.needs:
            share_buffers(self._model)  # every process must choose alike
            with _observed(self._model):
                chosen = event.choose(scene)
        else:
            with torch.no_grad():
                chosen = event.choose(scene)
        change = chosen if isinstance(chosen, Change) else Change(chosen)
        self._write(change.values)
        if change.memory is not None:
            self._memory = {name: v.detach().clone() for name, v in change.memory.items()}
        self._hold(change.masks)
        kept = self._weights if self.masks is None else self.masks.kept()
        expected = keep_count(self._weights, event.sparsity)
        assert kept == expected, f"step {step} kept {kept} weights, allocated {expected}"
        if event.resets_optimizer:
            self._reset_optimizer()
        self._enforce()
        logger.debug("step %d: %s to sparsity %.4f", step, event.kind, event.sparsity)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        if values:
            state = self._model.state_dict()
            for name, value in values.items():
                state[name].copy_(value)

    def _rate(self) -> float:
        """The learning rate of this step; 0 without an optimizer."""
        return float(self._optimizer.param_groups[0]["lr"]) if self._optimizer is not None else 0.0

    def _enforce(self) -> None:
        if self.masks is not None:
            enforce(self.masks, self._model, self._optimizer)

    def _reset_optimizer(self) -> None:
        """Zero every state tensor of every parameter, step counts too, as if training began."""
        if self._optimizer is not None:
            for state in self._optimizer.state.values():
                for value in state.values():
                    if torch.is_tensor(value):
                        value.zero_()

    def _hold(self, masks: Masks | None) -> None:
        """Set the masks, beside their weights; all ones is no mask and costs nothing."""
        if masks is None or masks.kept() == masks.total:
            self.masks = None
        else:
            self.masks = masks.laid_out(self._layers())

    def _layers(self) -> dict[str, Tensor]:
        """The prunable weights as the network uses them: parameters, or what was made of them."""
        places = {name: self._place(name) for name in self._shapes}
        return {name: getattr(module, tensor) for name, (module, tensor) in places.items()}

    def _gradients(self) -> dict[str, Tensor]:
        gradients = {}
        for name, weight in self._layers().items():
            if weight.grad is None:
                raise _frozen(self._method.name, name)
            gradients[name] = weight.grad.detach().clone()
        return gradients

    def _place(self, name: str) -> tuple[nn.Module, str]:
        """The module that holds a parameter, and the parameter's name inside it."""
        path, _, tensor = name.rpartition(".")
        return self._model.get_submodule(path), tensor


@final
class FixedMask:
    """Holds the given masks through a training without changing them; `None` does nothing.

    The interface of `Pruner`, for fine-tuning a sparse model.

    Raises:
        UserError: a mask has no parameter of its name and shape.
    """

    masks: Masks | None

    def __init__(self, model: nn.Module, masks: Masks | None) -> None:
        self.rewinds: dict[int, int] = {}
        self.prunes: tuple[int, ...] = ()
        self.averages = True
        self.last_cut: ShrinkPlan | None = None
        self._model, self.masks = model, masks
        self._optimizer: torch.optim.Optimizer | None = None
        self._keeps_zeros = False
        self._is_held = masks is not None and masks.kept() < masks.total
        if masks is not None:
            shapes = {name: p.shape for name, p in model.named_parameters() if name in masks}
            _check_fit(masks, shapes)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """None."""
        return []

    def penalty(self) -> Tensor | None:
        """None."""
        return None

    def bind(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer whose state is masked; once, the model being on its device."""
        self._optimizer = optimizer
        self._keeps_zeros = keeps_zeros(optimizer)
        self._bring()

    def start(self) -> None:
        """Enforce the masks before the first step."""
        self._bring()
        self._enforce()

    def after_backward(self, step: int) -> None:
        """Mask the gradients."""
        if self.masks is not None and self._is_held:
            mask_gradients(self.masks, self._model)

    def skips_optimizer(self, step: int) -> bool:
        """Never."""
        return False

    def after_step(self, step: int) -> None:
        """Enforce the masks on weights and optimizer state."""
        if not self._keeps_zeros:
            self._enforce()

    def end_epoch(self) -> None:
        """Verify that what is pruned is exactly zero."""
        if self.masks is not None:
            assert_zeros(self.masks, self._model)

    def finish(self) -> None:
        """Verify the zeros a last time."""
        self.end_epoch()

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: the masks come from the checkpoint that is fine-tuned."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""

    def summary(self) -> dict[str, Any]:
        """Measured sparsity and digest, ready for JSON."""
        return {
            "method": "fixed mask",
            "measured_sparsity": self.masks.sparsity() if self.masks is not None else 0.0,
            "digest": self.masks.digest() if self.masks is not None else None,
        }

    def _enforce(self) -> None:
        if self.masks is not None and self._is_held:
            enforce(self.masks, self._model, self._optimizer)

    def _bring(self) -> None:
        """Have the masks where the weights are."""
        if self.masks is not None:
            weights = {name: self._model.get_parameter(name) for name in self.masks}
            self.masks = self.masks.laid_out(weights)


def _make_plain(module: nn.Module, tensor: str) -> None:
    """Remove a parametrization, leaving its value, in the original order of parameters."""
    later = [name for name, _ in module.named_parameters(recurse=False)]
    parametrize.remove_parametrizations(module, tensor)
    for name in later:  # removal registered the tensor last; it was first, as in every layer here
        parameter = module.get_parameter(name)
        delattr(module, name)
        module.register_parameter(name, parameter)


@contextlib.contextmanager
def _observed(model: nn.Module) -> Iterator[None]:
    """Eval mode for everything inside; modes, gradients and random state are put back after."""
    training = [module for module in model.modules() if module.training]
    gradients = {p: p.grad for p in model.parameters()}
    model.eval()
    model.zero_grad(set_to_none=True)
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
        for module in training:
            module.training = True


def _frozen(method: str, layer: str) -> UserError:
    return UserError(
        f"{method} needs the gradient of '{layer}', which has none.",
        "The layer is frozen or takes no part in the output.",
        "Add it to `keep_dense`, or use a method without gradients, such as gmp.",
    )


def _no_examples(step: int, number: int, count: int) -> tuple[Tensor, Tensor]:
    raise AssertionError("a method that looks at images must say so: needs_images = True")


def _pruning_steps(events: list[tuple[int, Event]], sparsity: float) -> tuple[int, ...]:
    """Steps of events after which fewer weights are left than before."""
    steps = []
    for step, event in events:
        if event.sparsity > sparsity:
            steps.append(step)
        sparsity = event.sparsity
    return tuple(steps)


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)}


def _events(
    method: AbstractMethod[Frozen],
    sparsity: float,
    shapes: _Shapes,
    active: int,
    total_steps: int,
    has_images: bool,
) -> dict[int, Event]:
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    if not 0.0 <= sparsity < 1.0:
        raise UserError(
            f"Sparsity {sparsity:g} is outside [0, 1).",
            "Sparsity is the share of zeros: 0.9 keeps one weight in ten.",
            f"Write {sparsity / 100:g} for {sparsity:g} %." if 1 < sparsity < 100 else "",
        )
    if not method.has_target:
        if sparsity:
            raise UserError(
                f"'{method.name}' cannot be given a sparsity (asked for {sparsity:g}).",
                "It has no target.",
                "Leave the sparsity out, or choose a method that has one, such as gmp.",
            )
        if type(method).relax is not AbstractMethod.relax and active < total:
            raise UserError(
                f"'{method.name}' cannot go on from a model that is sparse already.",
                f"It learns which weights are zero; the model's mask leaves out "
                f"{1 - active / total:.4f} of them.",
                "Start from the dense model, or prune on with gmp.",
            )
        if method.learns_mask and not total_steps:
            raise UserError(
                f"'{method.name}' learns its zeros, and there is no training.",
                "The recipe has no steps.",
                "Choose a recipe that trains, or a method that prunes at once, such as magnitude.",
            )
    elif keep_count(total, sparsity) > active:
        raise UserError(
            f"Sparsity {sparsity:g} cannot be reached by pruning.",
            f"The model is already {1 - active / total:.4f} sparse.",
            "Ask for more, or start from a denser checkpoint.",
        )
    elif not sparsity:
        return {}
    if method.needs_images and not has_images:
        raise UserError(
            f"'{method.name}' needs training images, and there are none.",
            "It looks at examples when it prunes, and the upstream model has no task.",
            "Name one in `upstream.task`, or use a method without data, such as magnitude.",
        )
    check_keep(total, len(shapes), sparsity)
    target = Target(sparsity, active, {n: tuple(s) for n, s in shapes.items()}, total_steps)
    events = method.schedule(target)
    assert all(0 <= step <= total_steps for step in events), "an event outside the training"
    return events


def _check_fit(masks: Masks | None, shapes: Mapping[str, torch.Size]) -> None:
    if masks is None:
        return
    wrong = [name for name, mask in masks.items() if shapes.get(name) != mask.shape]
    wrong += [name for name in shapes if name not in masks]
    if wrong:
        raise UserError(
            f"The masks do not fit the model at {', '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} more." if len(wrong) > 3 else "."),
            "A mask needs a prunable weight of the same name and shape, and every one a mask.",
            "Use the architecture and the `keep_dense` that the masks were made with.",
        )

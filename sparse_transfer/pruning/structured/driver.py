"""The driver of structured pruning: removes channels, physically, in the one training loop.

The interface is that of `pruning.driver.Pruner`. `sparsity` is the share of the model's
multiply-accumulates (MACs of one image, as `cost.macs` counts them) to remove: 0.75 leaves a
quarter. At an event so many channels go as bring the MACs to the event's milestone, so the
step size is measured in what the target is measured in; a count of channels would miss it, because
channels differ in cost. Whatever is left over is made up for at the next event, and at the last
one the target is reached. Parameters are replaced by smaller ones, optimizer state is cut with the
same indices, and the training goes on.
"""

from __future__ import annotations

import copy
import logging
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_transfer.config import Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.masks import Masks, diverged
from sparse_transfer.pruning.structured.graph import (
    Alive,
    ChannelGraph,
    macs_of,
    nothing_left,
    trace,
)
from sparse_transfer.pruning.structured.importance import Slice, fan, read, score
from sparse_transfer.pruning.structured.method import AbstractStructuredMethod, Layer
from sparse_transfer.pruning.structured.shrink import ShrinkPlan
from sparse_transfer.seeds import derive

logger = logging.getLogger(__name__)

Method = AbstractStructuredMethod[Frozen]
Examples = Callable[[int, int, int], tuple[Tensor, Tensor]]
CALIBRATION = 256  # images on which a step is trusted or not


def check_structured(
    method: Method,
    *,
    sparsity: float,
    model: nn.Module,
    keep_dense: Sequence[str],
    image_size: int,
    total_steps: int,
    has_images: bool,
    learning_rate: Callable[[int], float] | None = None,
    traced: Callable[[], ChannelGraph] | None = None,
) -> None:
    """Refuse a run that cannot be done; nothing is trained, and `model` is left as it is.

    Args:
        model: of the architecture, on any device, also on `meta`.
        has_images: whether there will be training images.
        learning_rate: as for the pruner; a constant stands for one that is not known yet.
        traced: gives the graph of this model, size and `keep_dense`, where it is known already.

    Raises:
        UserError: the model cannot be traced or has no group to shrink, the target is outside
            [0, 1) or out of reach, the schedule does not fit, images or gradients are missing.
    """
    rate = learning_rate if learning_rate is not None or not total_steps else lambda step: 1.0
    found = traced or partial(trace, model, image_size=image_size, keep_dense=keep_dense)
    _prepare(method, sparsity, found, total_steps, has_images, rate)


def check_unmasked(name: str, has_mask: bool) -> None:
    """Refuse to remove channels from a model that holds a mask.

    Raises:
        UserError: it does.
    """
    if has_mask:
        raise UserError(
            f"'{name}' cannot prune channels of a model that has a mask.",
            "The mask belongs to weights of the sizes before.",
            "Start from the dense checkpoint.",
        )


@final
class StructuredPruner:
    """One structured method, pruning one model in one training.

    With sparsity 0 it does nothing at all: the run is bit-identical to plain training.

    Args:
        model: the plain, unwrapped module.
        method: an instance of a structured plugin's `Method`.
        sparsity: target share of the model's MACs to remove, in [0, 1).
        keep_dense: layers whose output channels all stay, as in `layers.prunable`.
        image_size: pixels of the square input; MACs are counted there.
        total_steps: optimizer steps of the whole training.
        steps_per_epoch: optimizer steps of one epoch; `summary` gives epochs beside steps.
        seed: of random choices, which are functions of seed and step.
        examples: (step, number, count) → images (count, 3, h, w) and labels (count,), a function
            of its arguments; None where there are none.
        learning_rate: optimizer step (from 1) → the recipe's learning rate.

    Attributes:
        masks: always None; what is pruned is gone.
        rewinds: none.
        prunes: the steps of the events.
        last_cut: what was cut since the reader last set it to None, in the sizes before; brings an
            average of the weights, or anything else of their shapes, to the new ones (`cut`).

    Raises:
        UserError: as `check_structured`.
    """

    masks: Masks | None = None
    rewinds: dict[int, int]
    prunes: tuple[int, ...]
    last_cut: ShrinkPlan | None

    def __init__(
        self,
        model: nn.Module,
        *,
        method: Method,
        sparsity: float,
        keep_dense: Sequence[str],
        image_size: int,
        total_steps: int,
        steps_per_epoch: int,
        seed: int,
        examples: Examples | None,
        learning_rate: Callable[[int], float] | None = None,
    ) -> None:
        self._model, self._method = model, method
        self._sparsity, self._seed = sparsity, seed
        self._steps_per_epoch, self._examples = steps_per_epoch, examples
        graph, self._events = _prepare(
            method,
            sparsity,
            partial(trace, model, image_size=image_size, keep_dense=keep_dense),
            total_steps,
            examples is not None,
            learning_rate,
        )
        self._graph = graph
        self._macs_dense = macs_of(model, image_size) if graph is None else graph.macs_dense
        self._alive: Alive = {} if graph is None else graph.all_alive()
        self._parameters = sum(p.numel() for p in model.parameters())
        self._layers = {
            f"{path}.weight" if path else "weight": module.weight.numel()
            for path, module in model.named_modules()
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
        }
        self._optimizer: torch.optim.Optimizer | None = None
        self._slices: dict[str, list[Slice]] = {}  # of the live channels, beside the weights
        self._means: dict[str, Tensor] = {}  # running means of gradient scores
        self._largest: int | None = None  # what the range test found
        self._history: list[tuple[int, int, int]] = []  # step, channels removed, MACs left
        self._step = -1  # before `start`
        self.rewinds, self.prunes = {}, tuple(sorted(self._events))
        self.last_cut = None
        self.averages = True

    @property
    def shrinking(self) -> ShrinkPlan | None:
        """What was removed in all, in the sizes of the model at the start; None for nothing."""
        return (self._graph.plan(self._alive) or None) if self._graph is not None else None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """None."""
        return []

    def penalty(self) -> Tensor | None:
        """The method's term for the loss until the last event, or None."""
        if self._graph is None or self._step >= self.prunes[-1]:
            return None
        slices = (part for name in self._graph.groups for part in self._live(name))
        scales = {part.weight: None for part in slices if part.role == "scale"}
        return self._method.penalty([self._model.get_parameter(name) for name in scales])

    def bind(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer whose parameters and state shrink with the model; once."""
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper
        assert isinstance(inner, torch.optim.Optimizer)
        self._optimizer = inner

    def start(self) -> None:
        """Run the event of step 0. A resumed run has had it, and nothing happens."""
        if self._step < 0:
            self._step = 0
            self._run_event(0)

    def after_backward(self, step: int) -> None:
        """Score the channels from the gradients of this step, if the method looks at them.

        Args:
            step: number of the optimizer step that follows, from 1; gradients are complete
                (accumulated, reduced) and not clipped yet.

        Raises:
            UserError: a needed gradient is missing.
        """
        if self._graph is None or self._method.importance != "taylor" or step > self.prunes[-1]:
            return
        if not self._method.ema and step not in self._events:
            return
        weights = dict(self._model.named_parameters())
        gradients = {name: p.grad for name, p in weights.items() if p.grad is not None}
        for name in self._graph.groups:
            for part in read(self._method.importance, self._live(name)):
                if part.weight in gradients:
                    continue
                raise UserError(
                    f"{self._method.name} needs the gradient of '{part.weight}', which has none.",
                    "The layer is frozen or takes no part in the output.",
                    "Add it to `keep_dense`, or use `importance: l2`, which reads weights alone.",
                )
            now = self._score(name, weights, gradients)
            mean = self._means.get(name)
            self._means[name] = now if mean is None else mean.lerp(now, 1 - self._method.ema)

    def skips_optimizer(self, step: int) -> bool:
        """Never."""
        return False

    def after_step(self, step: int) -> None:
        """Run the event of this step; afterwards parameters may be new ones, see `last_cut`."""
        assert step == self._step + 1, f"step {step} after step {self._step}"
        self._step = step
        self._run_event(step)

    def end_epoch(self) -> None:
        """Nothing: what is removed cannot come back."""

    def finish(self) -> None:
        """Verify that the target is reached."""
        left = [step for step in self._events if step > self._step]
        assert not left, f"finished at step {self._step} before the events at {left}"
        if self._graph is not None:
            allowed = _allowed(self._macs_dense, self._sparsity)
            assert self._graph.macs(self._alive) <= allowed, "the last event missed the target"

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs: the step, the channels left, running means. Tensors only."""
        return {
            "step": torch.tensor(self._step),
            "largest": torch.tensor(-1 if self._largest is None else self._largest),
            "history": torch.tensor(self._history, dtype=torch.int64).reshape(-1, 3),
            **{f"alive.{name}": left for name, left in self._alive.items()},
            **{f"mean.{name}": mean for name, mean in self._means.items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state_dict` was taken, from the model as it was at the start.

        The model is shrunk to what was left, and with it the groups of the bound optimizer; the
        states of both fit afterwards.

        Raises:
            UserError: the state belongs to another model.
        """
        alive = {n.removeprefix("alive."): t for n, t in state.items() if n.startswith("alive.")}
        sizes = {name: left.shape for name, left in self._alive.items()}
        if {name: left.shape for name, left in alive.items()} != sizes:
            raise UserError(
                "The saved channels do not fit the model.",
                f"They are of {len(alive)} groups, the model has {len(sizes)}, or sizes differ.",
                "Resume with the architecture and the `keep_dense` of the interrupted run.",
            )
        self._step, largest = int(state["step"]), int(state["largest"])
        self._largest = None if largest < 0 else largest
        self._history = [(int(t), int(n), int(m)) for t, n, m in state["history"]]
        self._alive = {name: left.cpu() for name, left in alive.items()}
        self._slices = {}
        if self._graph is not None:
            self._graph.plan(self._alive).apply(self._model, self._optimizer)
        device = next(self._model.parameters()).device
        means = {n.removeprefix("mean."): m for n, m in state.items() if n.startswith("mean.")}
        self._means = {name: mean.to(device) for name, mean in means.items()}

    def summary(self) -> dict[str, Any]:
        """What was done, ready for JSON; sparsities are shares of MACs unless they say otherwise.

        `layers` and `kept_weights` count weights of convolutions and linear layers, `channels`
        those of each group: [left, before].
        """
        macs = self._graph.macs(self._alive) if self._graph is not None else self._macs_dense
        now = {name: self._model.get_parameter(name).numel() for name in self._layers}
        plan = self.shrinking
        parameters = sum(p.numel() for p in self._model.parameters())
        return {
            "method": self._method.name,
            "version": self._method.version,
            "options": self._method.options.model_dump(mode="json"),
            "target_sparsity": self._sparsity,
            "measured_sparsity": 1 - macs / self._macs_dense,
            "sparsity_of_all_parameters": 1 - parameters / self._parameters,
            "prunable_weights": sum(self._layers.values()),
            "kept_weights": sum(now.values()),
            "layers": {
                name: {"weights": before, "kept": now[name]}
                for name, before in self._layers.items()
            },
            "events": [
                {
                    "step": step,
                    "epoch": step / self._steps_per_epoch if self._steps_per_epoch else 0.0,
                    "kind": "remove",
                    "sparsity": 1 - left / self._macs_dense,
                    "channels": removed,
                    "macs": left,
                }
                for step, removed, left in self._history
            ],
            "digest": plan.digest() if plan is not None else None,
            "unit": "channels",
            "macs_dense": self._macs_dense,
            "macs": macs,
            "channels": {
                name: [int(left.sum()), left.numel()] for name, left in self._alive.items()
            },
        }

    def _run_event(self, step: int) -> None:
        if step not in self._events:
            return
        assert self._graph is not None
        last = step == self.prunes[-1]
        excess = self._macs_dense - _allowed(self._macs_dense, self._sparsity)
        goal = self._macs_dense - self._events[step] * excess
        alive = self._chosen(step, goal, last)
        removed = sum(int(self._alive[n].sum()) - int(left.sum()) for n, left in alive.items())
        self._history.append((step, removed, self._graph.macs(alive)))
        if removed:
            self._remove(alive)
        logger.debug("step %d: %d channels removed, %d MACs left", *self._history[-1])

    def _chosen(self, step: int, goal: float, last: bool) -> Alive:
        """What an event leaves: n channels go that bring the MACs to `goal`, and n - 1 do not."""
        assert self._graph is not None
        weights = dict(self._model.named_parameters())
        layers = [self._layer(name, weights) for name in self._graph.groups]
        room = [self._method.room(layer.live, layer.before, last) for layer in layers]
        generator = torch.Generator().manual_seed(derive(self._seed, "channels", step))
        rule = self._method.allocate(layers, room, generator)
        # of equal scores the last goes first
        orders = [layer.live - 1 - layer.scores.flip(0).argsort(stable=True) for layer in layers]

        def after(count: int) -> dict[str, Tensor]:
            alive = {name: left.clone() for name, left in self._alive.items()}
            for layer, order, number in zip(layers, orders, rule(count), strict=True):
                live = alive[layer.name].nonzero()[:, 0]
                alive[layer.name][live[order[:number]]] = False
            return alive

        graph, most = self._graph, sum(room)
        # Where not even `most` is enough, bisection ends there and the rest is deferred.
        count = bisect_left(range(most), True, key=lambda n: graph.macs(after(n)) <= goal)
        if not last and count and self._method.trust is not None:
            count = self._trusted(step, count, most, after)
        return self._agreed(after(count))

    def _trusted(self, step: int, count: int, most: int, after: Callable[[int], Alive]) -> int:
        """At most `count`, halved until the loss rises by no more than the trusted share."""
        assert self._examples is not None and self._method.trust is not None
        device = next(self._model.parameters()).device
        images, labels = (part.to(device) for part in self._examples(step, 0, CALIBRATION))
        limit = self._loss(self._alive, images, labels) * (1 + self._method.trust)

        def is_trusted(number: int) -> bool:
            return self._loss(after(number), images, labels) <= limit

        if self._method.range_test and self._largest is None:
            self._largest = 1
            while 2 * self._largest <= most and is_trusted(2 * self._largest):
                self._largest *= 2
        count = count if self._largest is None else min(count, self._largest)
        while count and not is_trusted(count):
            count //= 2
        return count

    @torch.no_grad()
    def _loss(self, alive: Alive, images: Tensor, labels: Tensor) -> float:
        """Cross-entropy of a copy with the channels gone; batch norm uses the batch's statistics.

        Its running ones were measured with the channels there, and are each process's own.
        """
        assert self._graph is not None
        trial = copy.deepcopy(self._model)
        self._graph.plan(alive, before=self._alive).apply(trial)
        trial.eval()
        for module in trial.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        return float(nn.functional.cross_entropy(trial(images).float(), labels))

    def _agreed(self, alive: Alive) -> Alive:
        """The choice of process 0: rounding must never make processes differ in shape."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return alive
        flat = torch.cat(list(alive.values())).to(next(self._model.parameters()).device)
        chosen = flat.to(torch.uint8)
        torch.distributed.broadcast(chosen, src=0)
        sizes = [left.numel() for left in alive.values()]
        return dict(zip(alive, chosen.bool().cpu().split(sizes), strict=True))

    def _remove(self, alive: Alive) -> None:
        assert self._graph is not None
        cut = self._graph.plan(alive, before=self._alive)
        cut.apply(self._model, self._optimizer)
        for name, mean in self._means.items():
            self._means[name] = mean[alive[name][self._alive[name]].to(mean.device)]
        self._alive, self._slices, self.last_cut = alive, {}, cut

    def _layer(self, name: str, weights: Mapping[str, Tensor]) -> Layer:
        scores = self._means[name] if name in self._means else self._score(name, weights, {})
        scores = scores.cpu()
        if not bool(torch.isfinite(scores).all()):
            raise diverged(name)
        shapes = {name: weight.shape for name, weight in weights.items()}
        slices = self._live(name)
        behind = fan(self._method.importance, slices, scores.numel(), shapes)
        return Layer(name, scores, self._alive[name].numel(), behind)

    def _score(
        self, name: str, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> Tensor:
        channels = int(self._alive[name].sum())
        return score(self._method.importance, self._live(name), channels, weights, gradients)

    def _live(self, name: str) -> list[Slice]:
        """Where the live channels of a group lie, on the device of the weights."""
        if name not in self._slices:
            assert self._graph is not None
            device = next(self._model.parameters()).device
            self._slices[name] = [
                Slice(s.weight, s.dim, s.role, s.channels.to(device), s.places.to(device))
                for s in self._graph.slices(name, self._alive)
            ]
        return self._slices[name]


def _allowed(macs: int, sparsity: float) -> float:
    """The most MACs that a sparsity leaves; exact shares are not missed by rounding."""
    return (1 - sparsity) * macs * (1 + 1e-12)


def _prepare(
    method: Method,
    sparsity: float,
    traced: Callable[[], ChannelGraph],
    total_steps: int,
    has_images: bool,
    learning_rate: Callable[[int], float] | None,
) -> tuple[ChannelGraph | None, dict[int, float]]:
    """The groups and the milestones of a run, or the reason why it cannot be done."""
    if not 0.0 <= sparsity < 1.0:
        raise UserError(
            f"Sparsity {sparsity:g} is outside [0, 1).",
            "For a structured method it is the share of the multiply-accumulates to remove: 0.75 "
            "leaves a quarter.",
            f"Write {sparsity / 100:g} for {sparsity:g} %." if 1 < sparsity < 100 else "",
        )
    if not sparsity:
        return None, {}
    events = method.milestones(total_steps, learning_rate)
    assert all(0 <= step <= total_steps for step in events), "an event outside the training"
    if method.importance == "taylor" and 0 in events:
        raise UserError(
            f"{method.name} cannot score channels at step 0 by `importance: taylor`.",
            "Before the first training step there is no gradient.",
            "Raise `start`, train for more steps, or use `importance: l2`.",
        )
    if method.needs_images and not has_images:
        raise UserError(
            f"{method.name} needs training images with these options.",
            "The run has none.",
            "Name a `task` for the pruning, or leave out `trust`.",
        )
    graph = traced()
    scorable = [
        name
        for name in graph.groups
        if read(method.importance, graph.slices(name, graph.all_alive()))
    ]
    graph = graph.only(scorable, f"it has nothing that `{method.importance}` reads")
    if not graph.groups:
        raise nothing_left(graph)
    smallest = {
        name: torch.arange(left.numel()) >= method.room(left.numel(), left.numel(), True)
        for name, left in graph.all_alive().items()
    }
    reached = graph.macs(smallest)
    if reached > _allowed(graph.macs_dense, sparsity):
        highest = int(1e4 * (1 - reached / graph.macs_dense)) / 1e4
        raise UserError(
            f"{method.name} cannot remove {sparsity:g} of this model's multiply-accumulates.",
            f"With {len(graph.groups)} groups of channels at their smallest {1 - highest:.4g} of "
            f"them are left; {len(graph.whole)} other groups stay whole.",
            f"The highest possible sparsity here is {highest:g}; lower `min_channels`, raise "
            "`max_share`, or take entries out of `keep_dense`.",
        )
    return graph, events

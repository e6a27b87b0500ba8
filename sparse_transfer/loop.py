"""The one training loop, used by pruning and by full fine-tuning, through Accelerate.

Everything random in it is a function of (run seed, epoch, example): data order, augmentation,
dropout. So no generator state is stored, and a run resumed at an epoch boundary is bit-identical
to one that was never interrupted (same threads, torch build and CPU).

With several processes each batch is cut by rank without padding and its loss weighted by count, so
the gradient is that of the whole batch.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from sparse_transfer import config, signals
from sparse_transfer.devices import all_agree, autocast, share_buffers
from sparse_transfer.distillation import Distillation
from sparse_transfer.errors import StopRequested, TrainingDiverged, UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.structured.shrink import ShrinkPlan
from sparse_transfer.resume import ResumeFile, Stateful
from sparse_transfer.seeds import derive

log = logging.getLogger(__name__)

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_FINITE_CHECK_EVERY = 50  # steps; asking a GPU for a number costs a synchronisation


class TrainingData(Protocol):
    """Images and labels of a training part."""

    labels: Tensor

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, epoch: int) -> Tensor:
        """(b, 3, h, w) float32, augmented as a function of (seed, epoch, example)."""
        ...


class MaskKeeper(Protocol):
    """What the loop asks of a pruner or of a fixed mask (`pruning/driver.py`)."""

    masks: Masks | None
    rewinds: dict[int, int]  # step → where the learning-rate schedule goes on from after it
    prunes: tuple[int, ...]  # steps after which fewer weights are left
    averages: bool  # whether an average of the weights over training makes sense
    last_cut: ShrinkPlan | None  # parameters were replaced by smaller ones; the loop sets it back

    def bind(self, optimizer: torch.optim.Optimizer) -> None: ...
    def parameter_groups(self) -> list[dict]: ...
    def penalty(self) -> Tensor | None: ...
    def start(self) -> None: ...
    def after_backward(self, step: int) -> None: ...
    def skips_optimizer(self, step: int) -> bool: ...
    def after_step(self, step: int) -> None: ...
    def end_epoch(self) -> None: ...
    def finish(self) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind beside the model.

    Attributes:
        losses: mean training loss of each epoch that this process ran.
        resumed_from: the epoch it was resumed at, or None.
        warnings: things the reader of a result should know.
    """

    losses: tuple[float, ...]
    resumed_from: int | None
    warnings: tuple[str, ...]


def epoch_batches(
    n: int, batch_size: int, seed: int, epoch: int, smallest: int = 2
) -> list[Tensor]:
    """The shuffled indices of one epoch, cut into batches.

    Every example occurs exactly once. A last batch of fewer than `smallest` examples is joined to
    the one before: batch normalisation cannot train on a single example.
    """
    generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
    batches = list(torch.randperm(n, generator=generator).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) < smallest:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def smallest_batch(model: nn.Module, world: int = 1, freeze_bn: bool = False) -> int:
    """The fewest examples that a batch may have, over all processes.

    Batch norm that trains needs two on every process; without it the batches, and so the weights,
    are the same for every number of processes.
    """
    trains_bn = not freeze_bn and any(isinstance(m, _BATCH_NORM) for m in model.modules())
    return 2 * world if trains_bn else 2


def steps_per_epoch(n: int, training: config.Training, smallest: int = 2) -> int:
    """Optimizer steps of one full epoch over `n` examples."""
    batches = math.ceil(n / training.batch_size)
    last = n % training.batch_size or training.batch_size
    if batches > 1 and last < smallest:
        batches -= 1
    return math.ceil(batches / training.accumulation)


def total_steps(n: int, training: config.Training, smallest: int = 2) -> int:
    """Optimizer steps of the whole training."""
    if training.steps is not None:
        return training.steps
    return (training.epochs or 0) * steps_per_epoch(n, training, smallest)


def learning_rate(step: float, total: int, per_epoch: int, training: config.Training) -> float:
    """The learning rate of optimizer step `step` (1 … total, or between them where squeezed).

    Linear warm-up to the peak over `warmup_steps`, then constant, along half a cosine or a line to
    `floor`, or in steps by `gamma` at the start of each epoch in `milestones`.
    """
    peak, schedule = training.optimizer.lr, training.schedule
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    done = (step - 1 - schedule.warmup_steps) / max(1, total - schedule.warmup_steps)
    if schedule.name == "cosine":
        above = 0.5 * (1 + math.cos(math.pi * done))
        return peak * (schedule.floor + (1 - schedule.floor) * above)
    if schedule.name == "linear":
        return peak * (schedule.floor + (1 - schedule.floor) * (1 - done))
    if schedule.name == "step":
        epoch = (step - 1) // per_epoch
        return peak * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    return peak


def schedule_position(step: int, total: int, restarts: Mapping[int, int]) -> float:
    """Where the recipe's schedule stands at a step: a step of the recipe, from 1.

    Without restarts that is the step itself. A restart takes the schedule back, and whatever lies
    between two restarts is the rest of the whole schedule, squeezed: warm-up and milestones too.

    Args:
        step: optimizer step, 1 … total.
        restarts: step → the recipe's step that the schedule goes on from after it.
    """
    begun = max((at for at in restarts if at < step), default=0)
    first = restarts.get(begun, 0)
    end = min((at for at in restarts if at >= step), default=total)
    return first + 1 + (step - 1 - begun) * (total - first) / (end - begun)


def check_schedule(training: config.Training, total: int) -> None:
    """Refuse a warm-up that the training is too short for.

    Raises:
        UserError: it does not end before the last of `total` steps.
    """
    warmup = training.schedule.warmup_steps
    if total and warmup >= total:
        raise UserError(
            f"A warm-up of {warmup} steps does not fit a training of {total} steps.",
            "The learning rate would never reach its peak.",
            "Lower schedule.warmup_steps, or train longer.",
        )


def check_average(training: config.Training, averages: bool) -> None:
    """Refuse an average of weights where it would be no sparse network.

    Args:
        averages: what the keeper says of its method.

    Raises:
        UserError: the training keeps an average and the method does not allow one.
    """
    if training.ema and not averages:
        raise UserError(
            "This method cannot be trained with `ema`.",
            "It rewinds, and the average would mix several trainings, or its zeros come and go, "
            "and an average of them is not zero.",
            "Set `ema: null` in the recipe, or choose another method, such as gmp.",
        )


def build_optimizer(
    model: nn.Module, settings: config.Optimizer, extra_groups: list[dict] | None = None
) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW over the trainable parameters.

    Unless `decay_norm_and_bias`, parameters of normalisation layers and all biases are not decayed.
    Layers are told by type, not by name (a BN inside `downsample` is a BN).
    """
    extra_groups = extra_groups or []
    extra = {id(p) for group in extra_groups for p in group["params"]}
    no_decay: set[int] = set()
    if not settings.decay_norm_and_bias:
        for module in model.modules():
            is_norm = isinstance(module, _NORMS) or type(module).__name__.endswith("Norm2d")
            for name, parameter in module.named_parameters(recurse=False):
                if is_norm or name == "bias":
                    no_decay.add(id(parameter))
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in extra]
    groups = [
        {"params": [p for p in trainable if id(p) not in no_decay]},
        {"params": [p for p in trainable if id(p) in no_decay], "weight_decay": 0.0},
        *extra_groups,
    ]
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["lr_scale"] = group.get("lr", settings.lr) / settings.lr
    decay = settings.weight_decay
    if settings.name == "sgd":
        nesterov = settings.nesterov and settings.momentum > 0
        return torch.optim.SGD(
            groups, settings.lr, settings.momentum, weight_decay=decay, nesterov=nesterov
        )
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(groups, settings.lr, weight_decay=decay)


def train(
    model: nn.Module,
    data: TrainingData,
    training: config.Training,
    *,
    keeper: MaskKeeper,
    seed: int,
    accelerator,  # noqa: ANN001 - accelerate.Accelerator; importing it costs two seconds
    resume: Path | None = None,
    facts: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    freeze_bn: bool = False,
    lr: float | None = None,
    distillation: Distillation | None = None,
    restart_on_prune: bool = False,
    lap: Callable[[str], None] = lambda part: None,
) -> Trained:
    """Train `model` in place; on return the keeper is finished and the model has plain weights.

    Args:
        model: the unwrapped module, on the accelerator's device.
        data: images on the CPU; each batch is moved.
        training: recipe or profile.
        keeper: enforces the mask (a `Pruner` or a `FixedMask`).
        seed: seed of order, augmentation and dropout.
        resume: folder of the resume file, written at every epoch end; removed by the caller on
            success. None trains without one.
        facts: saved in it.
        progress: called with (steps done, steps in all).
        freeze_bn: hold batch-norm statistics and affine parameters fixed.
        lr: replaces the optimizer's peak learning rate.
        distillation: a teacher whose loss takes the place of the plain one.
        restart_on_prune: the learning-rate schedule begins anew after each pruning event.
        lap: called with what has just been done, for time-keeping: "between" (whatever came before
            a step), "loading", "forward" (loss included), "backward", "update" (masks included).

    Raises:
        TrainingDiverged: the loss stopped being finite.
        StopRequested: SIGTERM or SIGUSR1 arrived; the resume file is that of the last epoch.
    """
    if lr is not None:
        training = training.model_copy(
            update={"optimizer": training.optimizer.model_copy(update={"lr": lr})}
        )
    world, rank = accelerator.num_processes, accelerator.process_index
    smallest = smallest_batch(model, world, freeze_bn)
    per_epoch = steps_per_epoch(len(data), training, smallest)
    total = total_steps(len(data), training, smallest)
    if freeze_bn:
        _freeze_bn(model)
    # Convolutions run up to twice as fast in this layout, on CPUs and GPUs alike.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    check_schedule(training, total)
    check_average(training, keeper.averages)
    restarts: dict[int, int] = {}
    if restart_on_prune:
        restarts = {at: training.schedule.warmup_steps for at in keeper.prunes if at < total}
    restarts |= keeper.rewinds
    optimizer = build_optimizer(model, training.optimizer, keeper.parameter_groups())
    keeper.bind(optimizer)
    average = _Average(model, training.ema) if training.ema else None
    parts: dict[str, Stateful] = {"keeper": keeper, "model": model}
    if average is not None:
        parts["average"] = average
    resume_file = ResumeFile(resume, parts, optimizer, facts) if resume else None
    position = resume_file.load() if resume_file else None
    if position is None:
        keeper.start()
        if average is not None:
            average.restart(model)  # an event before the first step may have moved weights
        keeper.last_cut = None  # nothing is wrapped yet
    first_epoch = position.epoch if position else 0
    step = position.step if position else 0
    wrapped = model
    if world > 1:
        wrapped = accelerator.prepare(model)
        accelerator.free_memory()  # it would keep every model that it ever prepared
    smooth = training.label_smoothing
    loss_function = nn.CrossEntropyLoss(label_smoothing=smooth, reduction="sum")
    losses: list[float] = []
    progress(step, total)
    epoch = first_epoch
    while step < total:
        torch.manual_seed(derive(seed, "dropout", epoch, rank))
        model.train()
        if freeze_bn:
            _freeze_bn(model)
        running, seen = torch.zeros((), device=accelerator.device), 0
        batches = epoch_batches(len(data), training.batch_size, seed, epoch, smallest)
        for group in _groups(batches, training.accumulation):
            if step >= total:
                break
            step += 1
            lap("between")
            position_now = schedule_position(step, total, restarts)
            rate = learning_rate(position_now, total, per_epoch, training)
            for parameter_group in optimizer.param_groups:
                parameter_group["lr"] = rate * parameter_group["lr_scale"]
            optimizer.zero_grad(set_to_none=True)
            examples = sum(len(batch) for batch in group)
            for number, batch in enumerate(group):
                # With more processes than examples one runs an example for the reduction alone.
                mine, weight = (batch[rank::world], 1) if rank < len(batch) else (batch[:1], 0)
                images = data.batch(mine, epoch).to(
                    accelerator.device, memory_format=torch.channels_last, non_blocking=True
                )
                labels = data.labels[mine].to(accelerator.device, non_blocking=True)
                last = number == len(group) - 1
                lap("loading")
                with _synchronised(wrapped, world > 1 and not last):
                    with autocast(training.precision):
                        logits = wrapped(images)
                    loss = loss_function(logits.float(), labels)
                    if distillation is not None:
                        with autocast(training.precision):
                            loss = distillation.loss(images, logits, loss)
                    loss = loss * (weight / examples)
                    running += loss.detach() * examples
                    penalty = keeper.penalty() if last else None
                    if penalty is not None:
                        loss = loss + penalty / world
                    lap("forward")
                    accelerator.backward(loss * world)  # DDP averages over processes
                    lap("backward")
            seen += examples
            keeper.after_backward(step)
            if training.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
            if not keeper.skips_optimizer(step):
                optimizer.step()
            keeper.after_step(step)
            cut, keeper.last_cut = keeper.last_cut, None
            if cut is not None:
                if average is not None:
                    average.shrink(cut)
                if world > 1:  # the old wrapper reduces the gradients of the old parameters
                    wrapped = accelerator.prepare(model)
                    accelerator.free_memory()
            if average is not None:
                average.update(model)
            lap("update")
            if step % _FINITE_CHECK_EVERY == 0:
                _check_finite(accelerator.reduce(running), step, total, training)
            progress(step, total)
            if not all_agree(not signals.received()):  # all stop after the same step
                raise StopRequested(signals.name())
        running = accelerator.reduce(running)
        _check_finite(running, step, total, training)
        losses.append(float(running) / max(1, seen))
        keeper.end_epoch()
        epoch += 1
        if resume_file is not None and step < total:
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                resume_file.save(epoch, step)
    if average is not None:
        average.copy_to(model)
        if keeper.masks is not None:  # an average of weights that were pruned late is not zero
            keeper.masks.apply(model.named_parameters())
    keeper.finish()
    optimizer.zero_grad(set_to_none=True)
    share_buffers(model)  # the model of process 0 is the one that is saved
    return Trained(
        tuple(losses),
        position.epoch if position else None,
        resume_file.warnings if resume_file else (),
    )


def _groups(batches: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    for start in range(0, len(batches), size):
        yield batches[start : start + size]


def _synchronised(wrapped: nn.Module, skip: bool) -> contextlib.AbstractContextManager:
    return wrapped.no_sync() if skip else contextlib.nullcontext()  # type: ignore[operator]


def _freeze_bn(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, _BATCH_NORM):
            module.eval()
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def _check_finite(running: Tensor, step: int, total: int, training: config.Training) -> None:
    if not torch.isfinite(running):
        raise TrainingDiverged(
            f"The training diverged by step {step} of {total}: the loss is not a finite number.",
            f"The peak learning rate is {training.optimizer.lr:g}.",
            "Lower the learning rate, add warm-up steps, or set clip_norm.",
        )


class _Average:
    """An exponential moving average of all floating-point weights and buffers."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def restart(self, model: nn.Module) -> None:
        """Forget everything but the values that the model has now."""
        self.values = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def shrink(self, cut: ShrinkPlan) -> None:
        """Go on as an average of what is left of each tensor."""
        self.values = {name: cut.cut(name, value) for name, value in self.values.items()}

    def update(self, model: nn.Module) -> None:
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - self.decay)
            else:
                self.values[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.values

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.values = {k: v.to(self.values[k].device, copy=True) for k, v in state.items()}

    def copy_to(self, model: nn.Module) -> None:
        """Put the average into the model."""
        model.load_state_dict(self.values)

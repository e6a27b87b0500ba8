"""What a pruning method is: a schedule of events, each of which chooses the next masks.

A method is a composition: its schedule says when, the `choose` function of an event puts criterion
stages and an allocation together, and the event says what it needs to see and what happens to the
optimizer. A method that regrows chooses masks with kept weights that the old ones lack; they start
at zero with zero optimizer state, because both were held at zero while they were pruned. A relaxed
method (a learned threshold, a gate) has no events: it trains through parametrizations instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.masks import Masks

Need = Literal["gradients", "forward_weights"]


@dataclass(frozen=True)
class Target:
    """What the schedule of a run is made from.

    Args:
        sparsity: wanted share of zeros over the prunable weights, in (0, 1).
        weights: number of prunable weights.
        active: how many of them are not pruned yet at the start.
        layers: number of prunable layers.
        total_steps: optimizer steps of the training.
    """

    sparsity: float
    weights: int
    active: int
    layers: int
    total_steps: int

    @property
    def sparsity_now(self) -> float:
        """Share of zeros at the start; gradual schedules go on from there."""
        return 1.0 - self.active / self.weights


@dataclass(frozen=True)
class Scene:
    """What an event may look at; tensors are by parameter name, in the weight's shape.

    Args:
        weights: the weights now, after the optimizer step.
        masks: the masks now (all ones in a dense model).
        gradients: dense gradients of the step (accumulated, unclipped), if the event needs them.
        forward_weights: the weights that produced those gradients, if the event needs them.
        generator: the source of random choices, a function of seed and step.
    """

    weights: Mapping[str, Tensor]
    masks: Masks
    gradients: Mapping[str, Tensor]
    forward_weights: Mapping[str, Tensor]
    generator: torch.Generator


@dataclass(frozen=True)
class Event:
    """One change of the masks, made after the optimizer step that it is scheduled at.

    Args:
        kind: what the summary calls it.
        sparsity: exact sparsity of the prunable weights after it.
        choose: makes the new masks; None means that all weights train.
        needs: what must be captured in the backward pass of that step.
        resets_optimizer: zero all optimizer state of all parameters.
        skips_optimizer: the masks change instead of an optimizer step, not after it.
    """

    kind: str
    sparsity: float
    choose: Callable[[Scene], Masks | None] = field(compare=False)
    needs: frozenset[Need] = frozenset()
    resets_optimizer: bool = False
    skips_optimizer: bool = False


O_co = TypeVar("O_co", bound=Frozen, covariant=True)


class AbstractMethod(ABC, Generic[O_co]):
    """Base of every `Method`; built as `Method(Method.Options(**options))`.

    Class attributes:
        name: the plugin's name.
        version: raised whenever the same options give other masks.
        has_target: whether a sparsity is asked for; False for dense and for learned sparsity.
        Options: the frozen model of the options.
        relaxed_options: optimizer options of the parameters that `relax` brings.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    has_target: ClassVar[bool] = True
    Options: ClassVar[type[Frozen]]
    relaxed_options: ClassVar[Mapping[str, float]] = {}

    def __init__(self, options: O_co) -> None:
        self.options = options

    @abstractmethod
    def schedule(self, target: Target) -> dict[int, Event]:
        """Events by step (0 = before training). Pure, so a resumed run repeats it.

        Raises:
            UserError: the target cannot be reached this way in this training.
        """

    def relax(self, layers: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Module]:
        """Parametrizations (weight in, weight out) by parameter name; none for hard masks."""
        return {}

    def penalty(self, relaxed: Mapping[str, nn.Module]) -> Tensor | None:
        """A term for the loss, computed from the modules that `relax` made."""
        return None

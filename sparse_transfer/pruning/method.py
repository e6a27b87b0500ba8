"""What a pruning method is: a schedule of events, each of which chooses the next masks.

A method is a composition: its schedule says when, the `choose` function of an event puts criterion
stages and an allocation together, and the event says what it needs to see and what happens to the
optimizer. A method that regrows chooses masks with kept weights that the old ones lack; they start
at zero with zero optimizer state, because both were held at zero while they were pruned, unless the
change gives them a value. A relaxed method (a learned threshold, a gate) has no events: it trains
through parametrizations; a soft one (a proximal penalty) changes the weights after every step. Both
learn their mask, which is read from the final weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.allocation import pattern_of
from sparse_transfer.pruning.masks import Masks

Need = Literal["gradients", "forward_weights", "model"]
# (number, count) → images (count, 3, h, w) and labels (count,), fewer where the data are fewer
Examples = Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Target:
    """What the schedule of a run is made from.

    Args:
        sparsity: wanted share of zeros over the prunable weights, in (0, 1).
        active: how many of them are not pruned yet at the start.
        shapes: the shapes of the prunable weights, (out, in, *kernel), by parameter name.
        total_steps: optimizer steps of the training.
    """

    sparsity: float
    active: int
    shapes: Mapping[str, tuple[int, ...]]
    total_steps: int

    @property
    def weights(self) -> int:
        """Number of prunable weights."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    @property
    def layers(self) -> int:
        """Number of prunable layers."""
        return len(self.shapes)

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
        memory: what the last change of this run remembered; empty at first.
        model: the network. An event that needs it runs with every module in eval mode, autograd
            on, gradients and random state put back afterwards, and leaves the weights alone.
        examples: training images and labels on the model's device, a function of seed and step;
            only for methods that need images.
        image_size: pixels of the square input; None where the driver was not told.
    """

    weights: Mapping[str, Tensor]
    masks: Masks
    gradients: Mapping[str, Tensor]
    forward_weights: Mapping[str, Tensor]
    generator: torch.Generator
    memory: Mapping[str, Tensor]
    model: nn.Module
    examples: Examples
    image_size: int | None


@dataclass(frozen=True)
class Change:
    """What an event does besides choosing masks.

    Args:
        masks: the new masks; None means that all weights train.
        values: new contents of parameters and buffers by their names in the state dict, written
            before the masks are enforced.
        memory: replaces what the run remembers (saved with it); None leaves that as it is.
    """

    masks: Masks | None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Event:
    """One change of the masks, made after the optimizer step that it is scheduled at.

    Args:
        kind: what the summary calls it.
        sparsity: exact sparsity of the prunable weights after it.
        choose: makes the new masks; None means that all weights train.
        needs: what must be captured in the backward pass of that step, or the whole model.
        resets_optimizer: zero all optimizer state of all parameters.
        skips_optimizer: the masks change instead of an optimizer step, not after it.
        rewinds_to: the learning-rate schedule goes on as after this step of the recipe, squeezed
            into what lies before the next rewinding; None: undisturbed.
    """

    kind: str
    sparsity: float
    choose: Callable[[Scene], Masks | Change | None] = field(compare=False)
    needs: frozenset[Need] = frozenset()
    resets_optimizer: bool = False
    skips_optimizer: bool = False
    rewinds_to: int | None = None


O_co = TypeVar("O_co", bound=Frozen, covariant=True)


class AbstractMethod(ABC, Generic[O_co]):
    """Base of every `Method`; built as `Method(Method.Options(**options))`.

    Class attributes:
        name: the plugin's name.
        version: raised whenever the same options give other masks.
        has_target: whether a sparsity is asked for; False for dense and for learned sparsity.
        learns_mask: the mask is `final_masks` of the trained weights, not the last event's.
        needs_images: it looks at training images beside those of the steps.
        shrinks: `shrink` is to be called after every optimizer step.
        removes_channels: False here; structured methods have another base.
        Options: the frozen model of the options.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    has_target: ClassVar[bool] = True
    learns_mask: ClassVar[bool] = False
    needs_images: ClassVar[bool] = False
    shrinks: ClassVar[bool] = False
    removes_channels: ClassVar[bool] = False
    Options: ClassVar[type[Frozen]]

    def __init__(self, options: O_co) -> None:
        self.options = options

    def natural_sparsity(self) -> float | None:
        """The only sparsity that the options allow, for N:M patterns; None where any will do."""
        values = self.options.model_dump()
        pattern = pattern_of(values.get("pattern") or values.get("allocation") or "global")
        return None if pattern is None else 1 - pattern[0] / pattern[1]

    @abstractmethod
    def schedule(self, target: Target) -> dict[int, Event]:
        """Events by step (0 = before training). Pure, so a resumed run repeats it.

        Raises:
            UserError: the target cannot be reached this way in this training.
        """

    def relax(self, layers: Mapping[str, nn.Parameter]) -> Mapping[str, nn.Module]:
        """Parametrizations (weight in, weight out) by parameter name; none for hard masks."""
        return {}

    def relaxed_options(self) -> Mapping[str, float]:
        """Optimizer options of the parameters that `relax` brings."""
        return {}

    def penalty(self, relaxed: Mapping[str, nn.Module]) -> Tensor | None:
        """A term for the loss of a step, from the modules that `relax` made."""
        return None

    def shrink(self, weights: Mapping[str, Tensor], rate: float) -> None:
        """Change the weights in place after an optimizer step of learning rate `rate`."""

    def facts(self, memory: Mapping[str, Tensor], weights: int) -> dict[str, float]:
        """Numbers for the summary, from what the run remembers of its `weights` weights."""
        return {}

    def final_masks(self, weights: Mapping[str, Tensor]) -> Masks:
        """The mask that a method which learns it, or a relaxed one, leaves: what is not zero."""
        return Masks({name: weight != 0 for name, weight in weights.items()})

"""What a structured pruning method is: milestones, an importance, and a budget for each layer.

The driver traces, scores, removes and verifies; a method answers five questions: when and how far
(`milestones`), by what importance (`importance`, `ema`), how many channels a layer can spare
(`room`), how many of n it gives (`allocate`), and what the loss pays meanwhile (`penalty`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.structured.importance import Importance

O_co = TypeVar("O_co", bound=Frozen, covariant=True)


@dataclass(frozen=True)
class Layer:
    """What an event sees of one group of coupled channels, here called a layer.

    Args:
        name: the group's first layer.
        scores: (live,) float32 on the CPU, higher = keep.
        before: channels before anything was removed.
        fan: weights behind the score of one channel, the mean over the group's tensors.
    """

    name: str
    scores: Tensor
    before: int
    fan: float

    @property
    def live(self) -> int:
        """Channels that are left."""
        return self.scores.numel()


class AbstractStructuredMethod(ABC, Generic[O_co]):
    """Base of every `Method` that removes channels; built as `Method(Method.Options(**options))`.

    Class attributes:
        name: the plugin's name.
        version: raised whenever the same options remove other channels.
        has_target: a structured method always has one, a share of MACs.
        removes_channels: True; methods that choose masks have another base.
        Options: the frozen model of the options.
        needs_images: whether events look at training images (ask an instance).
        ema: share of the old score in the running mean of gradient scores, in [0, 1).
        trust: share by which a step may raise the loss on those images; None for no limit.
        range_test: find the largest trusted number of channels before the first event.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    has_target: ClassVar[bool] = True
    removes_channels: ClassVar[bool] = True
    Options: ClassVar[type[Frozen]]
    needs_images: bool = False
    ema: float = 0.0
    trust: float | None = None
    range_test: bool = False

    def __init__(self, options: O_co) -> None:
        self.options = options

    def natural_sparsity(self) -> float | None:
        """None: any share of MACs may be asked for."""
        return None

    @property
    @abstractmethod
    def importance(self) -> Importance:
        """How a channel is scored."""

    @abstractmethod
    def milestones(
        self, total_steps: int, learning_rate: Callable[[int], float] | None
    ) -> dict[int, float]:
        """Step → share of the MAC reduction that must be reached there; the last is exactly 1.

        Pure, so a resumed run repeats it.

        Raises:
            UserError: the schedule does not fit into the training.
        """

    @abstractmethod
    def room(self, live: int, before: int, last: bool) -> int:
        """How many of its `live` channels a layer may lose at an event, at least 0.

        Args:
            before: channels at the start.
            last: whether this is the last event, which must reach the target.
        """

    @abstractmethod
    def allocate(
        self, layers: Sequence[Layer], room: Sequence[int], generator: torch.Generator
    ) -> Callable[[int], list[int]]:
        """The rule of one event: n in [0, sum(room)] → channels to take from each layer, sum n.

        Called once at an event; the rule is asked for several n.
        """

    def penalty(self, scales: Sequence[Tensor]) -> Tensor | None:
        """A term for the loss until the last event, from the batch-norm scales of all groups."""
        return None

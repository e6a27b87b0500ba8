"""Iterative magnitude pruning: train, prune a fraction, rewind to an early step, train again.

Each round removes the same fraction of the surviving weights by |w|, so that the density falls
geometrically, and puts every other parameter and buffer (batch norm included) back to what it was
at the rewinding step; the learning rate goes on from there and the optimizer starts empty. With
`rewinding: learning_rate` the weights stay and only the learning rate is rewound.

Family: train-prune-rewind (lottery tickets), magnitude, no regrowth.
Schedule: R rounds; the first training and the R others together are the recipe's total steps. Each
of them is the whole recipe, squeezed: learning rate, warm-up and milestones run through in all.
Cost: a mask multiplication per step; one copy of the model in memory.
Source: Frankle & Carbin 2018, arXiv 1803.03635; rewinding: Frankle et al. 2019, arXiv 1912.05671,
and Renda et al. 2020, arXiv 2003.02389.
Deviations: the total training is fixed and shared with the other methods, where the source trains
each round in full (give the recipe R + 1 times the steps for that); the fraction is adjusted so
that the last round ends exactly at the target; batches are not repeated after a rewind; the
optimizer starts empty instead of from its state at the rewinding step.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, final

from pydantic import Field

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import Allocation
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.method import AbstractMethod, Change, Event, Need, Scene, Target
from sparse_transfer.pruning.schedule import to_step

MODEL: frozenset[Need] = frozenset({"model"})


class ImpOptions(Frozen):
    """`rewind` is the rewinding step as a share of the first training; `fraction` goes per round
    unless `rounds` says how many there are."""

    fraction: float = Field(0.2, gt=0, lt=1)
    rounds: int | None = Field(None, ge=1)
    rewind: Fraction = 0.05
    rewinding: Literal["weights", "learning_rate"] = "weights"
    allocation: Allocation = "global"


@final
class Method(AbstractMethod[ImpOptions]):
    """One magnitude stage in a geometric schedule whose events rewind."""

    name = "imp"
    version = 1
    Options = ImpOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """An event that remembers the model, and one for each round."""
        options, total = self.options, target.total_steps
        sparsities = geometric(target, options.fraction, options.rounds)
        rounds = len(sparsities)
        length = total / (1 + rounds * (1 - options.rewind))
        rewind = to_step(options.rewind, math.floor(length))
        ends = [round(length + r * (total - length) / rounds) for r in range(rounds)]
        if length - rewind < 1 or ends[0] <= rewind or len({*ends, total}) <= rounds:
            raise UserError(
                f"imp cannot run in {total} training steps.",
                f"It trains {rounds + 1} times, with {rounds} rounds of pruning between.",
                f"Train for at least {2 * (rounds + 1)} steps, or ask for fewer `rounds`.",
            )
        remembers = options.rewinding == "weights"
        events, position = {}, round(rewind * total / ends[0])
        if remembers:
            events[rewind] = Event("remember", target.sparsity_now, remember, needs=MODEL)
        for end, sparsity in zip(ends, sparsities, strict=True):
            choose = partial(self._choose, sparsity=sparsity, rewinds=remembers)
            events[end] = Event(
                "prune and rewind", sparsity, choose, resets_optimizer=True, rewinds_to=position
            )
        return events

    def _choose(self, scene: Scene, *, sparsity: float, rewinds: bool) -> Change:
        stages = [Stage(magnitude(scene.weights))]
        masks = remove(scene.masks, stages, sparsity, self.options.allocation)
        return Change(masks, values=scene.memory if rewinds else {})


def remember(scene: Scene) -> Change:
    """Keep a copy of every parameter and buffer; the masks stay."""
    return Change(scene.masks, memory=scene.model.state_dict())


def geometric(target: Target, fraction: float, rounds: int | None) -> list[float]:
    """The sparsity after each round: densities fall by one factor, the last is the target.

    Args:
        target: where to begin and to end.
        fraction: wanted share of the survivors that a round removes.
        rounds: number of rounds; None takes as few as do not exceed `fraction`.
    """
    begun, wanted = 1.0 - target.sparsity_now, 1.0 - target.sparsity
    if rounds is None:
        rounds = max(1, math.ceil(math.log(wanted / begun) / math.log(1 - fraction) - 1e-9))
    inner = [1.0 - begun * (wanted / begun) ** (r / rounds) for r in range(1, rounds)]
    return [*inner, target.sparsity]

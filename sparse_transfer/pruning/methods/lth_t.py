"""LTH-T: find a mask in the pretrained weights by rounds of training, deliver mask × pretrained.

Like imp with rewinding to step 0, but nothing is trained after the last round: what is delivered is
the given weights under the mask, bit for bit, made for full fine-tuning. Its upstream accuracy and
its linear probes are poor by construction.

Family: train-prune-rewind (lottery tickets from pretraining), magnitude, no regrowth.
Schedule: R prunings, the first before training and the last after it, equally spaced.
Cost: a mask multiplication per step; one copy of the model in memory.
Source: Chen et al. 2020, arXiv 2012.06908: 20 % per round, 10 epochs each, convolutions only (name
what stays dense in the recipe's `keep_dense`).
Deviations: the fraction is adjusted so that the last round ends exactly at the target; the rounds
share the recipe's total steps.
"""

from __future__ import annotations

from functools import partial
from typing import final

from pydantic import Field

from sparse_transfer.config import Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import Allocation
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.method import AbstractMethod, Change, Event, Scene, Target
from sparse_transfer.pruning.methods.imp import MODEL, geometric


class LthTOptions(Frozen):
    """`fraction` of the survivors goes per round, unless `rounds` says how many there are."""

    fraction: float = Field(0.2, gt=0, lt=1)
    rounds: int | None = Field(None, ge=1)
    allocation: Allocation = "global"


@final
class Method(AbstractMethod[LthTOptions]):
    """imp's rounds, rewound to the given weights, the last one included."""

    name = "lth_t"
    version = 1
    Options = LthTOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """One event for each pruning, at 0, T / (R - 1), … T; without training only one."""
        sparsities = geometric(target, self.options.fraction, self.options.rounds)
        gaps, total = len(sparsities) - 1, target.total_steps
        if total < gaps:
            raise UserError(
                f"lth_t cannot run in {total} training steps.",
                f"It prunes in {gaps + 1} rounds, and trains between them.",
                f"Train for at least {gaps} steps, or set `rounds: 1` to prune at once.",
            )
        steps = [round(r * total / gaps) for r in range(gaps)] + [total] if gaps else [0]
        return {
            step: Event(
                "prune and rewind" if step else "prune",
                sparsity,
                partial(self._choose, sparsity=sparsity, is_first=not step),
                needs=MODEL,
                resets_optimizer=True,
                rewinds_to=0,
            )
            for step, sparsity in zip(steps, sparsities, strict=True)
        }

    def _choose(self, scene: Scene, *, sparsity: float, is_first: bool) -> Change:
        stages = [Stage(magnitude(scene.weights))]
        masks = remove(scene.masks, stages, sparsity, self.options.allocation)
        if is_first:
            return Change(masks, memory=scene.model.state_dict())
        return Change(masks, values=scene.memory)

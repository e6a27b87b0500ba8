"""AC/DC: training that alternates between compressed (one-shot magnitude) and dense phases.

Each compression applies the whole target at once; each decompression lets all weights train again
from where they are (removed ones from zero) and sets all optimizer state to zero. The last phase is
compressed. With `allocation: "2:4"` every compression is to that pattern.

Family: alternation of dense and sparse phases, magnitude; decompression regrows everything.
Schedule: `compress` and `decompress` name the fractions of training at which phases begin.
Cost: one ranking of the weights for each compression; dense phases train all weights.
Source: Peste et al. 2021, arXiv 2106.12379; the default phases are those of its 100 ImageNet
epochs as fractions: compress at .10, .20 … .70 and .85, decompress at .15, .25 … .65 and .75.
Deviations: phases begin at the nearest step, not at an epoch; the reset covers the step counts of
adaptive optimizers too, so that their bias correction starts anew.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import final

from pydantic import Field, model_validator

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.allocation import Allocation, check_allocation
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target
from sparse_transfer.pruning.schedule import to_step


class AcdcOptions(Frozen):
    """Fractions of training at which phases begin; `compress` and `decompress` alternate.

    `allocation`: one ranking over all layers by |w| (global) or by LAMP score (lamp), fixed shares
    by layer (uniform, erk), or an N:M pattern such as "2:4".
    """

    allocation: Allocation = "global"
    compress: tuple[Fraction, ...] = Field(
        (0.10, 0.20, 0.30, 0.40, 0.50, 0.60, 0.70, 0.85), min_length=1
    )
    decompress: tuple[Fraction, ...] = (0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75)

    @model_validator(mode="after")
    def _phases_alternate(self) -> AcdcOptions:
        starts = self.phases()
        kinds = [kind for _, kind in starts]
        if kinds != (["compress", "decompress"] * len(kinds))[: len(kinds)] or not len(kinds) % 2:
            raise ValueError("`compress` and `decompress` must alternate, compress first and last")
        if len({fraction for fraction, _ in starts}) < len(starts):
            raise ValueError("two phases begin at the same time")
        return self

    def phases(self) -> list[tuple[float, str]]:
        """(fraction of training, kind) in order of time."""
        compress = [(fraction, "compress") for fraction in self.compress]
        return sorted(compress + [(fraction, "decompress") for fraction in self.decompress])


@final
class Method(AbstractMethod[AcdcOptions]):
    """A cyclic schedule, one magnitude stage, regrowth of everything."""

    name = "acdc"
    version = 1
    Options = AcdcOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """One event for each phase."""
        check_allocation(self.options.allocation, target)
        phases = self.options.phases()

        def steps(total_steps: int) -> list[int]:
            return [to_step(fraction, total_steps) for fraction, _ in phases]

        if len(set(steps(target.total_steps))) < len(phases):
            gap = min(b - a for (a, _), (b, _) in pairwise(phases))
            enough = math.ceil(1 / gap - 1e-9)
            raise UserError(
                f"acdc cannot run in {target.total_steps} training steps.",
                f"Two of its {len(phases)} phases would begin at the same step.",
                f"Train for at least {enough} steps, or name fewer phases.",
            )

        def compress(scene: Scene) -> Masks:
            stages = [Stage(magnitude(scene.weights))]
            return remove(scene.masks, stages, target.sparsity, self.options.allocation)

        def decompress(scene: Scene) -> None:
            return None

        kinds = {
            "compress": Event("compress", target.sparsity, compress),
            "decompress": Event("decompress", 0.0, decompress, resets_optimizer=True),
        }
        by_step = zip(steps(target.total_steps), phases, strict=True)
        return {step: kinds[kind] for step, (_, kind) in by_step}

"""LAMP: the lowest layer-adaptive magnitude scores go, in one ranking over all layers.

A weight's score is its square as a share of the squares in its layer that rank no lower. It does
not change when a layer is rescaled, and the largest weight of a layer scores exactly 1, so that the
one ranking allocates sparsity to layers by itself and empties none. Equal to gmp with `allocation:
lamp` and gmp's other defaults.

Family: gradual, magnitude, from dense to sparse; no regrowth.
Schedule: cubic from `start` to `end` of training in `updates` updates; scores anew at each.
Cost: one sort of every layer and one ranking for each update.
Source: Lee et al. 2021, arXiv 2010.07611.
Deviations: the paper prunes in rounds of training and removal; here one training goes along gmp's
schedule. Of equal weights the first ranks higher, where the paper leaves the order open.
"""

from __future__ import annotations

from typing import final

from pydantic import Field, model_validator

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target
from sparse_transfer.pruning.methods.gmp import updates


class LampOptions(Frozen):
    """`start` and `end` are fractions of training."""

    start: Fraction = 0.1
    end: float = Field(0.75, gt=0, le=1)
    updates: int = Field(50, ge=1)

    @model_validator(mode="after")
    def _window(self) -> LampOptions:
        if self.start >= self.end:
            raise ValueError("`start` must lie before `end`")
        return self


@final
class Method(AbstractMethod[LampOptions]):
    """gmp's events, one stage of LAMP scores."""

    name = "lamp"
    version = 1
    Options = LampOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """`updates` events."""
        options = self.options
        return updates(
            target,
            self._choose,
            method=self.name,
            start=options.start,
            end=options.end,
            number=options.updates,
        )

    def _choose(self, scene: Scene, sparsity: float) -> Masks:
        return remove(scene.masks, [Stage(magnitude(scene.weights))], sparsity, "lamp")

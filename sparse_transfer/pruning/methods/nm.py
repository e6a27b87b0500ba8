"""N:M: the N largest |w| of every M consecutive input channels stay, chosen once.

Take a trained model, put the pattern on it and train again with the mask held. With `permute` the
channels are reordered first, in a way that leaves what the model computes as it is, so that more
magnitude fits the pattern; that is done for layers which get their channels from one other layer
alone (inside a block, not on a residual stream). For a gradual way to the same pattern use gmp with
`allocation: "2:4"`, for one that lets weights return acdc with it, or sr_ste.

Family: one-shot, N:M pattern, magnitude; no regrowth.
Schedule: one event at `at`.
Cost: a sort of the weights in groups of M, once; `permute` ranks them some 300 times (2:4).
Source: Mishra et al. 2021, arXiv 2104.08378, and NVIDIA's ASP; permutation after Pool & Yu 2021.
Deviations: layers that do not fit the pattern are not skipped but refused, to be named in the
recipe's `keep_dense`; ASP also wants output channels in multiples of 8, here that is the backend's
concern; the permutation search is our own.
"""

from __future__ import annotations

from typing import final

from pydantic import model_validator

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.pruning.allocation import Pattern, check_allocation, pattern_of
from sparse_transfer.pruning.criteria import Stage, magnitude, remove
from sparse_transfer.pruning.method import AbstractMethod, Change, Event, Need, Scene, Target
from sparse_transfer.pruning.permutation import reordered
from sparse_transfer.pruning.schedule import to_step


class NmOptions(Frozen):
    """`pattern`: "N:M"; the sparsity asked for must be 1 - N/M. `at`: fraction of training.

    `permute`: reorder channels before the choice; only before training, since optimizer state and
    weight averages are by channel too.
    """

    pattern: Pattern = "2:4"
    at: Fraction = 0.0
    permute: bool = False

    @model_validator(mode="after")
    def _permutes_first(self) -> NmOptions:
        if self.permute and self.at > 0:
            raise ValueError("`permute` needs `at: 0`: channels are reordered before training")
        return self


@final
class Method(AbstractMethod[NmOptions]):
    """One event, one magnitude stage within groups."""

    name = "nm"
    version = 1
    Options = NmOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """The whole pattern at once."""
        options = self.options
        check_allocation(options.pattern, target)

        def choose(scene: Scene) -> Change:
            values = {}
            if options.permute:
                pattern = pattern_of(options.pattern)
                assert pattern is not None  # validated
                values = reordered(scene.model, set(scene.weights), pattern, scene.generator)
            weights = {name: values.get(name, weight) for name, weight in scene.weights.items()}
            stages = [Stage(magnitude(weights))]
            return Change(
                remove(scene.masks, stages, target.sparsity, options.pattern), values=values
            )

        needs: frozenset[Need] = frozenset({"model"} if options.permute else set())
        step = to_step(options.at, target.total_steps)
        return {step: Event("prune", target.sparsity, choose, needs=needs)}

"""The mask that a checkpoint came with, held as it is; nothing is pruned.

For checkpoints that were pruned before: `transfer` uses it. The sparsity asked for is a claim, and
a checkpoint that does not have it is refused.

Family: fixed mask.
Schedule: no event.
Cost: a mask multiplication per step.
Source: whoever made the checkpoint.
Deviations: none.
"""

from __future__ import annotations

from typing import final

from sparse_transfer.config import Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.method import AbstractMethod, Event, Target

_TOLERANCE = 5e-4  # of sparsity: claims are written with three or four digits


class GivenOptions(Frozen):
    """None."""


@final
class Method(AbstractMethod[GivenOptions]):
    """Holds the masks of a checkpoint."""

    name = "given"
    version = 1
    Options = GivenOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """No event; refuses a checkpoint whose sparsity is not the claimed one."""
        measured = 1 - target.active / target.weights
        if abs(measured - target.sparsity) > _TOLERANCE:
            raise UserError(
                f"The checkpoint is not {target.sparsity:.4f} sparse.",
                f"Its mask leaves out {measured:.4f} of the prunable weights.",
                "Give the sparsity that it has, or another method to prune further.",
            )
        return {}

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

from pydantic import Field

from sparse_transfer.config import Frozen
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.method import AbstractMethod, Event, Target


class GivenOptions(Frozen):
    """`tolerance` is for published checkpoints, whose label 0.8 may stand for 81.27 % of zeros."""

    tolerance: float = Field(
        default=5e-4, ge=0, le=0.05, description="largest difference of claimed and real sparsity"
    )


@final
class Method(AbstractMethod[GivenOptions]):
    """Holds the masks of a checkpoint."""

    name = "given"
    version = 1
    Options = GivenOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """No event; refuses a checkpoint whose sparsity is not the claimed one."""
        measured = 1 - target.active / target.weights
        if abs(measured - target.sparsity) > self.options.tolerance:
            raise UserError(
                f"The checkpoint is not {target.sparsity:.4f} sparse.",
                f"Its mask leaves out {measured:.4f} of the prunable weights.",
                "Give the sparsity that it has, or another method to prune further.",
            )
        return {}

"""No pruning: the same recipe with every weight kept, the control of every comparison.

Family: dense.
Schedule: no event.
Cost: none.
Source: none.
Deviations: none.
"""

from __future__ import annotations

from typing import final

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.method import AbstractMethod, Event, Target


class DenseOptions(Frozen):
    """None."""


@final
class Method(AbstractMethod[DenseOptions]):
    """Has no target and changes nothing; a mask that the model comes with is held."""

    name = "dense"
    version = 1
    has_target = False
    Options = DenseOptions

    def schedule(self, target: Target) -> dict[int, Event]:
        """No events."""
        return {}

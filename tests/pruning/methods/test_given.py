"""`given`: holds a mask, and refuses one that is not as sparse as claimed."""

from __future__ import annotations

import pytest

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.method import Target
from sparse_transfer.pruning.methods.given import GivenOptions, Method


def claimed(sparsity: float, kept: int) -> Target:
    """A claim about 10,000 weights of which `kept` are active."""
    return Target(sparsity=sparsity, active=kept, shapes={"fc.weight": (100, 100)}, total_steps=0)


@pytest.mark.parametrize(("kept", "tolerance", "fits"), [
    (2000, 5e-4, True),
    (1996, 5e-4, True),
    (1873, 5e-4, False),  # STR's "80 %" has 81.27 % of zeros
    (1873, 0.015, True),
    (1800, 0.015, False),
])  # fmt: skip
def test_a_claim_of_80_percent(kept: int, tolerance: float, fits: bool):
    method = Method(GivenOptions(tolerance=tolerance))
    if fits:
        assert method.schedule(claimed(0.8, kept)) == {}
        return
    with pytest.raises(UserError, match="The checkpoint is not 0.8000 sparse"):
        method.schedule(claimed(0.8, kept))

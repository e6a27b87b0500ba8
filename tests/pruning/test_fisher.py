"""The inverse Fisher blocks and the surgeon's costs, against closed forms and plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_transfer.pruning import fisher
from sparse_transfer.pruning.masks import Masks

H = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def woodbury(gradients: np.ndarray, damping: float) -> np.ndarray:
    """The source's rank-one updates of one matrix; gradients (m, c)."""
    m = len(gradients)
    inverse = np.eye(gradients.shape[1]) / damping
    for g in gradients:
        along = inverse @ g
        inverse = inverse - np.outer(along, along) / (m + g @ along)
    return inverse


def test_the_two_by_two_inverse_by_hand() -> None:
    gradients = [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])]
    inverse = fisher.inverse_fisher(gradients, 0.1)[0]
    # F = [[1.1, .5], [.5, .6]], determinant .41
    expected = torch.tensor([[0.6, -0.5], [-0.5, 1.1]], dtype=torch.float64) / 0.41
    assert torch.allclose(inverse, expected, rtol=1e-7)
    assert inverse[0, 0].item() == pytest.approx(1.4634, abs=5e-5)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 80])
def test_streamed_products_give_what_rank_one_updates_give(count: int) -> None:
    gradients = random(count, 5, 7)
    inverse = fisher.inverse_fisher(iter(gradients), 1e-2)
    for block in range(5):
        expected = woodbury(gradients[:, block].double().numpy(), 1e-2)
        np.testing.assert_allclose(inverse[block].numpy(), expected, rtol=1e-8, atol=1e-9)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients, weights = random(40, 9, 4), random(9, 4, seed=1)
    gone = random(9, 4, seed=2) > 0

    def everything() -> list[Tensor]:
        inverse = fisher.inverse_fisher(iter(gradients), 0.1)
        changes = [fisher.compensation(inverse, weights, gone, jointly=j) for j in (False, True)]
        return [inverse, *changes]

    whole = everything()
    monkeypatch.setattr(fisher, "CHUNK", 2 * 16)  # two blocks of nine at a time
    for a, b in zip(whole, everything(), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_the_damping_survives_large_gradients() -> None:
    # In float32 1e6 + 1e-5 is 1e6: the matrix of one gradient would be singular.
    inverse = fisher.inverse_fisher([torch.full((1, 2), 1e3)], 1e-5)[0]
    across = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert torch.allclose(inverse @ across, across / 1e-5, rtol=1e-3)


def test_a_gradient_that_is_nan_gives_nan_and_no_error() -> None:
    inverse = fisher.inverse_fisher([torch.tensor([[1.0, float("nan")]])], 0.1)
    assert inverse.isnan().any()


def test_removing_one_of_two_weights_by_hand() -> None:
    inverse, w = torch.linalg.inv(H)[None], torch.tensor([[1.0, 2.0]])
    assert fisher.saliency(inverse, w)[0].tolist() == pytest.approx([0.75, 3.0])
    for jointly in (False, True):
        gone = torch.tensor([[True, False]])
        change = fisher.compensation(inverse, w, gone, jointly=jointly)[0]
        assert (w[0] + change).tolist() == pytest.approx([0.0, 2.5])
        assert (0.5 * change @ H @ change).item() == pytest.approx(0.75)


def test_a_joint_removal_is_the_constrained_minimum() -> None:
    root = random(6, 6).double()
    hessian = root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64)
    inverse, w = torch.linalg.inv(hessian)[None], random(1, 6, seed=1).double()
    gone = torch.tensor([[True, False, True, True, False, False]])
    change = fisher.compensation(inverse, w, gone, jointly=True)[0]
    # Minimise (1/2) d' H d with d_gone = -w_gone: stationary in the rest.
    q, k = gone[0].nonzero()[:, 0], (~gone[0]).nonzero()[:, 0]
    rest = torch.linalg.solve(hessian[k][:, k], hessian[k][:, q] @ w[0, q])
    assert torch.allclose(change[q], -w[0, q]) and torch.allclose(change[k], rest)

    def cost(d: Tensor) -> float:
        return (0.5 * d @ hessian @ d).item()

    among = torch.linalg.inv(inverse[0][q][:, q])  # the cost in closed form
    assert cost(change) == pytest.approx((0.5 * w[0, q] @ among @ w[0, q]).item())
    summed = fisher.compensation(inverse, w, gone, jointly=False)[0]
    summed[q] = -w[0, q]  # as the masks will have it
    assert cost(change) < cost(summed)


def test_the_sum_adds_the_changes_of_each_removal_alone() -> None:
    inverse = fisher.inverse_fisher(random(20, 3, 5), 0.1)
    w, gone = random(3, 5, seed=1), random(3, 5, seed=2) > 0
    assert 2 <= int(gone[0].sum()) < 5
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for b, q in gone.nonzero().tolist():
        expected[b] -= w[b, q].double() / inverse[b, q, q] * inverse[b, :, q]
    assert torch.allclose(fisher.compensation(inverse, w, gone, jointly=False), expected)


def masks_of(*active: list[int], size: int = 10) -> Masks:
    kept = {}
    for i, positions in enumerate(active):
        mask = torch.zeros(size, dtype=torch.bool)
        mask[positions] = True
        kept[f"layer{i}"] = mask.reshape(2, -1)
    return Masks(kept)


def bytes_of(blocks: int, block: int) -> int:
    return blocks * block * (8 * block + 4 * fisher.ROWS)


def test_groups_hold_every_active_weight_once_and_no_more_than_the_memory() -> None:
    masks = masks_of([0, 1, 2, 5, 9], list(range(10)), [4])
    for blocks in (1, 2, 3, 100):
        groups = fisher.partition(masks, 2, bytes_of(blocks, 2))
        sizes = [sum(-(-len(part.positions) // 2) for part in group) for group in groups]
        # 3 + 5 + 1 blocks, since blocks do not span layers
        assert sum(sizes) == 9 and all(size == blocks for size in sizes[:-1])
        assert sizes[-1] <= blocks
        for name, mask in masks.items():
            seen = [p.positions for group in groups for p in group if p.name == name]
            assert torch.equal(torch.cat(seen), mask.flatten().nonzero()[:, 0])


def test_gather_and_scatter_are_inverse_in_any_memory_layout() -> None:
    values = {"layer0": random(4, 3, 3, 3).to(memory_format=torch.channels_last)}
    mask = Masks({"layer0": random(4, 3, 3, 3, seed=1) > 0})
    active = int(mask.kept())
    (group,) = fisher.partition(mask, 7, 2**20)
    blocks = fisher.gather(group, values, 7)
    assert blocks.shape == (-(-active // 7), 7)
    assert blocks[0, 0] == values["layer0"][mask["layer0"]][0]
    assert not blocks.flatten()[active:].any()
    into = {"layer0": torch.zeros(4, 3, 3, 3)}
    fisher.scatter(group, blocks, into)
    assert torch.equal(into["layer0"], values["layer0"] * mask["layer0"])

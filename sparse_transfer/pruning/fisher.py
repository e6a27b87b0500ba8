"""The empirical Fisher matrix in blocks, its inverse, and what removing weights costs under it.

A block belongs to consecutive active weights of one layer. Its matrix is F = damping I + mean of
g g' over sampled gradients g. By the theory of the optimal brain surgeon the removal of weight q
alone raises a loss with Hessian F by w_q^2 / (2 [F^-1]_qq) and is best compensated by adding
-w_q / [F^-1]_qq F^-1 e_q to the others.

Matrices are float64: the damping is often below the rounding of the products in float32.

Source: Hassibi & Stork 1992; Singh & Alistarh 2020, arXiv 2004.14340 (blocks, Woodbury). Deviation:
products are summed as the gradients stream by and the sum is inverted by Cholesky, which gives the
matrix that rank-one Woodbury updates give, in memory that does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_transfer.pruning.masks import Masks

ROWS = 32  # gradients whose products are added together
CHUNK = 2**22  # matrix elements worked on at once


@dataclass(frozen=True)
class Part:
    """Consecutive active weights of a layer, in blocks.

    Args:
        name: of the layer.
        positions: (n,) int64, indices into the flattened layer, ascending.
    """

    name: str
    positions: Tensor


def partition(masks: Masks, block: int, memory: int) -> list[list[Part]]:
    """The active weights in groups whose matrices and gradients take at most `memory` bytes.

    Blocks never span two layers, and a layer may span several groups.

    Args:
        block: weights of a block.
    """
    per_block = block * (8 * block + 4 * ROWS)
    capacity = max(1, memory // per_block)
    groups: list[list[Part]] = [[]]
    room = capacity
    for name, mask in masks.items():
        positions = mask.flatten().nonzero()[:, 0]
        while len(positions):
            if not room:
                groups.append([])
                room = capacity
            part, positions = positions[: room * block], positions[room * block :]
            groups[-1].append(Part(name, part))
            room -= -(-len(part) // block)
    return groups


def gather(group: Sequence[Part], values: Mapping[str, Tensor], block: int) -> Tensor:
    """The values at the group's weights, (blocks, block); the end of a part's last block is 0."""
    pieces = []
    for part in group:
        piece = values[part.name].detach().reshape(-1)[part.positions]
        pieces.append(torch.nn.functional.pad(piece, (0, -len(piece) % block)))
    return torch.cat(pieces).reshape(-1, block)


def scatter(group: Sequence[Part], blocks: Tensor, into: Mapping[str, Tensor]) -> None:
    """Write (blocks, block) values to the group's weights, in place; the inverse of `gather`."""
    row = 0
    for part in group:
        n, block = len(part.positions), blocks.shape[1]
        rows = -(-n // block)
        values = blocks[row : row + rows].reshape(-1)[:n]
        flat = into[part.name].view(-1)
        flat[part.positions] = values.to(flat.dtype)
        row += rows


def inverse_fisher(gradients: Iterable[Tensor], damping: float) -> Tensor:
    """The inverses of damping I + mean g g', (b, c, c) float64.

    Args:
        gradients: each (b, c) float: one sampled gradient at the weights of b blocks.
        damping: positive.
    """
    fisher = torch.empty(0)
    rows: list[Tensor] = []
    count = 0
    for gradient in gradients:
        if not count:
            blocks, size = gradient.shape
            fisher = gradient.new_zeros(blocks, size, size, dtype=torch.float64)
        count += 1
        rows.append(gradient)
        if len(rows) == ROWS:
            _add_products(fisher, rows)
            rows = []
    assert count, "no gradient was sampled"
    if rows:
        _add_products(fisher, rows)
    for part in _chunks(fisher):
        part /= count
        part.diagonal(dim1=1, dim2=2).add_(damping)
        factor, _ = torch.linalg.cholesky_ex(part)  # a gradient that is NaN gives NaN, no error
        part.copy_(torch.cholesky_inverse(factor))
    return fisher


def saliency(inverse: Tensor, weights: Tensor) -> Tensor:
    """w^2 / (2 [F^-1]_qq), (b, c) float64: what removing each weight alone costs.

    Args:
        inverse: (b, c, c).
        weights: (b, c).
    """
    return weights.double().square() / (2 * inverse.diagonal(dim1=1, dim2=2))


def compensation(inverse: Tensor, weights: Tensor, gone: Tensor, *, jointly: bool) -> Tensor:
    """The change of all weights of a block that goes with a removal, (b, c) float64.

    Either the sum of the changes that go with each removed weight alone, after which what was
    removed is not zero yet, or the change that removes all of it together at the least cost,
    -F^-1 E (E' F^-1 E)^-1 w_gone.

    Args:
        inverse: (b, c, c).
        weights: (b, c).
        gone: (b, c) bool, what is removed.
    """
    change = torch.empty_like(weights, dtype=torch.float64)
    for out, matrix, w, removed in zip(
        *(tensor.split(_step(inverse)) for tensor in (change, inverse, weights, gone)), strict=True
    ):
        target = torch.where(removed, w.double(), 0.0)
        if jointly:
            # The rows and columns of what stays become those of the identity: one shape for all.
            inside = removed[:, :, None] & removed[:, None, :]
            system = torch.where(inside, matrix, torch.eye(matrix.shape[1]).to(matrix))
            factors = torch.linalg.solve(system, target[:, :, None])
        else:
            factors = (target / matrix.diagonal(dim1=1, dim2=2))[:, :, None]
        out.copy_(-(matrix @ factors)[:, :, 0])
    return change


def _add_products(fisher: Tensor, rows: Sequence[Tensor]) -> None:
    """Add g g' of every row to the matrices."""
    step = _step(fisher)
    for first in range(0, len(fisher), step):
        stacked = torch.stack([row[first : first + step] for row in rows], dim=1).double()
        fisher[first : first + step].baddbmm_(stacked.transpose(1, 2), stacked)


def _step(matrices: Tensor) -> int:
    """How many matrices are worked on at once."""
    return max(1, CHUNK // matrices[0].numel())


def _chunks(matrices: Tensor) -> Iterable[Tensor]:
    return matrices.split(_step(matrices))

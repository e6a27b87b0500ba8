"""The programs of a training region for one size of image, and how they are run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sparse_transfer.errors import UserError
from sparse_transfer.sparse.library import Library
from sparse_transfer.sparse.program import Program
from sparse_transfer.sparse.training_backward import Backward
from sparse_transfer.sparse.training_forward import Forward
from sparse_transfer.sparse.training_graph import Norm
from sparse_transfer.sparse.training_layout import Values
from sparse_transfer.sparse.training_tables import State, Tables


@final
class TrainingPlan:
    """Runs are done one after the other; what one leaves for the next is in what it returns.

    Args:
        library: the kernels.
        values: of the region.
        wanted: names of inputs whose gradient is needed.
        threads: the most that a run may use.
    """

    def __init__(
        self, library: Library, values: Values, wanted: Sequence[str], threads: int
    ) -> None:
        self.threads, self.wanted = threads, tuple(wanted)
        self._values = values
        self._tables = Tables(library, values, threads)
        self._forward, self._backward = Program(library), Program(library)
        filled = Forward(values, self._tables, self._forward).build()
        Backward(values, self._tables, self._backward, self.wanted, filled).build()
        self._frozen: dict[Norm, bool] = {}
        self._lock = threading.Lock()

    def floats(self, batch: int) -> int:
        """What is kept from forward to backward, in floats."""
        return self._values.place(batch)

    def forward(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        saved: Tensor,
    ) -> tuple[Tensor, dict[Norm, bool]]:
        """Fill the outputs and `saved` (floats,); returns the norms' state and which are frozen.

        The running statistics of norms that are not frozen are updated as PyTorch does.

        Raises:
            UserError: a norm has one value per channel, which has no variance.
        """
        batch, threads = inputs[0].shape[0], self._use()
        with self._lock, torch.no_grad():
            self._values.place(batch)
            self._load_norms(batch)
            self._tables.writing[0].run(weights, 1, threads)
            self._forward.run([*inputs, *outputs], batch, threads, saved=saved, is_fixed=True)
            self._update_running(batch)
            return self._tables.state.clone(), dict(self._frozen)

    def backward(
        self,
        gradients: Sequence[Tensor],
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        found: Sequence[Tensor],
        saved: Tensor,
        state: Tensor,
        frozen: dict[Norm, bool],
    ) -> dict[Norm, tuple[Tensor, Tensor]]:
        """From gradients of the outputs fill those of the wanted inputs and of the weights.

        `saved`, `state` and `frozen` are of the forward run. Returns gradients of gamma and beta,
        (channels,) each.
        """
        batch, threads = gradients[0].shape[0], self._use()
        tables = self._tables
        with self._lock, torch.no_grad():
            self._values.place(batch)
            self._freeze(frozen)
            tables.state.copy_(state)
            tables.writing[1].run(weights, 1, threads)
            self._backward.run(
                [*gradients, *inputs, *found], batch, threads, saved=saved, is_fixed=True
            )
            return {
                norm: (rows[State.D_GAMMA].clone(), rows[State.D_BETA].clone())
                for norm, rows in tables.norms.items()
            }

    @property
    def norms(self) -> tuple[Norm, ...]:
        """In the order of the network."""
        return tuple(self._tables.norms)

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the convolutions, in the order of the network."""
        return tuple(self._tables.weights)

    def _use(self) -> int:
        return min(self.threads, torch.get_num_threads())

    def _freeze(self, frozen: dict[Norm, bool]) -> None:
        for norm, is_frozen in frozen.items():
            if self._frozen.get(norm) != is_frozen:
                self._tables.freeze(norm, is_frozen)
                self._frozen[norm] = is_frozen

    def _load_norms(self, batch: int) -> None:
        """Parameters, and running statistics where they are used, into the state."""
        self._freeze({norm: norm.is_frozen for norm in self._tables.norms})
        for norm, state in self._tables.norms.items():
            pairs = [(State.GAMMA, norm.weight), (State.BETA, norm.bias)]
            if self._frozen[norm]:
                pairs += [(State.AVERAGE, norm.average), (State.VARIANCE, norm.variance)]
            elif batch * norm.pixels == 1:
                raise UserError(
                    "A batch norm has one value per channel, which has no variance.",
                    "The batch is one image, which is one pixel large there.",
                    "Pass more images at a time, or call .eval() on the norm.",
                )
            for row, tensor in pairs:
                if tensor is not None:
                    state[row].copy_(tensor)

    def _update_running(self, batch: int) -> None:
        for norm, state in self._tables.norms.items():
            layer = norm.running
            if layer is None or self._frozen[norm]:
                continue
            count, momentum = batch * norm.pixels, layer.momentum
            assert momentum is not None and layer.running_mean is not None
            assert layer.running_var is not None and layer.num_batches_tracked is not None
            layer.running_mean.lerp_(state[State.AVERAGE], momentum)
            layer.running_var.lerp_(state[State.VARIANCE] * (count / (count - 1)), momentum)
            layer.num_batches_tracked.add_(1)

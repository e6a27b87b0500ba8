"""What the forward and the backward program of a training region share besides values.

State and sums of the norms, patterns and gradients of the convolutions, and the matrices that must
be written anew when weights change.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.library import Library
from sparse_transfer.sparse.packing import Packed, PackedDense, Pattern
from sparse_transfer.sparse.program import Program
from sparse_transfer.sparse.training_graph import Node, Norm, kept_of
from sparse_transfer.sparse.training_layout import Values


class State(enum.IntEnum):
    """Rows of a norm's state, a float per channel; the mirror of native/training.h."""

    GAMMA = 0
    BETA = 1
    AVERAGE = 2
    VARIANCE = 3  # divided by the number of values, not by one less
    INVERSE = 4  # of the deviation
    SCALE = 5
    SHIFT = 6
    SLOPE = 7  # gradient of the source = slope · g + curve · (source − average) + offset
    CURVE = 8
    OFFSET = 9
    D_GAMMA = 10
    D_BETA = 11


@final
@dataclass(frozen=True, eq=False)
class Weights:
    """A convolution's non-zeros.

    Attributes:
        pattern: where they are.
        gradient: (threads, non-zeros or more) float32, zeros between runs.
    """

    pattern: Pattern
    gradient: Tensor

    @property
    def zeros(self) -> np.ndarray:
        """Stands for the values until they are written."""
        return np.zeros(len(self.pattern.out), dtype=np.float32)


@final
class Tables:
    """Made once for a plan.

    Attributes:
        state: (floats,) of all norms, one after the other.
        norms: state (rows of `State`, channels) by norm, in the order of the network.
        sums: (threads, 2 · channels or more) float64 by norm, zeros between runs.
        weights: by the name of the convolution, in the order of the network.
        writing: two programs that write the convolutions' values, tensors in that order, into the
            matrices of the forward and of the backward program.
    """

    def __init__(self, library: Library, values: Values, threads: int) -> None:
        nodes = values.nodes.values()
        norms = [norm for node in nodes for norm, _ in node.norms]
        ends = np.cumsum([0, *(len(State) * norm.channels for norm in norms)]).tolist()
        self.state = torch.zeros(ends[-1])
        self.norms: dict[Norm, Tensor] = {
            norm: self.state[begin:end].view(len(State), -1)
            for norm, begin, end in zip(norms, ends[:-1], ends[1:], strict=True)
        }
        for state in self.norms.values():
            state[State.GAMMA] = state[State.VARIANCE] = 1
        self.sums = {
            norm: torch.zeros(threads, -(-2 * norm.channels // 8) * 8, dtype=torch.float64)
            for norm in norms
        }
        self.weights: dict[str, Weights] = {}
        for node in nodes:
            if node.do == "convolve":
                pattern = _pattern(node)
                room = -(-max(len(pattern.out), 1) // 16) * 16  # threads share no cache line
                self.weights[node.name] = Weights(pattern, torch.zeros(threads, room))
        self._numbers = {name: number for number, name in enumerate(self.weights)}
        self.writing = (Program(library), Program(library))
        for program in self.writing:
            program.segment(0)
        self._finishing: dict[Norm, list[tuple[Program, int]]] = {norm: [] for norm in norms}

    def write(self, name: str, packed: Packed | PackedDense, *, backward: bool) -> None:
        """Have a convolution's values written into a matrix."""
        self.writing[backward].write_values(self._numbers[name], packed)

    def finish(self, program: Program, norm: Norm, source: Buffer, *, backward: bool) -> None:
        """Append what makes of a norm's sums its state."""
        self._finishing[norm].append((program, len(program)))
        state, sums = self.norms[norm], self.sums[norm]
        program.norm(source, state, sums, norm.epsilon, backward=backward)

    def freeze(self, norm: Norm, is_frozen: bool) -> None:
        """Whether a norm's average and variance are those in its state, or of the batch."""
        for program, number in self._finishing[norm]:
            program.change(number, is_frozen=int(is_frozen))


def _pattern(node: Node) -> Pattern:
    assert node.layer is not None
    return Pattern.of(kept_of(node.layer).contiguous().numpy(), node.layer.groups)

"""Which operations take turns, and whose place in memory others may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparse_transfer.sparse.abi import Kind, Turns
from sparse_transfer.sparse.buffers import Buffer
from sparse_transfer.sparse.operations import Operation

_TILED = (Kind.SPARSE, Kind.DENSE, Kind.GRADIENT)


def take_turns(operations: Sequence[Operation], begins: Sequence[int]) -> list[int]:
    """Lets 1 × 1 convolutions and what treats every pixel by itself take turns, row of tiles by
    row, and others that treat every channel by itself some channels each: what one has written
    and the next one reads is in the cache then.

    Args:
        begins: the first operation of each segment.

    Returns:
        The first of its group for every operation: all of a group run at the same time.
    """
    groups: list[int] = []
    ends = [*begins[1:], len(operations)]
    for end in ends:
        while len(groups) < end:
            begin = len(groups)
            rest = operations[begin:end]
            by_rows = _leading(rest, _may_follow_by_rows)
            by_channels = _leading(rest, _may_follow_by_channels)
            turns = Turns.BY_CHANNELS if by_channels > by_rows else Turns.BY_ROWS
            rest[0].fields["follows"] = Turns.NONE
            for operation in rest[1 : max(by_rows, by_channels)]:
                operation.fields["follows"] = int(turns)
            groups += [begin] * max(by_rows, by_channels)
    return groups


def replaced(operations: Sequence[Operation], buffers: set[Buffer]) -> dict[Buffer, Buffer]:
    """Outputs that may lie where the value that is added to them lies: nobody reads it after.

    Lines that were just read are in the cache, and less memory is touched.
    """
    found = {}
    for number, operation in enumerate(operations):
        other, output = (operation.buffers.get(name) for name in ("other", "output"))
        if (
            operation.fields["kind"] in (Kind.SPARSE, Kind.DENSE)
            and other in buffers
            and output in buffers
            and other is not operation.buffers["input"]
            and other.layout == output.layout
            and (other.uses[-1], output.uses[0]) == (number, number)
        ):
            found[output] = other
    return found


def _leading(
    operations: Sequence[Operation],
    may_follow: Callable[[Operation, Sequence[Operation]], bool],
) -> int:
    """How many operations from the first one on take turns."""
    for number in range(1, len(operations)):
        if not may_follow(operations[number], operations[:number]):
            return number
    return len(operations)


def _may_follow_by_rows(operation: Operation, group: Sequence[Operation]) -> bool:
    """Whether a row can be made after the same row of all operations of a group."""
    if _rows(operation) is None or _rows(operation) != _rows(group[0]):
        return False
    for before in group:
        # it reads rows that are to come: they must not be written, nor their place taken
        mine = [operation.buffers.get(name) for name in ("output", "other")]
        read = [buffer for name, buffer in before.buffers.items() if name != "output"]
        is_apart = operation.fields["kind"] not in _TILED and not any(b in mine for b in read)
        if not before.is_pointwise and not is_apart:
            return False
    # what looks ahead may follow those that do not write what it reads so
    made = [before.buffers.get("output") for before in group]
    is_gradient = operation.fields["kind"] == Kind.GRADIENT
    return operation.is_pointwise or (is_gradient and operation.buffers["input"] not in made)


def _may_follow_by_channels(operation: Operation, group: Sequence[Operation]) -> bool:
    """Whether a channel can be made after the same channel of all operations of a group."""
    return _channels(operation) is not None and _channels(operation) == _channels(group[0])


def _rows(operation: Operation) -> int | None:
    """How many are made, from the first to the last; None if in another order."""
    if operation.fields["kind"] in _TILED:
        fields = operation.fields
        skips = fields.get("out_step_y", 1) > 1 or fields.get("first_y", 0) > 0
        return None if skips else fields["count_y"]
    return (
        next(iter(operation.buffers.values())).layout.block[0] if operation.is_pointwise else None
    )


def _channels(operation: Operation) -> int | None:
    """How many there are; None where an output is not made of the same channel alone."""
    if operation.fields["kind"] in (*_TILED, Kind.WRITE_VALUES, Kind.COLLECT_GRADIENT):
        return None
    return next(iter(operation.buffers.values())).layout.channels

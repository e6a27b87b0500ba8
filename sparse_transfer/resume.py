"""The resume file of a training: weights, masks, optimizer tensors and average, at an epoch end.

One safetensors file, replaced atomically at every epoch end; position and environment stand in its
metadata. There is no generator state, because the loop has none, and no pickle.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparse_transfer.errors import UserError
from sparse_transfer.sparse import library
from sparse_transfer.store import replacing

FILE = "resume.safetensors"


class Stateful(Protocol):
    """Anything whose state is tensors by name."""

    def state_dict(self) -> Mapping[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor], /) -> object: ...


@dataclass(frozen=True)
class Position:
    """Where to go on: epochs and optimizer steps done."""

    epoch: int
    step: int


def environment() -> dict[str, str]:
    """What must be equal for a resumed run to be bit-identical."""
    return {
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "kernels": "none" if library.available() else library.best_level(),
    }


class ResumeFile:
    """Saves and restores everything that a training changes.

    Args:
        folder: where the file lies.
        parts: what has a state, by the name it is saved under; restored in this order.
        optimizer: saved last, restored last.
        facts: what must be known before the parts can be made; `facts_of` reads them.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, Stateful],
        optimizer: torch.optim.Optimizer,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self.path = folder / FILE
        self._facts, self._environment = dict(facts or {}), environment()
        self.warnings: tuple[str, ...] = ()
        self._parts, self._optimizer = parts, optimizer

    def save(self, epoch: int, step: int) -> None:
        """Write the state after `epoch` epochs and `step` optimizer steps."""
        tensors = {name: value.detach().contiguous().clone() for name, value in self._tensors()}
        metadata = {
            "position": json.dumps([epoch, step]),
            "environment": json.dumps(self._environment),
        }
        metadata["facts"] = json.dumps(self._facts)
        with replacing(self.path) as temporary:
            save_file(tensors, temporary, metadata)

    def load(self) -> Position | None:
        """Restore the saved state in place; None if there is nothing to resume from.

        Raises:
            UserError: the file is damaged, or does not belong to this run.
        """
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return self._restore(tensors, metadata)
        except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
            raise _unusable(self.path, error) from error

    def _restore(self, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Position:
        position = Position(*json.loads(metadata["position"]))
        saved = json.loads(metadata["environment"])
        self.warnings = tuple(
            f"resumed under {key} {now}, began under {saved[key]}: may differ in rounding"
            for key, now in self._environment.items()
            if saved.get(key, now) != now  # kernels were not noted once
        )
        for name, part in self._parts.items():
            part.load_state_dict(_under(tensors, f"{name}."))
        self._restore_optimizer(_under(tensors, "optimizer."))
        return position

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, part in self._parts.items():
            for key, value in part.state_dict().items():
                yield f"{name}.{key}", value
        for number, state in self._optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if value is not None:  # the momentum of a parameter that never had a gradient
                    yield f"optimizer.{number}.{key}", value

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            number, _, key = name.partition(".")
            state.setdefault(int(number), {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})


def facts_of(folder: Path) -> dict[str, str] | None:
    """The facts that a resume file was saved with; None where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("facts", "{}"))
    except (SafetensorError, ValueError) as error:
        raise _unusable(path, error) from error


def without_engine(folder: Path, error: UserError) -> UserError:
    """What to say where a run began with the sparse engine, which cannot be used now."""
    return UserError(
        "The run cannot be resumed: it began with the sparse engine.",
        error.why,
        f"Resume it where it began, or delete {folder / FILE} to start afresh.",
    )


def _unusable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"The resume file {path} cannot be used.",
        str(error).partition("\n")[0],
        "Delete it to start afresh.",
    )


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}

"""The one Accelerator of this process, our own autocast, and the process count.

A second `Accelerator` with another precision raises and with another accumulation silently changes
the first, so it is made here and nowhere else, always in full precision; runs that want bfloat16
open `autocast` around their forward pass. Nothing here imports torch until a device is asked for.
"""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Literal

from sparse_transfer.errors import UserError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

Precision = Literal["fp32", "bf16"]


def world_size() -> int:
    """The number of processes that work on this run together, 1 unless a launcher started us.

    Read from what `torchrun` and `accelerate launch` set, without importing torch.

    Raises:
        UserError: WORLD_SIZE is not a positive number.
    """
    return _from_environment("WORLD_SIZE", default=1, least=1)


def rank() -> int:
    """The index of this process among `world_size()`, 0 unless a launcher started us.

    Raises:
        UserError: RANK is not a number in [0, world_size()).
    """
    found = _from_environment("RANK", default=0, least=0)
    if found >= world_size():
        raise UserError(
            f"This process cannot be number {found} of {world_size()}.",
            "RANK is not below WORLD_SIZE in the environment.",
            "Start with torchrun or accelerate launch, or unset both variables.",
        )
    return found


def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of process 0; nothing where there is one process.

    Batch-norm statistics are each process's own after a step; what is read off the model must not
    differ between processes.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


@cache
def accelerator() -> Accelerator:
    """The process's only `Accelerator`, made at the first call.

    On a CUDA GPU where there is one and ACCELERATE_USE_CPU does not forbid it, else on the CPU.
    Its mixed precision is always "no", whatever `accelerate config` says, because the precision of
    a run is part of its hash; on a GPU, fp32 means fp32 and not TF32 for the same reason.

    Raises:
        UserError: the launcher started other processes than Accelerate joined, or asked for a
            parallelism that shards the model (FSDP, DeepSpeed, …).
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, parse_flag_from_env

    # Without the flag, Accelerate starts no process group on a machine that has no GPU, and every
    # process of a torchrun would take itself for the only one.
    use_cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    made = Accelerator(cpu=use_cpu, mixed_precision="no")
    if made.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
        DistributedType.MULTI_GPU,
    ):
        raise UserError(
            f"The parallelism {made.distributed_type.value} is not supported.",
            "Every process here holds the whole model.",
            "Choose plain multi-GPU in `accelerate config`, or start with torchrun.",
        )
    if made.num_processes != world_size():
        raise UserError(
            f"{world_size()} processes were launched, but {made.num_processes} found each other.",
            "The launcher and Accelerate disagree.",
            "Start with torchrun --nproc_per_node N (on CPU: ACCELERATE_USE_CPU=true).",
        )
    if made.device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return made


def autocast(precision: Precision) -> torch.autocast:
    """A context in which the forward pass runs in `precision` on the accelerator's device.

    "fp32" switches off any autocast that is open around it.
    """
    import torch

    return torch.autocast(
        accelerator().device.type, dtype=torch.bfloat16, enabled=precision == "bf16"
    )


def all_agree(statement: bool) -> bool:
    """Whether `statement` is true in every process; all of them must ask.

    What guards a collective call: processes that decide differently would wait for each other
    for ever.
    """
    if world_size() == 1:
        return statement
    import torch

    made = accelerator()
    votes = made.gather(torch.tensor([int(statement)], device=made.device))
    assert isinstance(votes, torch.Tensor)
    return bool(votes.all())


def _from_environment(name: str, *, default: int, least: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(
            f"The environment variable {name} is '{text}'.",
            f"A whole number from {least} on was expected.",
            "Start with torchrun or accelerate launch, or unset it.",
        )
    return int(text)

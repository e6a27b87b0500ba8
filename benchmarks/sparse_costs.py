"""Seconds of a conversion and memory of networks, each in a process of its own.

    OMP_NUM_THREADS=2 python benchmarks/sparse_costs.py inference sparse resnet50 224 16 0.9

prints one JSON object; `sparse_inference.py` and `sparse_training.py` run this and quote it.

- `inference ENGINE …` (dense or sparse): seconds of the conversion; bytes that the process has more
  than before the network was made, at rest and at the peak of five calls. The original model is
  dropped before, as in a process that only serves. `dense` is eager PyTorch, folded and
  channels-last: a compiler would leave its own memory in the process.
- `growth …`: bytes by which 1,000 calls of the converted network let the process grow, after 100.
- `training ENGINE …` (an engine of sparse_training.py): parameters with their gradients and the
  optimizer's state in bytes, and the peak of three steps beyond what the process had before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import torch

from sparse_transfer.errors import UserError
from sparse_transfer.fusion import fold_batch_norms
from sparse_transfer.sparse.engine import compile

CALLS = 1000


def inference(engine: str, name: str, pixels: int, batch: int, sparsity: float) -> dict[str, Any]:
    """Seconds of the conversion, and bytes."""
    example = torch.randn(batch, 3, pixels, pixels)
    before = measuring.resident()
    model, _ = measuring.network(name, sparsity, "uniform")
    began = time.perf_counter()
    if engine == "sparse":
        run: Any = compile(model, example)
    else:
        run = eager(model)
    seconds = time.perf_counter() - began
    del model
    measuring.resident()
    measuring.forget_peak()
    for _ in range(5):
        run(example)
    peak = measuring.peak() - before
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "resident_bytes": measuring.resident() - before,
        "engine": getattr(run, "engine", engine),
    }


def eager(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """PyTorch without a compiler: batch norms folded, channels-last."""
    fused: Any = fold_batch_norms(model)[0]
    fused = fused.to(memory_format=torch.channels_last)

    def run(images: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return fused(images.contiguous(memory_format=torch.channels_last))

    return run


def growth(name: str, pixels: int, batch: int, sparsity: float) -> dict[str, Any]:
    """Bytes by which the process grows."""
    example = torch.randn(batch, 3, pixels, pixels)
    model, _ = measuring.network(name, sparsity, "uniform")
    run = compile(model, example)
    for _ in range(CALLS // 10):
        run(example)
    before = measuring.resident()
    for _ in range(CALLS):
        run(example)
    return {"bytes": measuring.resident() - before, "calls": CALLS, "engine": run.engine}


def training(engine: str, name: str, pixels: int, batch: int, sparsity: float) -> dict[str, Any]:
    """Bytes of what is trained, and the peak of three steps."""
    from sparse_training import Task, engines

    task = Task.random(name, pixels, batch, sparsity)
    before = measuring.resident()
    step = engines(task, [engine])[engine]
    measuring.forget_peak()
    for _ in range(3):
        step()
    peak = measuring.peak() - before
    return {"peak_bytes": peak, **step.bytes()}


def in_process(*arguments: str | float, environment: dict[str, str]) -> dict[str, Any]:
    """What this script prints, called with these arguments.

    Raises:
        UserError: it failed; its last line is quoted.
    """
    command = [sys.executable, str(Path(__file__)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise UserError(f"{' '.join(command[1:])} failed.", last)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", choices=["inference", "growth", "training"])
    parser.add_argument("engine", nargs="?", default="", help="not for `growth`")
    parser.add_argument("model")
    parser.add_argument("pixels", type=int)
    parser.add_argument("batch", type=int)
    parser.add_argument("sparsity", type=float)
    options = parser.parse_args()
    of = (options.model, options.pixels, options.batch, options.sparsity)
    if options.work == "growth":
        found = growth(*of)
    elif options.work == "inference":
        found = inference(options.engine, *of)
    else:
        found = training(options.engine, *of)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

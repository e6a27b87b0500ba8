"""One training step under a fixed mask: the sparse engine against dense PyTorch, and its goals.

    OMP_NUM_THREADS=2 python benchmarks/sparse_training.py [--rows resnet18] [--json out.json]

A step is forward, cross-entropy, backward, and SGD with momentum; batch norms use and update batch
statistics. The dense paths hold the mask as full fine-tuning does (`FixedMask`: gradients are
masked, so zeros stay zeros). Masks are random and uniform per layer; first convolution and
classifier stay dense. Every engine trains a copy of its own on one batch.

Before anything is timed the first losses of all engines are compared with float64, and so are the
sparse gradients, tensor by tensor. Gradients of networks with ReLU differ between any two engines
by flipped signs, so each may be off by `TIMES` what dense float32 is off by, or by `TOLERANCE`.
Then engines take one step per round, in rotating order; a figure is the median over rounds of best
dense time / sparse time in the same round, in brackets its 95 % interval. "Best dense" is the one
of the smallest median: NCHW, channels-last and torch.compile in float32; the second table admits
bf16 autocast (channels-last), eager and compiled, too.

Memory is that of parameters, gradients and optimizer state in bytes, and the peak of a process that
does nothing else (sparse_costs.py); `--no-memory` leaves these processes out.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from measuring import (
    SPARSITIES,
    Cells,
    add_options,
    distance,
    fastest,
    interleaved,
    machine,
    network,
    ratio,
    shown,
)
from sparse_costs import in_process
from torch import Tensor, nn
from torch.nn import functional

from sparse_transfer.cost import macs
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.driver import FixedMask
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.sparse import convert_for_training

FLOAT32 = ("nchw", "channels-last", "inductor")
BF16 = ("bf16", "inductor-bf16")
TIMES, TOLERANCE = 10, 1e-2  # of gradients, see above
FLOOR = 1e-4  # of the norm of all gradients; a smaller tensor is judged as if it had that
LOSS = {"float32": 1e-4, "bf16": 5e-2}  # relative errors that are the same function
ANY = dict(zip(SPARSITIES, (1.0, 1.6, 2.3, 3.0), strict=True))  # goals against dense incl. bf16


@dataclass(frozen=True)
class Row:
    """One line of the table; `goals` are those against dense float32."""

    label: str
    model: str
    pixels: int
    batch: int
    goals: tuple[float, ...]


ROWS = {
    "resnet18": Row("ResNet-18 224 px, batch 16", "resnet18", 224, 16, (2.0, 3.0, 4.2, 5.5)),
    "resnet50": Row("ResNet-50 224 px, batch 16", "resnet50", 224, 16, (2.0, 2.9, 3.9, 5.2)),
    "cifar": Row("ResNet-18 32 px, batch 64", "resnet18_cifar", 32, 64, (2.4, 3.6, 5.0, 7.0)),
}


@dataclass(frozen=True)
class Task:
    """What every engine trains: a network in training mode, its masks, and one batch."""

    model: nn.Module
    masks: Masks
    images: Tensor
    labels: Tensor

    @staticmethod
    def random(model: str, pixels: int, batch: int, sparsity: float) -> Task:
        """Random weights, mask and images, the same every time."""
        made, masks = network(model, sparsity, "uniform")
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(batch, 3, pixels, pixels, generator=generator)
        labels = torch.randint(1000, (batch,), generator=generator)
        with torch.no_grad():
            labels %= made.eval()(images[:1]).shape[1]
        return Task(made.train(), masks, images, labels)


@final
class Step:
    """A training step of one engine; a call returns the loss.

    Args:
        model: what is trained; its parameters go to the optimizer.
        forward: what is called; the model itself, or compiled.
        masks: held on a dense model; None where the zeros are no parameters.
        bf16: run forward and loss under autocast.
    """

    def __init__(
        self, model: Any, forward: Any, masks: Masks | None, images: Tensor, labels: Tensor,
        bf16: bool = False,
    ) -> None:  # fmt: skip
        self._model, self._forward, self._bf16 = model, forward, bf16
        self._images, self._labels = images, labels
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        self._mask = FixedMask(model, masks)
        self._mask.bind(self._optimizer)
        self._mask.start()
        self._steps, self.loss = 0, float("nan")  # of the last step

    def __call__(self) -> float:
        self._optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
            output = self._forward(self._images)
            loss = functional.cross_entropy(output, self._labels)
        loss.backward()
        self._steps += 1
        self._mask.after_backward(self._steps)
        self._optimizer.step()
        self._mask.after_step(self._steps)
        self.loss = float(loss.detach())
        return self.loss

    def gradients(self) -> dict[str, Tensor]:
        """Of the last step, under the parameter names of the dense model, float32.

        `to_dense` of a model whose parameters are gradients gives the gradients their dense form.
        """
        parameters = list(self._model.parameters())
        kept = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p in parameters:
                assert p.grad is not None
                p.copy_(p.grad)
            dense = self._model.to_dense() if hasattr(self._model, "to_dense") else self._model
            found = {name: p.detach().clone() for name, p in dense.named_parameters()}
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)
        return found

    def bytes(self) -> dict[str, int]:
        """Of parameters, gradients and optimizer state."""
        parameters = list(self._model.parameters())
        states = (v for s in self._optimizer.state.values() for v in s.values())
        return {
            "parameter_bytes": sum(p.nbytes for p in parameters),
            "gradient_bytes": sum(p.grad.nbytes for p in parameters if p.grad is not None),
            "optimizer_bytes": sum(v.nbytes for v in states if torch.is_tensor(v)),
        }


def engines(task: Task, names: Sequence[str]) -> dict[str, Step]:
    """A step of each, called once; a peer that fails is left out, and said so."""
    made = {}
    for name in names:
        try:
            made[name] = _engine(task, name)
            made[name]()  # some compile now
        except Exception as error:
            if name == "sparse":
                raise
            made.pop(name, None)
            print(f"# {name} left out: {str(error).strip().partition(chr(10))[0]}", flush=True)
    return made


def _engine(task: Task, name: str) -> Step:
    if name == "sparse":
        model: Any = convert_for_training(copy.deepcopy(task.model), task.masks, task.images)
        return Step(model.train(), model, None, task.images, task.labels)
    model = copy.deepcopy(task.model)
    images = task.images
    if name != "nchw":
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    forward = torch.compile(model) if name.startswith("inductor") else model
    return Step(model, forward, task.masks, images, task.labels, bf16=name.endswith("bf16"))


def check(task: Task, steps: Mapping[str, Step]) -> dict[str, dict[str, float]]:
    """Relative errors of the first loss and of all gradients together, against float64.

    Args:
        steps: of `engines`, called once.

    Raises:
        UserError: an engine does not train the same function.
    """
    model = copy.deepcopy(task.model).double()
    exact = Step(model, model, task.masks, task.images.double(), task.labels)
    loss, gradients = exact(), exact.gradients()
    whole = torch.cat([g.flatten() for g in gradients.values()])
    least = FLOOR * float(whole.norm())
    errors, each = {}, {}
    for name, step in steps.items():
        off, found = abs(step.loss - loss) / abs(loss), step.gradients()
        allowed = LOSS["bf16" if name in BF16 else "float32"]
        if not off <= allowed:
            raise UserError(
                f"{name} does not train the same function.",
                f"Its loss is off by {off:.1e}; {allowed:.0e} is allowed.",
            )
        joined = torch.cat([found[n].flatten() for n in gradients])
        errors[name] = {"loss": off, "gradients": distance(joined, whole)}
        each[name] = {
            n: float((found[n].double() - g).norm()) / max(float(g.norm()), least)
            for n, g in gradients.items()
        }
    for n, error in each.get("sparse", {}).items():
        dense = max((of[n] for name, of in each.items() if name in FLOAT32), default=0.0)
        limit = max(TOLERANCE, TIMES * dense)
        if not error <= limit:
            raise UserError(
                "sparse does not train the same function.",
                f"Its gradient of {n} is off by {error:.1e}; {limit:.1e} is allowed.",
            )
    return errors


def measure_cell(row: Row, sparsity: float, repeats: int, dense: Sequence[str]) -> dict[str, Any]:
    """One cell: the speedups over the best dense engines, and everything they were made of."""
    task = Task.random(row.model, row.pixels, row.batch, sparsity)
    steps = engines(task, list(dict.fromkeys(["nchw", *dense, "sparse"])))
    errors = check(task, steps)
    steps = {name: step for name, step in steps.items() if name in (*dense, "sparse")}
    seconds = interleaved(steps, repeats)
    cell: dict[str, Any] = {
        "mac_density": macs(task.model, row.pixels, task.masks).ratio,
        "errors": errors,
        "median_s": {name: float(torch.tensor(s).median()) for name, s in seconds.items()},
        "bytes": {n: steps[n].bytes() for n in (next(iter(steps)), "sparse")},
    }
    goal = dict(zip(SPARSITIES, row.goals, strict=True)).get(sparsity)
    groups = {"float32": (FLOAT32, goal), "any": (FLOAT32 + BF16, ANY.get(sparsity))}
    for name, (admitted, wanted) in groups.items():
        rivals = [n for n in steps if n in admitted]
        if rivals:
            best = fastest(seconds, rivals)
            figures = ratio(seconds[best], seconds["sparse"])
            left_out = [n for n in dense if n in admitted and n not in steps]
            cell[name] = {**figures, "goal": wanted, "best_dense": best, "left_out": left_out}
    return cell


def peaks(row: Row, sparsity: float) -> dict[str, Any]:
    """Peak bytes of a process that trains, dense in both layouts and sparse."""
    of = (row.model, row.pixels, row.batch, sparsity)
    return {
        name: in_process("training", name, *of, environment=dict(os.environ))
        for name in ("nchw", "channels-last", "sparse")
    }


def main() -> int:
    """Print both tables; the exit code is 0 whether goals are met or not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds of a cell")
    parser.add_argument(
        "--dense", nargs="+", default=[*FLOAT32, *BF16],
        choices=[*FLOAT32, *BF16], help="dense engines",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="without processes for memory")
    add_options(parser)
    options = parser.parse_args()
    cells = Cells(options.json, "sparse_training", options.again)
    print(machine())
    for name in options.rows:
        row = ROWS[name]
        print(f"{row.label} [{name}]")
        for sparsity in options.sparsities:
            key = {"row": row.label, "sparsity": sparsity, "repeats": options.repeats}
            key["engines"] = options.dense
            cell = cells.get(key, lambda r=row, s=sparsity: measure_cell(
                r, s, options.repeats, options.dense
            ))  # fmt: skip
            _print(cell)
            if not options.no_memory:
                key = {"row": row.label, "sparsity": sparsity, "memory": True}
                _print_memory(cells.get(key, lambda r=row, s=sparsity: {"of": peaks(r, s)}))
    return 0


def _print(cell: dict[str, Any]) -> None:
    medians = ", ".join(f"{k} {1e3 * v:.0f}" for k, v in cell["median_s"].items())
    errors = ", ".join(f"{k} {v['gradients']:.0e}" for k, v in cell["errors"].items())
    head = f"  {cell['sparsity']:>4.0%} (MACs {cell['mac_density']:.3f})"
    for name, words in (("float32", "best dense fp32"), ("any", "best dense incl. bf16")):
        if name in cell:
            print(f"{head}  {shown(cell[name])}  against {words}, {cell[name]['best_dense']}")
    kept = "  (was there)" if cell.get("was_there") else ""
    print(f"        ms: {medians}; errors of gradients: {errors}{kept}", flush=True)


def _print_memory(cell: dict[str, Any]) -> None:
    parts = []
    for name, found in cell["of"].items():
        trained = sum(found[f"{k}_bytes"] for k in ("parameter", "gradient", "optimizer"))
        parts.append(f"{name} {trained / 2**20:.0f} (peak {found['peak_bytes'] / 2**20:.0f})")
    print(f"        parameters, gradients, optimizer, MiB: {', '.join(parts)}", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))

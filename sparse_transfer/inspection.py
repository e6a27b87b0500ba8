"""A network layer by layer: shape, density, share of the work, dead channels, milliseconds.

The time of a layer is that of the module alone, called by PyTorch on the activations that reach it
in the whole network, so the sum leaves out normalisation, activations and everything that an engine
would fuse. PyTorch multiplies zeros like any number: this is the dense time, whatever the mask. A
sparse time is there for every backend that says it uses zeros.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_transfer import checkpoint, cost, latency, models, plugins, signals, weights
from sparse_transfer.backends import device, tolerance, uses_zeros
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError
from sparse_transfer.models import LoadedModel
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.seeds import derive

REPEATS = 6  # timed calls of each layer: the fewest that have an interval
NO_SPARSE_TIME = "No backend here uses zeros, so there is no column of sparse times."


@dataclass(frozen=True)
class LayerRow:
    """One convolution or linear layer.

    Attributes:
        layer: the module's path.
        shape: of the weight, (out, in / groups, height, width) or (out, in).
        density: share of weights that are not zero.
        macs: multiply-accumulates of one image, zeros included.
        macs_share: of all of the network's.
        outputs, dead_outputs: output channels, and those whose every weight is zero.
        inputs, dead_inputs: input channels, and those that no weight reads.
        seconds: of one call with the whole batch; None if it was not timed.
        sparse_seconds: by name of a backend that uses zeros.
    """

    layer: str
    shape: tuple[int, ...]
    weights: int
    density: float
    macs: int
    macs_share: float
    outputs: int
    dead_outputs: int
    inputs: int
    dead_inputs: int
    seconds: float | None = None
    sparse_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspected:
    """A network and its layers.

    Attributes:
        loaded: the network; masks: of a sparse checkpoint.
        rows: in module order.
        image_size, batch_size: of the timed calls.
        seconds: of one forward pass of the whole network; None if it was not timed.
    """

    loaded: LoadedModel
    masks: Masks | None
    rows: list[LayerRow]
    image_size: int
    batch_size: int
    seconds: float | None

    def totals(self) -> dict[str, Any]:
        """Sums over layers; MACs also with zeros skipped, in total and as a share."""
        macs = cost.macs(self.loaded.model, self.image_size, self.masks)
        count = sum(row.weights for row in self.rows)
        alive = sum(round(row.density * row.weights) for row in self.rows)
        timed = [row.seconds for row in self.rows if row.seconds is not None]
        return {
            "title": self.loaded.title,
            "layers": len(self.rows),
            "weights": count,
            "density": alive / count,
            "macs": macs.dense,
            "macs_zeros_skipped": macs.sparse,
            "outputs": sum(row.outputs for row in self.rows),
            "dead_outputs": sum(row.dead_outputs for row in self.rows),
            "inputs": sum(row.inputs for row in self.rows),
            "dead_inputs": sum(row.dead_inputs for row in self.rows),
            "layer_seconds": sum(timed) if timed else None,
            "seconds": self.seconds,
        }

    def layer_seconds(self) -> dict[str, float]:
        """Seconds by layer, of those that were timed."""
        return {row.layer: row.seconds for row in self.rows if row.seconds is not None}

    def to_json(self) -> dict[str, Any]:
        """Totals, settings and rows for programs."""
        return {
            "totals": self.totals(),
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "threads": torch.get_num_threads(),
            "rows": [asdict(row) for row in self.rows],
        }


def open_any(
    name: str, file: str = "pretrained", kwargs: Mapping[str, Any] | None = None
) -> tuple[LoadedModel, Masks | None]:
    """A checkpoint folder of ours, verified, or any model that an experiment could name.

    Args:
        name: a folder, or a model name (`resnet18`, `torchvision:…`, `local-dir:…`, `hf-hub:…`).
        file: `pretrained`, `random` or a weight file, for names.
        kwargs: arguments of the model, for names.

    Raises:
        UserError: there is no such folder or model, or its weights cannot be had.
    """
    folder = Path(name.removeprefix(weights.LOCAL_DIR)).expanduser()
    if (folder / checkpoint.RECORD).is_file():
        if file != "pretrained" or kwargs:
            raise UserError(
                f"{name} is a checkpoint: it has its own weights and arguments.",
                hint="Leave --weights and --kwarg out.",
            )
        opened = checkpoint.open_checkpoint(folder)
        return opened.loaded, opened.masks
    spec = ModelSpec(name=name, weights=file, kwargs=dict(kwargs or {}))
    return models.build(spec, num_classes=None, image_size=None, seed=0), None


def inspect_model(
    loaded: LoadedModel,
    masks: Masks | None,
    *,
    batch_size: int = 1,
    image_size: int | None = None,
    timed: bool = True,
) -> Inspected:
    """Measure every convolution and linear layer.

    Args:
        batch_size: images of the timed calls.
        image_size: pixels; None takes the model's own.
        timed: whether to time at all.

    Raises:
        UserError: the model cannot take images of this size.
    """
    model = loaded.model
    own = loaded.spec["pretrained_cfg"]["input_size"][-1]
    size = image_size if image_size is not None else own
    generator = torch.Generator().manual_seed(derive(0, "inspect"))
    try:
        if size < 1:
            raise ValueError("An image has at least one pixel.")
        example = torch.randn(batch_size, 3, size, size, generator=generator)
        macs = cost.macs(model, size, masks)
        inputs = layer_inputs(model, example)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"{loaded.title} cannot be run on images of {size} pixels.",
            str(error).partition("\n")[0],
            "Choose another --image-size.",
        ) from error
    rows = []
    for path, module in layers(model).items():
        name = f"{path}.weight"
        out, dead_out, read, dead_in = cost.channels(module)
        own = macs.layers[name].dense if name in macs.layers else 0
        signals.raise_if_stopped()
        times = layer_seconds(module, inputs[path]) if timed and path in inputs else {}
        weight = module.weight.detach()
        rows.append(
            LayerRow(
                layer=path,
                shape=tuple(weight.shape),
                weights=weight.numel(),
                density=int(weight.count_nonzero()) / weight.numel(),
                macs=own,
                macs_share=own / macs.dense,
                outputs=out,
                dead_outputs=dead_out,
                inputs=read,
                dead_inputs=dead_in,
                seconds=times.pop("dense", None),
                sparse_seconds=times,
            )
        )
    seconds = None
    if timed:
        with cost.evaluating(model), torch.inference_mode():
            measured = latency.measure(
                {"dense": model}, example, reference="dense", repeats=REPEATS
            )
        seconds = measured["dense"].median
    return Inspected(loaded, masks, rows, size, batch_size, seconds)


Layer = nn.Conv1d | nn.Conv2d | nn.Linear


def layers(model: nn.Module) -> dict[str, Layer]:
    """The convolutions and linear layers by path, in module order."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    }


def layer_inputs(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """What reaches each layer in one forward pass in eval mode: path → tensor (the last call's).

    A layer that the forward pass does not call is left out.
    """
    seen: dict[str, Tensor] = {}

    def remember(path: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[path] = inputs[0].detach()

        return hook

    hooks = [m.register_forward_pre_hook(remember(path)) for path, m in layers(model).items()]
    try:
        with cost.evaluating(model), torch.inference_mode():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def layer_seconds(module: nn.Module, x: Tensor, repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of one call: `dense` by PyTorch, and by every backend that uses zeros.

    Backends take (n, c, h, w) tensors: a linear layer after the pooling has `dense` alone.
    """
    alone = copy.deepcopy(module).eval()
    callables: dict[str, Any] = {"dense": alone}
    tolerances = {}
    with torch.inference_mode():
        for name in sparse_backends() if x.dim() == 4 else ():
            backend = plugins.load("backend", name)()
            callables[name] = backend.prepare(alone, x)
            tolerances[name] = tolerance(backend)
        measured = latency.measure(
            callables, x, reference="dense", repeats=repeats, tolerances=tolerances
        )
    return {name: result.median for name, result in measured.items()}


def sparse_backends() -> list[str]:
    """Backends for the CPU that say they use zeros and are available here."""
    found = []
    for name in plugins.names("backend"):
        backend = plugins.load("backend", name)
        is_here = device(backend) == "cpu" and backend().available() is None
        if uses_zeros(backend.uses_zeros) and is_here:
            found.append(name)
    return found

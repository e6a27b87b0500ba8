"""The sparse checkpoint: a timm model folder with its mask and a record of how it was made.

    config.json         architecture, model_args, pretrained_cfg: what timm reads
    model.safetensors   the weights, zeros included
    mask.safetensors    one packed bit per prunable weight; absent for a dense model
    shrink.json         which channels of the architecture are left; only where some are gone
    sparsity.json       what is claimed: method, sparsity by layer, digests, parents, opens_with

`timm.create_model("local-dir:PATH", pretrained=True)` opens the folder without this package where
`opens_with` is `timm`; where it is `sparse_transfer`, `sparse_transfer.load(PATH)` does, or timm
after `import sparse_transfer.models`. A network that lost channels opens here alone: timm, which
builds the full-size one, stops at the shapes of its weights. Opening it here checks every claim
first. `packed.py` makes one file of a folder, which opens here, too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparse_transfer import models, packed, weights
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError
from sparse_transfer.model_source import SHRINK
from sparse_transfer.models import LoadedModel
from sparse_transfer.pruning.masks import Masks, assert_zeros
from sparse_transfer.pruning.structured.shrink import ShrinkPlan
from sparse_transfer.store import file_digest, read_json, replacing, write_json

FORMAT = 1
SHRUNK_FORMAT = 2  # of a folder with a shrink plan, which older versions cannot rebuild
CONFIG, WEIGHTS, MASK, RECORD = (
    "config.json",
    "model.safetensors",
    "mask.safetensors",
    "sparsity.json",
)
# entries of the source's pretrained_cfg that stay true of the pruned model
KEPT_CONFIG = ("pool_size", "fixed_input_size", "first_conv", "classifier")


@dataclass(frozen=True)
class Checkpoint:
    """An opened and verified checkpoint; `masks` is None for a dense model.

    `loaded.shrink` says what the model lacks of the full-size network, None for nothing.

    Attributes:
        facts: what `save` was given: method, target, summary, recipe, parents …
    """

    model: nn.Module
    masks: Masks | None
    loaded: LoadedModel
    facts: dict[str, Any]

    @property
    def layout(self) -> str | None:
        """The foreign layout that the weights were imported from, as in `rigl`; None for ours."""
        return self.facts.get("imported", {}).get("layout")


def save(
    folder: Path,
    loaded: LoadedModel,
    model: nn.Module,
    masks: Masks | None,
    facts: Mapping[str, Any],
    shrink: ShrinkPlan | None = None,
) -> None:
    """Write a checkpoint folder; it exists completely or not at all.

    Args:
        folder: where; an older checkpoint there is replaced.
        loaded: how the architecture is built.
        model: the weights to save, plain modules with the original parameter names.
        masks: which weights are kept; masked weights must be exactly zero.
        facts: JSON-able facts for the record: method, target, summary, recipe, parents …
        shrink: what `model` lost since `loaded` was built; what `loaded` already lacked is added.

    Raises:
        UserError: the plan does not fit `loaded`, the disk is full, or the folder may not be
            written.
    """
    if masks is not None:
        assert_zeros(masks.to(next(model.parameters()).device), model)
    plan = (loaded.shrink or ShrinkPlan({})).then(shrink or ShrinkPlan({}))
    state = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in model.state_dict().items()
    }
    for name, mask in masks.items() if masks is not None else ():
        # a negative weight times a mask of 0 is -0, which would cost a bit in a packed file
        state[name].masked_fill_(~mask.cpu(), 0)
    with replacing(folder) as temporary:
        temporary.mkdir()
        write_json(temporary / CONFIG, hub_config(loaded, model))
        # the metadata is what transformers and timm's own files carry
        save_file(state, temporary / WEIGHTS, metadata={"format": "pt"})
        if masks is not None:
            _write_masks(temporary / MASK, masks)
        if plan:
            write_json(temporary / SHRINK, plan.to_json())
        parameters = [name for name, _ in model.named_parameters()]
        record = {
            "format": SHRUNK_FORMAT if plan else FORMAT,
            "title": loaded.title,
            "opens_with": "sparse_transfer" if plan else loaded.opens_with,
            "sparsity": _measure(state, parameters, masks),
            "mask_digest": masks.digest() if masks is not None else None,
            "weights_digest": file_digest(temporary / WEIGHTS),
            "facts": dict(facts),
        }
        if plan:
            record["shrink_digest"] = plan.digest()
        write_json(temporary / RECORD, record)


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Open a checkpoint, a folder or a packed file, after checking that it is what it claims.

    Checked: all files are there and complete; the digests of the mask and of the shrink plan; the
    plan fits the architecture; masked weights are exactly zero; the measured sparsity, by layer
    and in total; the digest of the weights.

    Raises:
        UserError: any of this fails; the reason is given.
    """
    if Path(folder).expanduser().is_file():
        with tempfile.TemporaryDirectory() as temporary:
            return unpack(Path(folder).expanduser(), Path(temporary) / "checkpoint")
    folder = weights.existing_folder(str(folder))
    record = _read_record(folder)
    _check_plan(folder, record)
    loaded = models.build(
        ModelSpec(name=f"{weights.LOCAL_DIR}{folder}"), num_classes=None, image_size=None, seed=0
    )
    model = loaded.model
    masks = _read_masks(folder, record) if record["mask_digest"] is not None else None
    state = model.state_dict()
    if masks is not None:
        _check_zeros(folder, masks, state)
    parameters = [name for name, _ in model.named_parameters()]
    _check_claim(folder, record["sparsity"], _measure(state, parameters, masks))
    if file_digest(folder / WEIGHTS) != record["weights_digest"]:
        raise _refused(
            folder, f"{WEIGHTS} is not the file that was saved: its SHA-256 differs from the record"
        )
    loaded = replace(
        loaded,
        title=record["title"],
        opens_with=record["opens_with"],
        declared_sparse=masks is not None,
        trained_on=record["facts"].get("trained_on"),
    )
    return Checkpoint(model, masks, loaded, record["facts"])


def load(path: Path | str) -> Checkpoint:
    """Open the checkpoint in a folder or packed file, verified; `.model` is in train mode.

    Raises:
        UserError: it is not a checkpoint, or not the one it claims to be.
    """
    return open_checkpoint(path)


def unpack(path: Path, folder: Path) -> Checkpoint:
    """Make the folder that a packed file was made of, byte for byte, and open it.

    Raises:
        UserError: the file is damaged or is not what its record claims; then no folder is made.
    """
    with replacing(folder) as temporary:
        packed.unpack(path, temporary)
        try:
            return open_checkpoint(temporary)
        except UserError as error:
            why = error.why or error.what
            raise UserError(
                f"The packed checkpoint {path} is refused.", why, "Copy or export it again."
            ) from error


def kept_weights(spec: ModelSpec) -> dict[str, int] | None:
    """Kept weights by layer of a masked checkpoint that a model is loaded from, as it claims.

    None for any other model. The claim is verified when the checkpoint is opened.
    """
    record = Path(spec.name.removeprefix(weights.LOCAL_DIR)) / RECORD
    if not spec.name.startswith(weights.LOCAL_DIR) or not record.is_file():
        return None
    layers = _read_record(record.parent)["sparsity"]["layers"]
    return {name: layer["kept"] for name, layer in layers.items()} or None


def imported(spec: ModelSpec) -> dict[str, Any]:
    """`{"imported": …}` where the weights come from a checkpoint of foreign origin, else `{}`.

    What is made from such a checkpoint passes it on: the layout decides how images are resized.
    Random weights and those of another file take the architecture alone.
    """
    record = Path(spec.name.removeprefix(weights.LOCAL_DIR)) / RECORD
    is_folder = spec.name.startswith(weights.LOCAL_DIR) and record.is_file()
    if not is_folder or spec.weights != "pretrained":
        return {}
    facts = _read_record(record.parent)["facts"]
    return {"imported": facts["imported"]} if "imported" in facts else {}


def hub_config(loaded: LoadedModel, model: nn.Module) -> dict[str, Any]:
    """The content of config.json in the layout of timm and the Hugging Face Hub."""
    source: Mapping[str, Any] = getattr(model, "pretrained_cfg", {})
    classes = models.model_classes(model)
    own = {key: source[key] for key in KEPT_CONFIG if key in source}
    own |= loaded.spec["pretrained_cfg"]
    return {
        "architecture": loaded.spec["architecture"],
        "num_classes": classes,
        "num_features": getattr(model, "num_features", None),
        "model_args": loaded.spec["model_args"],
        "pretrained_cfg": own | {"num_classes": classes, "custom_load": False},
    }


def _measure(
    state: Mapping[str, Tensor], parameters: list[str], masks: Masks | None
) -> dict[str, Any]:
    """Sparsity by the mask, as shares and as the integers behind them.

    `zeros` counts exact zeros whatever the mask says: a kept weight may be zero by chance.
    """
    zeros = {name: int((state[name] == 0).sum()) for name in parameters}
    total = sum(state[name].numel() for name in parameters)
    pruned = masks.total - masks.kept() if masks is not None else 0
    layers = {}
    if masks is not None:
        for name, mask in masks.items():
            size, kept = mask.numel(), int(mask.sum())
            layers[name] = {
                "sparsity": 1 - kept / size,
                "weights": size,
                "kept": kept,
                "zeros": zeros[name],
            }
    return {
        "prunable": masks.sparsity() if masks is not None else None,
        "all_parameters": pruned / total,
        "parameters": total,
        "zeros": sum(zeros.values()),
        "layers": layers,
    }


def _check_zeros(folder: Path, masks: Masks, state: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        if name not in state or state[name].shape != mask.shape:
            raise _refused(folder, f"Its mask is for a layer {name} that the model does not have")
        wrong = int((state[name][~mask] != 0).sum())
        if wrong:
            raise _refused(folder, f"{wrong} weights of {name} are not zero where the mask is")


def _check_claim(folder: Path, claimed: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if claimed == found:
        return
    if set(claimed["layers"]) != set(found["layers"]):
        raise _refused(folder, "Its record lists other layers than its mask")
    for name, layer in found["layers"].items():
        said = claimed["layers"][name]
        if said != layer:
            raise _refused(
                folder,
                f"{name} has {layer['kept']} weights kept and {layer['zeros']} zeros of "
                f"{layer['weights']} (sparsity {layer['sparsity']:.4f}), while the record claims "
                f"{said.get('kept')} and {said.get('zeros')} "
                f"(sparsity {_share(said.get('sparsity'))})",
            )
    pairs = [
        f"{key} {_share(found[key])}, claimed {_share(claimed.get(key))}"
        for key in ("prunable", "all_parameters", "zeros", "parameters")
        if found[key] != claimed.get(key)
    ]
    raise _refused(folder, f"The measured sparsity is not the claimed one: {'; '.join(pairs)}")


def _read_record(folder: Path) -> dict[str, Any]:
    for name in (RECORD, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} is not a complete checkpoint.",
                f"{name} is missing.",
                f"A plain timm folder is used as a model with `name: local-dir:{folder}`.",
            )
    record = read_json(folder / RECORD)
    known = {"title", "opens_with", "sparsity", "mask_digest", "weights_digest", "facts"}
    found = record.get("format") if isinstance(record, dict) else None
    if found == SHRUNK_FORMAT:
        known.add("shrink_digest")
    if found not in (FORMAT, SHRUNK_FORMAT) or known - set(record):
        raise _refused(
            folder,
            f"Its record has format {found}, or lacks entries; this version reads {FORMAT} "
            f"and {SHRUNK_FORMAT}",
        )
    if record["mask_digest"] is not None and not (folder / MASK).is_file():
        raise _refused(folder, f"{MASK} is missing")
    return record


def _check_plan(folder: Path, record: Mapping[str, Any]) -> None:
    """The shrink plan is there if and only if the record says so, and is the one it says."""
    claimed = record.get("shrink_digest")
    if not (folder / SHRINK).is_file():
        if claimed is not None:
            raise _refused(folder, f"{SHRINK} is missing")
        return
    if claimed is None:
        raise _refused(folder, f"{SHRINK} lies in it, while its record knows of none")
    try:
        plan = ShrinkPlan.from_json(read_json(folder / SHRINK))
    except UserError as error:
        raise _refused(folder, f"{SHRINK} is damaged: {error.why.removesuffix('.')}") from error
    if plan.digest() != claimed:
        raise _refused(folder, "The digest of its shrink plan differs from the record")


def _write_masks(path: Path, masks: Masks) -> None:
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    save_file(dict(masks.pack()), path, metadata={"shapes": json.dumps(shapes)})


def _read_masks(folder: Path, record: Mapping[str, Any]) -> Masks:
    try:
        with safe_open(folder / MASK, framework="pt") as file:
            shapes = json.loads((file.metadata() or {})["shapes"])
            packed = {name: file.get_tensor(name) for name in shapes}
        masks = Masks.unpack(packed, {name: torch.Size(shape) for name, shape in shapes.items()})
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise _refused(folder, f"{MASK} is cut off or damaged ({error})") from error
    if masks.digest() != record["mask_digest"]:
        raise _refused(folder, "The digest of its mask differs from the record")
    return masks


def _refused(folder: Path, reason: str) -> UserError:
    return UserError(
        f"The checkpoint {folder} is refused.",
        f"{reason}.",
        "It was changed or damaged after it was saved: copy it again, or run its pruning again.",
    )


def _share(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)

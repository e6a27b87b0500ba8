"""Weight files from outside: find them, read them without pickle, and name them by content.

`.safetensors` is preferred; `.pth`, `.pt` and `.bin` are read with `weights_only=True` alone, which
refuses everything but tensors and plain containers. Nothing here imports torch before it reads.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError
from sparse_transfer.store import digest, file_digest, read_json

if TYPE_CHECKING:
    from torch import Tensor

LOCAL_DIR, HUB = "local-dir:", "hf-hub:"
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # also .pth.tar
# What the common training scripts wrap a state dict in.
WRAPPERS = ("state_dict", "model_state_dict", "model")


def content_hash(spec: ModelSpec) -> str | None:
    """SHA-256 (hex) of the files that a model's weights come from, or None without such files.

    A local file is named by its bytes, a `local-dir:` by all of its JSON and weight files, or by
    those that give the architecture where the weights are others. The record of a checkpoint from
    another project counts without the name that its file had, which says nothing about it. Random
    weights and hub tags have no file of ours; they are named by architecture, seed and tag.

    Raises:
        UserError: a file or folder is named that is not there.
    """
    stated = spec.weights not in ("pretrained", "random")
    own = existing_file(spec.weights) if stated else None
    if not spec.name.startswith(LOCAL_DIR):
        return file_digest(own) if own else None
    folder = existing_folder(spec.name.removeprefix(LOCAL_DIR))
    suffixes = (".json", ".safetensors", *PICKLES)
    files = [path for path in sorted(folder.iterdir()) if path.suffix in suffixes]
    if spec.weights != "pretrained":  # the folder gives the architecture alone
        files = [path for path in files if path.name in ("config.json", "shrink.json")]
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {_digest(path)}\n".encode())
    if own:
        total.update(f"weights {file_digest(own)}\n".encode())
    return total.hexdigest()


def _digest(path: Path) -> str:
    """SHA-256 of a file; of an imported checkpoint's record, of all but its file's name."""
    if path.name != "sparsity.json":
        return file_digest(path)
    try:
        record = dict(read_json(path))
        facts = dict(record["facts"])
        origin = dict(facts["imported"])
    except (KeyError, TypeError, ValueError):  # our own, or a file of theirs with that name
        return file_digest(path)
    origin.pop("file", None)
    record.pop("title", None)
    return digest(record | {"facts": facts | {"imported": origin}})


def existing_file(text: str) -> Path:
    """The path of a weight file that the user named.

    Raises:
        UserError: there is no such file, or its ending is not one we read.
    """
    path = Path(text).expanduser()
    if path.suffix not in (".safetensors", *PICKLES):
        raise UserError(
            f"'{text}' does not name any weights.",
            "Weights are `pretrained`, `random`, or the path of a .safetensors or .pth file.",
        )
    if not path.is_file():
        raise UserError(
            f"The weights {text} cannot be opened.", "There is no such file.", "Check the path."
        )
    return path


def existing_folder(text: str) -> Path:
    """The folder of a `local-dir:` model.

    Raises:
        UserError: there is no such folder, or no config.json in it.
    """
    folder = Path(text).expanduser()
    if folder.is_file():
        raise UserError(
            f"The model folder {text} cannot be opened.",
            "It is a file.",
            f"A packed checkpoint becomes a folder by `sparse-transfer import {text}`; the weights "
            "of other projects by the same with --arch.",
        )
    if not (folder / "config.json").is_file():
        found = "It has no config.json." if folder.is_dir() else "There is no such folder."
        raise UserError(
            f"The model folder {text} cannot be opened.",
            found,
            "`local-dir:` takes a folder in timm's layout: config.json beside model.safetensors.",
        )
    return folder


def in_folder(folder: Path) -> Path:
    """The weight file of a model folder, safetensors first.

    Raises:
        UserError: the folder holds none.
    """
    preferred = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    endings = (".safetensors", *PICKLES)
    others = [path for ending in endings for path in sorted(folder.glob(f"*{ending}"))]
    for path in (*preferred, *others):
        if path.is_file() and path.name != "mask.safetensors":
            return path
    raise UserError(
        f"The model folder {folder} holds no weights.",
        f"None of {', '.join(endings)} is in it.",
        "Save the model again, or give `weights: random`.",
    )


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: parameter name → tensor on the CPU.

    Wrappers (`state_dict`, `model`) and DistributedDataParallel's `module.` prefix are removed.

    Raises:
        UserError: the file is cut off, not a weight file, or holds more than tensors.
    """
    found = state_dict(contents(path), path)
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def contents(path: Path) -> Any:
    """What a weight file holds, wrappers and all: tensors and plain containers alone.

    Raises:
        UserError: the file is cut off, not a weight file, or holds pickled objects.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(
            f"{path} cannot be read.",
            f"The file is cut off or damaged ({error}).",
            "Copy it again.",
        ) from error
    except Exception as error:  # torch.load raises what its unpickler and zip reader raise
        raise UserError(
            f"{path} cannot be read as plain weights.",
            str(error).partition("\n")[0],
            "Only files of tensors are opened, never pickled objects: save `model.state_dict()`.",
        ) from error


def state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a file holds, taken out of its wrappers.

    Raises:
        UserError: there is none, or it holds more than named tensors.
    """
    import torch

    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise UserError(
            f"{path} holds no state dict.",
            f"It holds a {type(content).__name__} with other things than tensors.",
            "Save `model.state_dict()`.",
        )
    unnamed = [name for name in content if not isinstance(name, str)]
    if unnamed:
        raise UserError(
            f"{path} holds no state dict.",
            f"The names in one are text; here is {unnamed[0]!r}, a {type(unnamed[0]).__name__}.",
            "Save `model.state_dict()`.",
        )
    return content

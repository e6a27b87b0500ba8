"""What a model spec stands for: an architecture, its arguments, and where the weights are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from timm.models import (
    PretrainedCfg,
    get_pretrained_cfg,
    is_model,
    list_models,
    list_pretrained,
)

# the first three register their models with timm
from sparse_transfer import (
    hub,
    rigl_resnet,  # noqa: F401
    small_models,  # noqa: F401
    torchvision_models,
    weights,
)
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.store import read_json

TRANSFORM = ("mean", "std", "input_size", "interpolation", "crop_pct", "crop_mode")
CHANNELS = 3
CONFIGURABLE = (*TRANSFORM, "num_classes")
# where a pretrained_cfg says that weights are; a folder's weights are in the folder
LOCATIONS = ("url", "file", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
SHRINK = "shrink.json"

Weights = Literal["random", "hub", "file"]


@dataclass(frozen=True)
class Source:
    """A model spec with its names resolved.

    Attributes:
        config: timm's pretrained_cfg of the architecture and tag, `num_classes` always in it.
        kind: random weights; a tag's or a Hub repository's; or those in `file`.
        overrides: entries of pretrained_cfg that the user states.
        declared_sparse: `file` lies beside a mask.
        shrink: the shrink plan of a folder whose network lost channels.
        classes_stated: by the user; otherwise a weight file speaks for itself.
    """

    architecture: str
    title: str
    config: dict[str, Any]
    model_args: dict[str, Any]
    kind: Weights
    file: Path | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    declared_sparse: bool = False
    shrink: Path | None = None
    classes_stated: bool = False


def resolve(spec: ModelSpec) -> Source:
    """Resolve every name of a spec; no weights are read, and only a Hub model asks the network.

    Raises:
        UserError: an architecture, tag, file, folder or configuration entry does not exist, or
            `mean` or `std` is not one number for each of the three channels.
    """
    for key in spec.pretrained_cfg:
        if key not in CONFIGURABLE:
            raise unknown_name("pretrained_cfg entry", key, CONFIGURABLE)
    for key in ("mean", "std"):
        if key in spec.pretrained_cfg:
            _check_channels(key, spec.pretrained_cfg[key])
    if spec.name.startswith(weights.LOCAL_DIR):
        source = _in_folder(weights.existing_folder(spec.name.removeprefix(weights.LOCAL_DIR)))
    elif spec.name.startswith("checkpoint:"):
        raise UserError(
            f"The model {spec.name} is not there.",
            "`checkpoint:` names what an earlier arm of the same experiment makes.",
            f"Name a finished one by its folder: {weights.LOCAL_DIR}PATH.",
        )
    elif spec.name.startswith((weights.HUB, "hf_hub:")):
        source = _on_hub(spec.name)
    elif spec.name.startswith(torchvision_models.PREFIX):
        source = _in_torchvision(spec.name)
    else:
        source = _in_registry(spec.name)
    if spec.weights == "random":
        source = replace(
            source,
            kind="random",
            title=f"{source.architecture} (random weights)",
            file=None,
            declared_sparse=False,
        )
    elif spec.weights != "pretrained":
        file = weights.existing_file(spec.weights)
        title = f"{source.architecture} ({file.name})"
        source = replace(source, kind="file", title=title, file=file, declared_sparse=False)
    elif source.kind == "hub" and not _has_weights(source.config):
        raise UserError(
            f"There are no pretrained weights for {spec.name}.",
            "timm knows the architecture only.",
            "Give `weights: random` or the path of a .safetensors or .pth file.",
        )
    args = source.model_args | spec.kwargs
    overrides = dict(spec.pretrained_cfg)
    # `num_classes` may come as an argument or as configuration; both mean the same
    classes = args.pop("num_classes", None) or overrides.pop("num_classes", None)
    config = source.config if classes is None else source.config | {"num_classes": classes}
    return replace(
        source,
        model_args=args,
        overrides=overrides,
        config=config,
        classes_stated=classes is not None,
    )


def _check_channels(key: str, value: object) -> None:
    """Images are RGB everywhere here, whatever a network could take."""
    least = "above 0" if key == "std" else "finite"
    numbers = value if isinstance(value, list | tuple) else []
    fine = [
        isinstance(number, int | float)
        and not isinstance(number, bool)
        and math.isfinite(number)
        and (key != "std" or number > 0)
        for number in numbers
    ]
    if len(fine) != CHANNELS or not all(fine):
        raise UserError(
            f"The pretrained_cfg entry {key}={value} cannot be used.",
            f"Images have {CHANNELS} channels, and each needs a number, {least}.",
            f"Write {key}=[R, G, B] with values of images in [0, 1], as in [0.5, 0.5, 0.5].",
        )


def _in_registry(name: str) -> Source:
    architecture, _, tag = name.partition(".")
    if not is_model(architecture):
        if Path(name).expanduser().is_dir():
            raise UserError(
                f"There is no model named '{name}'.",
                "It is a folder.",
                f"Did you mean {weights.LOCAL_DIR}{name}?",
            )
        if architecture in torchvision_models.torchvision_names():
            raise UserError(
                f"timm has no model named '{name}'.",
                "torchvision has.",
                f"Did you mean {torchvision_models.PREFIX}{name}?",
            )
        raise unknown_name("model", name, list_models())
    try:
        config = get_pretrained_cfg(name)
    except RuntimeError as error:
        raise unknown_name("set of weights", name, list_pretrained(f"{architecture}.*")) from error
    known: dict[str, Any] = config.to_dict() if config else {"num_classes": 1000}
    tag = known.get("tag") or tag
    title = f"{architecture}.{tag}" if tag else architecture
    known.setdefault("architecture", architecture)
    return Source(architecture, title, known, {}, "hub")


def _in_torchvision(name: str) -> Source:
    wanted, _, tag = name.removeprefix(torchvision_models.PREFIX).partition(".")
    known = torchvision_models.torchvision_names()
    if wanted not in known:
        raise unknown_name("torchvision model", wanted, known)
    source = _in_registry(f"{torchvision_models.REGISTERED}{wanted}" + (f".{tag}" if tag else ""))
    title = source.title.removeprefix(torchvision_models.REGISTERED)
    return replace(source, title=f"{torchvision_models.PREFIX}{title}")


def _in_folder(folder: Path) -> Source:
    architecture, config, args = _described(folder / "config.json")
    return Source(
        architecture,
        f"{architecture} ({folder.resolve().name})",
        {key: value for key, value in config.items() if key not in LOCATIONS},
        args,
        "file",
        file=weights.in_folder(folder),
        declared_sparse=(folder / "mask.safetensors").is_file(),
        shrink=folder / SHRINK if (folder / SHRINK).is_file() else None,
    )


def _on_hub(name: str) -> Source:
    repository = name.partition(":")[2]
    with hub.errors_explained(name):
        path = hub.cached(repository, "config.json")
        if reason := hub.unreachable(repository):
            if path is None:
                raise OSError(reason)
        else:
            path = hub.downloaded(repository, "config.json")
    architecture, config, args = _described(Path(path))
    config |= {"hf_hub_id": repository, "source": "hf-hub"}
    return Source(architecture, f"{weights.HUB}{repository}", config, args, "hub")


def _described(path: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Architecture, pretrained_cfg and arguments in a config.json of timm."""
    stored = read_json(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("architecture"), str):
        raise UserError(
            f"{path} does not describe a timm model.",
            "It has no `architecture`.",
            "Save the model with timm's `save_for_hf`, or give its weight file as `weights`.",
        )
    # timm's first layout had the entries of pretrained_cfg at the top
    config = stored.get("pretrained_cfg") or stored
    known = {entry.name for entry in fields(PretrainedCfg)}
    config = {key: _tuple(value) for key, value in config.items() if key in known}
    config["architecture"] = stored["architecture"]
    config["num_classes"] = stored.get("num_classes") or config.get("num_classes") or 1000
    return stored["architecture"], config, dict(stored.get("model_args") or {})


def _has_weights(config: Mapping[str, Any]) -> bool:
    return any(config.get(key) for key in ("url", "file", "hf_hub_id", "state_dict"))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

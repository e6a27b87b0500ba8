"""Upstream models: any timm architecture with weights from timm, the Hub, a folder or a file.

Importing this module also registers with timm the small-image variants (`small_models.py`),
torchvision's networks (`torchvision_models.py`) and RigL's ResNet-50 (`rigl_resnet.py`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from timm.models import is_model, list_models
from torch import Tensor, nn

from sparse_transfer import hub, rigl_resnet, small_models, torchvision_models, weights
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.model_source import TRANSFORM, Source, resolve
from sparse_transfer.pruning.structured.shrink import ShrinkPlan
from sparse_transfer.seeds import derive
from sparse_transfer.store import digest, read_json
from sparse_transfer.weights import content_hash

__all__ = [
    "LoadedModel",
    "build",
    "classifiers",
    "content_hash",
    "create",
    "features",
    "head_name",
    "load_strictly",
    "mismatch",
    "new_head",
    "pooled",
    "resolve",
    "rows_of_head",
    "skeleton",
    "trained_on",
    "with_transform",
]

OpensWith = Literal["timm", "sparse_transfer"]
OURS = frozenset((*small_models.NAMES, *rigl_resnet.NAMES, *torchvision_models.NAMES))


@dataclass(frozen=True)
class LoadedModel:
    """A model with everything needed to build it again.

    Attributes:
        model: the network, plain modules with timm's parameter names.
        title: the resolved name, with timm's tag where the weights are a tag's.
        spec: `architecture`, `model_args`, and `pretrained_cfg` (mean, std, input_size,
            interpolation, crop_pct, crop_mode, num_classes) as in a timm config.json.
        opens_with: who can build the architecture.
        declared_sparse: the weights come from a checkpoint folder that holds a mask.
        shrink: what the model lacks of the full-size network of its spec; None for nothing.
        trained_on: the task that the classifier is known to tell apart, from `trained_on`.
    """

    model: nn.Module
    title: str
    spec: dict[str, Any]
    opens_with: OpensWith
    declared_sparse: bool = False
    shrink: ShrinkPlan | None = None
    trained_on: Mapping[str, Any] | None = None


def trained_on(task: str, classes: Sequence[str]) -> dict[str, Any]:
    """How a checkpoint records the task of its classifier: name, classes, and a digest of these.

    Args:
        classes: their names, in the order of the outputs.
    """
    return {"name": task, "classes": digest(list(classes)), "names": list(classes)}


def build(
    spec: ModelSpec, *, num_classes: int | None, image_size: int | None, seed: int
) -> LoadedModel:
    """Build a model and load its weights.

    A checkpoint folder whose network lost channels gives the smaller network, also for
    `weights: random`: then the full-size network's initial weights, cut like the trained ones.

    Args:
        spec: the model as an experiment names it.
        num_classes: classes of the upstream task. A pretrained head with another number of
            classes is replaced by a new one; None keeps what the weights or the tag have.
        image_size: pixels of the square input; recorded, and given to models of fixed input size.
        seed: decides random weights and new heads, and nothing else.

    Raises:
        UserError: unknown names, weights that do not fit, cannot be read or cannot be fetched.
    """
    source = resolve(spec)
    if source.kind == "random":
        classes = num_classes or source.config["num_classes"]
        args = _sized(source, image_size)
        with seeded(derive(seed, "init")):
            model = create(source.architecture, source.config, args, num_classes=classes)
        _shrink(model, source)
    else:
        model, args = _pretrained(source, image_size)
    if num_classes is not None and model_classes(model) != num_classes:
        new_head(model, num_classes, seed)
    return _loaded(source, model, args, image_size)


def skeleton(spec: ModelSpec, *, num_classes: int | None, image_size: int | None) -> LoadedModel:
    """The model on the meta device: shapes and names without weights, for plans and checks.

    Raises:
        UserError: unknown names, or arguments that the architecture does not take.
    """
    source = resolve(spec)
    args = _sized(source, image_size)
    classes = num_classes or source.config["num_classes"]
    with torch.device("meta"):
        model = create(source.architecture, source.config, args, num_classes=classes)
    _shrink(model, source)
    return _loaded(source, model, args, image_size)


def create(
    architecture: str,
    config: Mapping[str, Any],
    model_args: Mapping[str, Any],
    *,
    num_classes: int,
    pretrained: bool = False,
) -> nn.Module:
    """Build an architecture through timm, with timm's own initial weights or those `config` names.

    Raises:
        UserError: the architecture is unknown or does not take these arguments.
    """
    if not is_model(architecture):
        raise unknown_name("model", architecture, list_models())
    try:
        return timm.create_model(
            architecture,
            pretrained=pretrained,
            pretrained_cfg=dict(config),
            num_classes=num_classes,
            **copy.deepcopy(dict(model_args)),
        )
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        given = ", ".join(f"{key}={value}" for key, value in model_args.items()) or "no arguments"
        raise UserError(
            f"{architecture} could not be built with {given}.",
            str(error) or type(error).__name__,
            "The arguments are `kwargs` of the model; see the signature of the timm model.",
        ) from error


@dataclass(frozen=True)
class Mismatch:
    """How the names and shapes of a state dict differ from a model's; falsy for not at all.

    A missing `num_batches_tracked` is forgiven: no inference reads it and old files lack it.

    Attributes:
        missing: what the model has and the state dict lacks, by name, with the model's shape.
        unexpected: what only the state dict has, with its shape.
        reshaped: what both have in different shapes: (state dict's, model's).
    """

    missing: dict[str, tuple[int, ...]]
    unexpected: dict[str, tuple[int, ...]]
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    def __str__(self) -> str:
        """The first three of each kind."""
        parts = [
            _few("missing", list(self.missing), lambda name: f"{name} {self.missing[name]}"),
            _few("unexpected", list(self.unexpected), lambda n: f"{n} {self.unexpected[n]}"),
            _few(
                "of another shape",
                list(self.reshaped),
                lambda n: "{} {}, expected {}".format(n, *self.reshaped[n]),
            ),
        ]
        return "; ".join(part for part in parts if part)


def mismatch(model: nn.Module, state: Mapping[str, Tensor]) -> Mismatch:
    """Compare a state dict with what a model has; the model may be on the meta device."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    needed = [name for name in own if not name.endswith("num_batches_tracked")]
    return Mismatch(
        {name: own[name] for name in needed if name not in given},
        {name: shape for name, shape in given.items() if name not in own},
        {n: (given[n], own[n]) for n in own if n in given and given[n] != own[n]},
    )


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load a state dict whose names and shapes must be the model's.

    Raises:
        UserError: names or shapes differ; the first of each kind are shown.
    """
    if found := mismatch(model, state):
        raise UserError(
            f"The weights in {source} do not fit the model.",
            str(found),
            "Check the architecture, its `kwargs` and `pretrained_cfg: {num_classes: …}`; "
            "weights under other names are brought in by `sparse-transfer import`.",
        )
    model.load_state_dict(dict(state), strict=False)


def new_head(model: nn.Module, num_classes: int, seed: int) -> None:
    """Replace the classifier by a new, dense one with torch's default initialisation, in place.

    The weights are a function of `seed` and the head's shape alone, drawn on the CPU, and so the
    same for every sparsity and device. The global random state is left as it was.
    """
    device = next(model.parameters()).device
    with seeded(derive(seed, "head")):
        model.reset_classifier(num_classes)  # pyright: ignore[reportCallIssue]
        for head in classifiers(model):
            for module in head.modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to("cpu").reset_parameters()
    model.to(device)


def head_name(model: nn.Module) -> set[str]:
    """The parameter names of the classifier, e.g. {"fc.weight", "fc.bias"}."""
    own = {id(parameter) for head in classifiers(model) for parameter in head.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Pooled features before the classifier: (n, 3, h, w) → (n, d)."""
    return pooled(model, model.forward_features(images))  # pyright: ignore[reportCallIssue]


def pooled(model: nn.Module, maps: Tensor) -> Tensor:
    """What `forward_features` gave → features (n, d)."""
    return model.forward_head(maps, pre_logits=True).flatten(1)  # pyright: ignore[reportCallIssue]


def with_transform(loaded: LoadedModel, **transform: Any) -> LoadedModel:
    """The same model with other input statistics on record, e.g. those it was trained with.

    Args:
        transform: any of mean, std, input_size, interpolation, crop_pct, crop_mode.
    """
    unknown = sorted(set(transform) - set(TRANSFORM))
    if unknown:
        raise ValueError(f"not part of an input transform: {unknown}")
    config = loaded.spec["pretrained_cfg"] | {key: _plain(v) for key, v in transform.items()}
    return replace(loaded, spec=loaded.spec | {"pretrained_cfg": config})


def check_teacher(spec: ModelSpec, classes: int) -> None:
    """Refuse to learn from a model whose classifier knows nothing of the task.

    Raises:
        UserError: its weights are random, or its classifier is replaced by a new one.
    """
    reason = "Its weights are random."
    if spec.weights != "random":
        own = model_classes(skeleton(spec, num_classes=None, image_size=None).model)
        if own == classes:
            return
        reason = (
            f"Its classifier tells {own} classes apart and is replaced: the task has {classes}."
        )
    raise UserError(
        f"{spec.title} cannot be the teacher of `distillation`.",
        reason,
        "Train it on the task first (`prune --method dense`), or leave distillation out.",
    )


def model_classes(model: nn.Module) -> int:
    """The number of classes that the classifier tells apart."""
    return int(model.num_classes)  # pyright: ignore[reportArgumentType]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with torch's CPU generator seeded; its state before is restored after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def opens_with(architecture: str) -> OpensWith:
    """Who knows the architecture: plain timm, or timm after importing this module."""
    return "sparse_transfer" if architecture in OURS else "timm"


def _pretrained(source: Source, image_size: int | None) -> tuple[nn.Module, dict[str, Any]]:
    """The model with its stored weights and the arguments that build it at `image_size`."""
    if source.kind == "hub":
        args = _sized(source, image_size)
        return _from_hub(source, args), args
    assert source.file is not None
    args = dict(source.model_args)
    state = weights.read(source.file)
    classes = None if source.classes_stated else rows_of_head(source.config, state)
    if classes is None:
        classes = source.config["num_classes"]
    config = source.config | _fitting_size(source)
    with seeded(0):  # every weight is overwritten
        model = create(source.architecture, config, args, num_classes=classes)
    _shrink(model, source)
    load_strictly(model, state, source.file)
    wanted = _sized(source, image_size)
    if wanted.get("img_size") != args.get("img_size"):
        _resize_input(model, source, wanted["img_size"])
    return model, wanted


def _from_hub(source: Source, args: Mapping[str, Any]) -> nn.Module:
    config = dict(source.config)
    repository = config.get("hf_hub_id")
    with hub.errors_explained(source.title):
        if repository and (reason := hub.unreachable(repository)):
            # timm would retry for a minute: take the cached file, if there is one, ourselves
            names = (config.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin")
            files = [file for name in names if name and (file := hub.cached(repository, name))]
            if not files:
                raise OSError(reason)
            config |= {"file": files[0], "source": None, "custom_load": False}
        with seeded(0):  # every weight is overwritten
            classes = config["num_classes"]
            return create(source.architecture, config, args, num_classes=classes, pretrained=True)


def rows_of_head(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> int | None:
    """How many classes the classifier in a state dict has, if it can be told."""
    names = config.get("classifier") or ()
    for name in [names] if isinstance(names, str) else names:
        if f"{name}.weight" in state:
            return int(state[f"{name}.weight"].shape[0])
    return None


def _sized(source: Source, image_size: int | None) -> dict[str, Any]:
    """The model arguments for an input of `image_size` pixels."""
    args = dict(source.model_args)
    if image_size is not None and source.config.get("fixed_input_size"):
        args["img_size"] = image_size
    return args


def _fitting_size(source: Source) -> dict[str, Any]:
    """The input size that stored weights were made for, where the user states one."""
    size = source.overrides.get("input_size")
    return {"input_size": tuple(size)} if isinstance(size, list | tuple) else {}


def _resize_input(model: nn.Module, source: Source, image_size: int) -> None:
    if not hasattr(model, "set_input_size"):
        raise UserError(
            f"{source.title} cannot take images of {image_size} pixels.",
            "Its input size is fixed, and timm cannot change it after the weights are loaded.",
            f"Use `preprocess: {{image_size: {source.config['input_size'][-1]}}}`.",
        )
    model.set_input_size(img_size=image_size)  # pyright: ignore[reportCallIssue]


def _loaded(
    source: Source, model: nn.Module, args: dict[str, Any], image_size: int | None
) -> LoadedModel:
    config = source.config | source.overrides
    channels = tuple(config.get("input_size") or (3, 224, 224))
    if image_size is not None:
        config["input_size"] = (args.get("in_chans", channels[0]), image_size, image_size)
    own: dict[str, Any] = {key: _plain(config[key]) for key in TRANSFORM if key in config}
    if source.kind != "random" and config.get("license"):
        own["license"] = config["license"]
    own["num_classes"] = model_classes(model)
    spec = {"architecture": source.architecture, "model_args": args, "pretrained_cfg": own}
    plan = _plan(source)
    opens = opens_with(source.architecture) if plan is None else "sparse_transfer"
    return LoadedModel(model, source.title, spec, opens, source.declared_sparse, plan)


def _plan(source: Source) -> ShrinkPlan | None:
    """What the folder's checkpoint lacks of the full-size network."""
    if source.shrink is None:
        return None
    try:
        return ShrinkPlan.from_json(read_json(source.shrink))
    except UserError as error:
        raise UserError(f"{source.shrink} cannot be used.", error.why, error.hint) from error


def _shrink(model: nn.Module, source: Source) -> None:
    """Cut a full-size network to what the folder's checkpoint kept."""
    plan = _plan(source)
    if plan is not None:
        plan.apply(model)


def classifiers(model: nn.Module) -> list[nn.Module]:
    """The classifier modules; distilled transformers have two."""
    found = model.get_classifier()  # pyright: ignore[reportCallIssue]
    return list(found) if isinstance(found, tuple | list) else [found]


def _few(kind: str, names: list[str], describe: Any) -> str:
    """ "2 missing: a (3,), b (4,)", at most three of them; empty for none."""
    if not names:
        return ""
    more = ", …" if len(names) > 3 else ""
    return f"{len(names)} {kind}: " + ", ".join(describe(name) for name in names[:3]) + more


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

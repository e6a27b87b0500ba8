"""Checkpoints of other projects: find their layout, their network and their mask, and check them.

    found = convert(Path("rigl90.pth"), "resnet50", sparse=0.9)
    found.save(Path("rigl90/checkpoint"))

The mask is the stored one where the file has masks or thresholds. Else it is `weight != 0`, and
only where the caller declares the file sparse: plain weights do not say whether a zero may move.
Projects count differently (with or without the first layer, the classifier, biases), so a claim is
held against every usual count and must agree with one of them within `TOLERANCE`. The layers with
zeros are counted alone only where they hold most of the network: a claim is about the network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.models import is_model, list_models
from torch import Tensor, nn

from sparse_transfer import checkpoint, cost, models, plugins, weights
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.imports import storage
from sparse_transfer.imports.layout import MOBILENET, Layout, Translated
from sparse_transfer.models import LoadedModel, Mismatch
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.store import file_digest
from sparse_transfer.torchvision_models import PREFIX, torchvision_names

AUTO = "auto"
TOLERANCE = 0.005  # of a claimed share of zeros; published ones are rounded to whole percents
UNDECLARED = 0.01  # share of zeros from which weights without a mask must be declared
MOST = 0.8  # of the weights, without the classifier, that the layers with zeros hold if they count
# what the projects call the network that timm has under its own name
OTHER_NAMES: Mapping[str, str] = {
    name: MOBILENET for name in ("mobilenet", "mobilenetv1", "mobilenet_v1")
}
# layouts that tell how it was pruned; several methods write the one that is named after AC/DC
METHODS = {"rigl": "rigl", "str": "str"}


@dataclass(frozen=True)
class Imported:
    """A foreign checkpoint in our terms, verified.

    Attributes:
        masks: the effective layers alone: those with a zero; None for a dense model.
        layout: the name of the layout that fits.
        counts: share of zeros by what is counted, in words; see `sparsities`.
        facts: for the record of the checkpoint.
    """

    loaded: LoadedModel
    masks: Masks | None
    layout: str
    counts: dict[str, float]
    facts: dict[str, Any]

    def save(self, folder: Path, replace_existing: bool = False) -> None:
        """Write the checkpoint folder.

        Raises:
            UserError: something is there already that may not be replaced.
        """
        _check_free(folder, replace_existing)
        checkpoint.save(folder, self.loaded, self.loaded.model, self.masks, self.facts)


def unpack(
    path: Path, folder: Path, given: Collection[str] = (), replace_existing: bool = False
) -> checkpoint.Checkpoint:
    """Make the checkpoint folder again that a packed file was made of.

    Args:
        given: options that describe a network, for a message: the file describes its own.

    Raises:
        UserError: the file is damaged, `given` is not empty, or something is in the place that may
            not be replaced.
    """
    if given:
        raise UserError(
            f"{path} is a packed checkpoint: it describes itself.",
            hint=f"Leave out {', '.join(given)}.",
        )
    _check_free(folder, replace_existing)
    return checkpoint.unpack(path, folder)


def stated(architecture: str | None, path: Path) -> str:
    """The architecture of a foreign file, which must be named.

    Raises:
        UserError: it is not.
    """
    if architecture is None:
        _existing(path)  # a wrong path is the first thing to hear of
        raise UserError(
            f"{path} cannot be imported.",
            "Weights of other projects do not say which network they belong to.",
            "Name it with --arch, as in --arch resnet50.",
        )
    return architecture


def _check_free(folder: Path, replace_existing: bool) -> None:
    ours = (folder / checkpoint.RECORD).is_file()
    if folder.exists() and not (replace_existing and ours):
        raise UserError(
            f"{folder} exists already.",
            "It is a checkpoint." if ours else "It is no checkpoint of this program.",
            "Choose another --out" + (", or say --force." if ours else "."),
        )


def convert(
    path: Path,
    architecture: str,
    *,
    layout: str = AUTO,
    sparse: float | None = None,
    dense: bool = False,
    kwargs: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | None = None,
) -> Imported:
    """Open a foreign checkpoint.

    Args:
        path: a .safetensors file, or .pth, .pt, .bin, .ckpt, .tar of tensors alone.
        architecture: a timm or torchvision name.
        layout: the name of a layout plugin, or `auto`.
        sparse: the claimed share of zeros, in (0, 1).
        dense: the file is declared dense: no mask, whatever zeros there are.
        kwargs: arguments of the model.
        pretrained_cfg: entries that override the layout's (mean, std, interpolation …).

    Raises:
        UserError: the file cannot be read, fits no layout, or is not as sparse as declared.
    """
    _check_declaration(sparse, dense)
    known = _known(architecture)
    stored = storage.read(_existing(path))
    name, translated, spec = _fitting(
        path, stored, known, layout, kwargs or {}, pretrained_cfg or {}
    )
    loaded = models.build(spec, num_classes=None, image_size=None, seed=0)
    model = loaded.model
    models.load_strictly(model, translated.state, path)
    masks = _masks(model, translated.masks, sparse, dense, path)
    counts = sparsities(model, masks) if masks is not None else {}
    if sparse is not None and masks is not None:
        _check_claim(sparse, counts, _carried(model, masks), path)
    title = f"{spec.name} ({path.name})"
    loaded = replace(loaded, title=title, declared_sparse=masks is not None)
    facts = {
        "model": architecture,
        "method": "dense" if masks is None else METHODS.get(name, "imported"),
        "sparsity": sparse,
        "imported": {
            "layout": name,
            "file": path.name,
            "sha256": file_digest(path),
            "claimed_sparsity": sparse,
            "counts": counts,
            "tolerance": TOLERANCE,
        },
        "summary": {
            "measured_sparsity": masks.sparsity() if masks is not None else 0.0,
            "digest": masks.digest() if masks is not None else None,
        },
    }
    return Imported(loaded, masks, name, counts, facts)


def _existing(path: Path) -> Path:
    endings = (".safetensors", *weights.PICKLES)
    kinds = f"A checkpoint to import is a file that ends in {', '.join(endings)}."
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"{path} cannot be imported.", "There is no such file.", kinds)
    if path.is_dir():
        ours = (path / checkpoint.RECORD).is_file()
        hint = "It is a checkpoint already: `sparse-transfer inspect` shows it." if ours else kinds
        raise UserError(f"{path} cannot be imported.", "It is a folder.", hint)
    if path.suffix not in endings:
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise UserError(f"{path} cannot be imported.", f"Its name {ending}.", kinds)
    return path


def sparsities(model: nn.Module, masks: Masks) -> dict[str, float]:
    """The share of zeros as projects count it: words → share in [0, 1].

    Numerator and denominator run over the same weights: the layers that have a zero; all
    convolutions and linear layers; all of those but the classifier; every parameter.
    """
    layers = prunable(model)
    kept = {name: weight.numel() for name, weight in layers.items()} | masks.counts()
    body = [name for name in layers if name not in models.head_name(model)]

    def share(names: list[str], extra: int = 0) -> float:
        total = sum(layers[name].numel() for name in names)
        return (total - sum(kept[name] for name in names)) / (total + extra)

    everything = sum(parameter.numel() for parameter in model.parameters())
    weights_alone = sum(weight.numel() for weight in layers.values())
    return {
        f"the {len(masks)} layers with zeros": masks.sparsity(),
        f"all {len(layers)} convolutions and linear layers": share(list(layers)),
        "all of them but the classifier": share(body),
        "all parameters": share(list(layers), everything - weights_alone),
    }


def _check_declaration(sparse: float | None, dense: bool) -> None:
    if sparse is not None and dense:
        raise UserError("--sparse and --dense exclude each other.", hint="Say one of them.")
    if sparse is not None and not 0 < sparse < 1:
        hint = f"Write --sparse {sparse / 100:g} for {sparse:g} %." if 1 < sparse < 100 else ""
        raise UserError(f"--sparse {sparse:g} is outside (0, 1).", "It is a share of zeros.", hint)


def _known(architecture: str) -> str:
    """The architecture as a model spec names it: timm's name goes before torchvision's."""
    plain = OTHER_NAMES.get(architecture, architecture)
    if plain.startswith(PREFIX) or is_model(plain):
        return plain
    if plain in torchvision_names():
        return PREFIX + plain
    raise unknown_name("model", architecture, [*list_models(), *torchvision_names()])


def _fitting(
    path: Path,
    stored: storage.Stored,
    architecture: str,
    wanted: str,
    kwargs: Mapping[str, Any],
    pretrained_cfg: Mapping[str, Any],
) -> tuple[str, Translated, ModelSpec]:
    """The layout whose names and shapes are the model's, and the model it means.

    Layouts whose marks are in the file are tried first, then the plain ones.
    """
    known: dict[str, Layout] = {
        name: plugins.load("layout", name) for name in plugins.names("layout")
    }
    if wanted != AUTO and wanted not in known:
        raise unknown_name("layout", wanted, [AUTO, *known])
    if wanted != AUTO:
        _refuse_other_networks(wanted, known[wanted], stored, architecture)
    plain = "torchvision" if architecture.startswith(PREFIX) else "timm"
    marked = [name for name, layout in known.items() if layout.marks(stored)]
    order = sorted(marked, key=lambda name: known[name].precedence) + [plain]
    tried: list[tuple[str, Mismatch]] = []
    reasons: list[UserError] = []
    for name in order if wanted == AUTO else [wanted]:
        try:
            translated = known[name].translate(stored, architecture)
            spec = ModelSpec(
                name=translated.architecture,
                weights="random",
                kwargs=translated.model_args | dict(kwargs),
                pretrained_cfg=dict(known[name].config(architecture))
                | dict(pretrained_cfg)
                | _classes(translated),
            )
            skeleton = models.skeleton(spec, num_classes=None, image_size=None)
        except UserError as error:
            reasons.append(error)
            continue
        found = models.mismatch(skeleton.model, translated.state)
        if not found:
            return name, translated, spec
        tried.append((name, found))
    if reasons:  # a layout whose marks are there says more than any list of names
        raise reasons[0]
    nearest, found = min(tried, key=lambda pair: len(pair[1]))
    raise UserError(
        f"{path} {'fits no layout' if wanted == AUTO else f'does not fit the layout {wanted}'} "
        f"with --arch {architecture}.",
        f"The nearest is {nearest} ({plugins.summary('layout', nearest).partition(':')[0]}), with "
        f"{len(found)} differences: {found}.",
        "Check --arch and --kwarg; `sparse-transfer ls layouts` lists the layouts.",
    )


def _refuse_other_networks(
    name: str, layout: Layout, stored: storage.Stored, architecture: str
) -> None:
    """Plain weights do not become a project's by being called so: it must have that network."""
    plain = architecture.removeprefix(PREFIX)
    if layout.networks and not layout.marks(stored) and not plain.startswith(layout.networks):
        raise UserError(
            f"The layout {name} does not fit --arch {architecture}.",
            f"{plugins.summary('layout', name).partition(':')[0]}: its networks are "
            f"{' and '.join(layout.networks)}, and the file has none of its marks.",
            "Leave --layout out; `sparse-transfer ls layouts` lists the layouts.",
        )


def _classes(translated: Translated) -> dict[str, int]:
    """The number of classes, read from the head in the file."""
    source = models.resolve(ModelSpec(name=translated.architecture, weights="random"))
    classes = models.rows_of_head(source.config, translated.state)
    return {} if classes is None else {"num_classes": classes}


def _masks(
    model: nn.Module,
    stored: Mapping[str, Tensor],
    sparse: float | None,
    dense: bool,
    path: Path,
) -> Masks | None:
    """The effective masks, applied to the model; None for a dense one.

    What is stated of one layer says nothing about the zeros of another.
    """
    layers = prunable(model)
    stated = {name: stored[name] for name in layers if name in stored and not stored[name].all()}
    other = [name for name in layers if name not in stated]
    if dense:
        if stated:
            raise UserError(
                f"{path} is declared dense, and is not.",
                f"It stores masks or thresholds that zero weights in {len(stated)} layers.",
                "Leave --dense out.",
            )
        return None
    if sparse is None:
        if _zeros(layers, other) >= UNDECLARED:
            raise _undeclared(layers, other, path)
        kept = stated
    else:
        by_value = {name: layers[name].detach() != 0 for name in other}
        kept = stated | {name: mask for name, mask in by_value.items() if not mask.all()}
    if not kept and sparse is None:
        return None
    if not kept:
        raise UserError(
            f"{path} is declared sparse, and is not.",
            "None of the weights of its convolutions and linear layers is zero.",
            "Say --dense, or check that this is the file of the sparse model.",
        )
    masks = Masks(kept)
    masks.apply(model.named_parameters())
    return masks


def _zeros(layers: Mapping[str, Tensor], names: Collection[str]) -> float:
    """The share of exact zeros in some layers' weights; 0 of none."""
    total = sum(layers[name].numel() for name in names)
    return sum(int((layers[name] == 0).sum()) for name in names) / total if total else 0.0


def _undeclared(layers: Mapping[str, Tensor], other: Collection[str], path: Path) -> UserError:
    """What to say of zeros in the layers that no mask is stated for."""
    what = f"{path} does not say whether it is sparse."
    share, total = _zeros(layers, other), _zeros(layers, layers)
    if len(other) == len(layers):
        return UserError(
            what,
            f"{share:.2%} of the weights of its convolutions and linear layers are exactly zero, "
            "and it stores no masks.",
            f"Say --sparse {share:.4f} to hold these zeros fixed, or --dense to let them train.",
        )
    return UserError(
        what,
        f"It stores masks or thresholds that zero weights in {len(layers) - len(other)} layers, "
        f"but {share:.2%} of the weights of the other {len(other)} are exactly zero, too.",
        f"Say --sparse {total:.4f} to hold these zeros fixed with the others.",
    )


def _carried(model: nn.Module, masks: Masks) -> float:
    """The share of the weights, without the classifier, that lie in the layers with zeros."""
    head = models.head_name(model)
    body = {name: weight.numel() for name, weight in prunable(model).items() if name not in head}
    return sum(body[name] for name in masks if name in body) / sum(body.values())


def _check_claim(sparse: float, counts: Mapping[str, float], carried: float, path: Path) -> None:
    """Refuse a claim that no count agrees with.

    Args:
        counts: from `sparsities`, the one over the layers with zeros first.
        carried: from `_carried`; decides whether that one counts.
    """
    few = carried < MOST
    usable = list(counts)[1:] if few else list(counts)
    nearest = min(usable, key=lambda words: abs(counts[words] - sparse))
    if abs(counts[nearest] - sparse) <= TOLERANCE:
        return
    listed = "; ".join(f"{share:.2%} of {words}" for words, share in counts.items())
    aside = (
        f" The layers with zeros hold only {carried:.2%} of the weights without the classifier, so "
        "their own share says little."
    )
    raise UserError(
        f"{path} is not as sparse as claimed: --sparse {sparse:g}.",
        f"Zero are {listed}.{aside if few else ''} None{' of the others' if few else ''} is within "
        f"{TOLERANCE:.1%} of the claim.",
        f"Say --sparse {counts[nearest]:.4g}, or check that this is the right file.",
    )


def describe(found: Imported) -> list[str]:
    """What was found, in words: the layout, the input transform, the counts of zeros."""
    own = found.loaded.spec["pretrained_cfg"]
    size, crop = own["input_size"][-1], own.get("crop_pct") or 1.0
    lines = [
        f"layout: {found.layout}; network: {found.loaded.spec['architecture']}, "
        f"{own['num_classes']} classes, opened with {found.loaded.opens_with}",
        f"input: {size} px cut from {round(size / crop)}, {own['interpolation']}, "
        f"mean {own['mean']}, std {own['std']} (change it with --cfg)",
    ]
    if found.masks is None:
        return [*lines, "dense: there is no mask, every weight may train"]
    claim = found.facts["imported"]["claimed_sparsity"]
    said = "no claim to check" if claim is None else f"claimed {claim:.2%}, within {TOLERANCE:.1%}"
    lines.append(f"sparsity ({said}):")
    return lines + [f"  {share:.2%} of {words}" for words, share in found.counts.items()]


def next_step(found: Imported, folder: Path) -> str:
    """What to do with the written checkpoint, and what to do about its dense parent."""
    if found.masks is None:
        return (
            f"Next: sparse-transfer transfer SPARSE --dense {folder} --task TASK, where SPARSE is "
            "a checkpoint pruned from it."
        )
    return (
        f"Next: sparse-transfer transfer {folder} --dense DENSE --task TASK, where DENSE is the "
        "checkpoint of its dense parent (`import` brings it in, too). Without one, leave --dense "
        "out: accuracies are then shown, but not what the zeros cost."
    )


def effective_layers(found: Imported) -> list[dict[str, Any]]:
    """One row per layer with zeros: layer, weights, density, and for convolutions channels."""
    with torch.no_grad():
        return cost.layer_facts(found.loaded.model, found.masks)

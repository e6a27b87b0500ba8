"""What defines a run: its configuration as canonical JSON, outside files by their content.

Fields at their default are left out, so that a new field keeps old results valid.
"""

from __future__ import annotations

from typing import Any

from sparse_transfer import cards, config, devices
from sparse_transfer.weights import content_hash

# Raised when an unchanged configuration no longer gives the numbers it gave before.
RESULTS_VERSION = 2  # 2: upstream scores are computed in the recipe's precision on CPUs, too

_NOT_IDENTITY = {"label", "kind", "source", "deviations"}


def base(stage: str) -> dict[str, Any]:
    """What the identity of every run begins with."""
    processes = devices.world_size()
    return {
        "stage": stage,
        "results_version": RESULTS_VERSION,
        **({"processes": processes} if processes > 1 else {}),
    }


def task_identity(ref: config.TaskRef, hashes: dict[config.TaskRef, str]) -> dict[str, Any]:
    """The examples by their hash, and what the card says that changes numbers."""
    card = cards.card(ref.name)
    said = card.model_dump(
        mode="json", include={"hflip", "mean", "std", "metric"}, exclude_defaults=True
    )
    return {"name": card.name, "split_hash": hashes[ref], **said}


def model_identity(model: config.ModelSpec) -> dict[str, Any]:
    """A model by what it is: outside files by their content, never by their path."""
    outside = content_hash(model)
    described = plain(model)
    if outside is None and model.weights == "pretrained":
        # `resnet50` is another set of weights once timm changes its default tag.
        from sparse_transfer.model_source import resolve

        described["name"] = resolve(model).title
    if outside is not None:
        described["weights_digest"] = outside
        if model.weights != "random":
            described.pop("weights", None)
        if model.name.startswith("local-dir:"):
            described["name"] = "local-dir"
    return described


def profile_identity(
    profile: config.LinearProfile | config.OnlineProfile | config.FullProfile,
) -> dict[str, Any]:
    """A transfer profile with its version, without its name."""
    return plain(profile, {"name"}) | {"version": profile.version}


def plain(model: config.Frozen, without: set[str] | None = None) -> dict[str, Any]:
    """A configuration as JSON with fields at their default left out, names for people dropped."""
    return model.model_dump(
        mode="json", exclude_defaults=True, exclude=_NOT_IDENTITY | (without or set())
    )

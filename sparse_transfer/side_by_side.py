"""What `compare` runs: a checkpoint and its dense parent, on tasks of an imported set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_transfer import config, data, single
from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.imports import coverage, sets
from sparse_transfer.store import Store, read_json

AVAILABLE = "available"
STAGES = ("prune", "tune", "linear", "full")

# How the study shows an image (arXiv 2111.13445): shorter side 256, central 224 pixels.
PAPER_IMAGES = ("image_size=224", "crop=center", "resize=256")


@dataclass(frozen=True)
class Request:
    """What is to be run, and what of the imported set cannot be.

    Attributes:
        experiment: the transfer of the checkpoint and of its dense parent.
        absent: imported task → why it is not run.
    """

    experiment: config.Experiment
    absent: dict[str, str]


def request(
    store: Store,
    *,
    checkpoint: Path,
    dense: Path | None,
    imported: str,
    tasks: str,
    modes: Sequence[str],
    profile: str,
    architecture: str | None,
    seeds: str,
    overrides: Sequence[str],
    data_root: Path | None,
    cache: Path,
) -> Request:
    """The experiment that `compare` runs.

    Args:
        imported: name of the set; only its complete results are compared with.
        tasks: `available` for every task of the set whose data is on this machine, or names,
            comma-separated, which may be downloaded.
        profile: of transfer: the profiles PROFILE-linear and PROFILE-full are used.
        architecture: the imported architecture that the checkpoint is; by default its own name
            without a tag.
        data_root, cache: see `data.open_task`.

    Raises:
        UserError: no such set, architecture, task or dense parent, or no task that is here.
    """
    frame, _ = sets.load(store.root, imported)
    kept, _ = coverage.complete(frame)
    facts = single.checkpoint_facts(checkpoint)
    model = architecture or str(facts["model"]).partition(".")[0]
    theirs = kept[kept["model"] == model]
    if theirs.empty:
        known = ", ".join(sorted(kept["model"].unique())) or "nothing complete"
        raise UserError(
            f"The imported set {imported} has no results of {model}.",
            f"It holds {known}.",
            "If the checkpoint is one of these, name it: --architecture.",
        )
    chosen, absent = _tasks(tasks, sorted(theirs["task"].unique()), imported, data_root, cache)
    made = single.transfer_experiment(
        checkpoint=checkpoint,
        dense=dense or _dense_parent(store, checkpoint),
        tasks=chosen,
        modes=modes,
        linear=f"{profile}-linear",
        full=f"{profile}-full",
        image_size=None,
        crop=None,
        seeds=seeds,
        overrides=[
            f"title={json.dumps(_title(facts, imported))}",
            *(f"transfer.preprocess.{field}" for field in PAPER_IMAGES),
            *overrides,
        ],
    )
    name = f"{made.name.replace('transfer-', 'compare-', 1)}-with-{imported}"
    return Request(_labelled(made, model).model_copy(update={"name": name}), absent)


def _title(facts: Mapping[str, Any], imported: str) -> str:
    sparsity = f"{100 * facts['measured_sparsity']:.4g} % zeros"
    return f"{facts['model']}, {facts['method']}, {sparsity}, beside {imported}"


def _tasks(
    asked: str, imported: Sequence[str], name: str, data_root: Path | None, cache: Path
) -> tuple[list[str], dict[str, str]]:
    """The tasks to run, and those of the set that are not run with the reason."""
    if asked != AVAILABLE:
        chosen = [text.strip() for text in asked.split(",") if text.strip()]
        if not chosen:
            raise UserError(
                "--tasks names no task.", hint=f"Write {AVAILABLE}, or names: dtd,pets."
            )
        for task in chosen:
            if data.card(task).name not in imported:
                error = unknown_name(f"task in the imported set {name}", task, imported)
                raise UserError(error.what, f"It holds {', '.join(imported)}.", error.hint)
        named = {data.card(task).name for task in chosen}
        return chosen, {task: "not asked for" for task in imported if task not in named}
    chosen, absent = [], {}
    for task in imported:
        if reason := _why_absent(task, data_root, cache):
            absent[task] = reason
        else:
            chosen.append(task)
    if not chosen:
        raise UserError(
            f"No task of the imported set {name} is here.",
            "\n".join(f"- {task}: {reason}" for task, reason in absent.items()),
            "Give the folder of the data (--data-root); `sparse-transfer check --tasks` with the "
            "same --data-root says where each is looked for and how to get it.",
        )
    return chosen, absent


def _why_absent(task: str, data_root: Path | None, cache: Path) -> str:
    """Why a task cannot be opened from this machine alone; "" where it can. Downloads nothing."""
    try:
        found = data.availability(data.card(task), data_root)
        if any(one.presence.state == "here" for one in found):
            data.open_task(config.TaskRef(name=task), data_root=data_root, cache=cache)
            return ""
    except UserError as error:
        return " ".join(str(error).split())
    for one in found:
        if one.presence.state == "download":
            return f"not on this machine; named in --tasks, it is downloaded ({one.source})"
    return "; ".join(f"{one.source}: {one.presence.detail}" for one in found)


def _dense_parent(store: Store, checkpoint: Path) -> Path:
    """The dense checkpoint of the experiment that made this one, of the same model and seed."""
    own = checkpoint.resolve().parent.name
    for path in sorted((store.root / "experiments").glob("*.json")):
        for arm in read_json(path)["arms"].values():
            made = [run for run in arm["runs"] if run["stage"] == "prune"]
            mine = next((run for run in made if run["id"] == own), None)
            if mine is None or mine["method"] == "dense":
                continue
            for run in made:
                is_parent = run["method"] == "dense" and all(
                    run[key] == mine[key] for key in ("model", "seed")
                )
                folder = store.folder("prune", run["id"]) / "checkpoint"
                if is_parent and folder.is_dir():
                    return folder
    raise UserError(
        f"The dense parent of {checkpoint} is not known.",
        f"No experiment recorded in {store.root} made both.",
        "Give its folder: --dense.",
    )


def _labelled(experiment: config.Experiment, model: str) -> config.Experiment:
    """The experiment with its models under the name of the imported architecture."""
    (arm,) = experiment.arms
    upstream = tuple(spec.model_copy(update={"label": model}) for spec in arm.upstream.models)
    methods = tuple(
        method.model_copy(update={"model": method.model.model_copy(update={"label": model})})
        if method.model
        else method
        for method in arm.prune.methods
    )
    new = arm.model_copy(
        update={
            "upstream": arm.upstream.model_copy(update={"models": upstream}),
            "prune": arm.prune.model_copy(update={"methods": methods}),
        }
    )
    return experiment.model_copy(update={"arms": (new,)})

"""The transfer section of an arm becomes runs: one per checkpoint, task, mode and seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sparse_transfer import config
from sparse_transfer.identity import base, plain, profile_identity, task_identity
from sparse_transfer.plan import FewShotSpec, FullSpec, LinearSpec, OnlineSpec, Run


def transfer_runs(
    transfer: config.Transfer,
    anchor: Run,
    checkpoints: list[Run],
    hashes: dict[config.TaskRef, str],
) -> Iterator[Run]:
    """Every mode of every checkpoint; a learning rate is searched on `anchor`."""
    for task in transfer.tasks:
        if task not in hashes:
            continue
        common = {"task": task_identity(task, hashes), "preprocess": plain(transfer.preprocess)}
        trained = common | ({"calibrate": True} if transfer.calibrate else {})
        if "linear" in transfer.modes:
            yield from _linear_runs(transfer, task, trained, checkpoints)
        if transfer.few_shot is not None:
            yield from _few_shot_runs(transfer, transfer.few_shot, task, common, checkpoints)
        if "linear-online" in transfer.modes and transfer.online is not None:
            yield from _online_runs(transfer, transfer.online, task, trained, checkpoints)
        if "full" in transfer.modes and transfer.full is not None:
            tune = _tune(transfer, transfer.full, task, common, anchor)
            yield from _full_runs(transfer, transfer.full, task, trained, checkpoints, tune)


def _linear_runs(
    transfer: config.Transfer,
    task: config.TaskRef,
    common: dict[str, Any],
    checkpoints: list[Run],
) -> Iterator[Run]:
    profile, seeds = transfer.linear, transfer.seeds
    spec = LinearSpec(task, transfer.preprocess, profile, seeds, transfer.calibrate)
    for run in checkpoints:
        identity = {
            **base("linear"),
            **common,
            "checkpoint": run.id,
            "profile": profile_identity(profile),
            "seeds": list(seeds),
        }
        yield Run("linear", run.subject, spec, identity, {"checkpoint": run})


def _few_shot_runs(
    transfer: config.Transfer,
    few_shot: config.FewShot,
    task: config.TaskRef,
    common: dict[str, Any],
    checkpoints: list[Run],
) -> Iterator[Run]:
    profile = transfer.linear
    spec = FewShotSpec(task, transfer.preprocess, profile, few_shot)
    for run in checkpoints:
        identity = {
            **base("few_shot"),
            **common,
            "checkpoint": run.id,
            "few_shot": plain(few_shot),
            "transform": profile.model_dump(mode="json", include={"normalise", "interpolation"}),
            **({"engine": profile.engine} if profile.engine != "auto" else {}),
        }
        yield Run("few_shot", run.subject, spec, identity, {"checkpoint": run})


def _online_runs(
    transfer: config.Transfer,
    profile: config.OnlineProfile,
    task: config.TaskRef,
    common: dict[str, Any],
    checkpoints: list[Run],
) -> Iterator[Run]:
    for run in checkpoints:
        for seed in transfer.seeds:
            identity = {
                **base("online"),
                **common,
                "checkpoint": run.id,
                "profile": profile_identity(profile),
                "seed": seed,
            }
            spec = OnlineSpec(task, transfer.preprocess, profile, seed, transfer.calibrate)
            yield Run("online", run.subject, spec, identity, {"checkpoint": run})


def _tune(
    transfer: config.Transfer,
    profile: config.FullProfile,
    task: config.TaskRef,
    common: dict[str, Any],
    anchor: Run,
) -> Run | None:
    """The search of the learning rate; None where it is given."""
    if not profile.lr_grid:
        return None
    seed = transfer.seeds[0]
    identity = {
        **base("tune"),
        **common,
        "checkpoint": anchor.id,
        "profile": profile_identity(profile),
        "seed": seed,
    }
    spec = FullSpec(task, transfer.preprocess, profile, seed)
    return Run("tune", anchor.subject, spec, identity, {"checkpoint": anchor})


def _full_runs(
    transfer: config.Transfer,
    profile: config.FullProfile,
    task: config.TaskRef,
    common: dict[str, Any],
    checkpoints: list[Run],
    tune: Run | None,
) -> Iterator[Run]:
    if tune is not None:
        yield tune
    parents = {"tune": tune} if tune is not None else {}
    for run in checkpoints:
        for seed in transfer.seeds:
            identity = {
                **base("full"),
                **common,
                "checkpoint": run.id,
                "profile": profile_identity(profile),
                "seed": seed,
                **{role: parent.id for role, parent in parents.items()},
            }
            spec = FullSpec(task, transfer.preprocess, profile, seed, transfer.calibrate)
            yield Run("full", run.subject, spec, identity, {"checkpoint": run, **parents})

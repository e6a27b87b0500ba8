"""The runs of an experiment: a small DAG whose nodes are named by a hash of what defines them.

prune ─▶ linear        prune (dense) ─▶ tune ─▶ full        prune (dense), prune ─▶ bench
  ├────▶ few_shot, online, full
  └────▶ evaluate
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from sparse_transfer import config, devices, store
from sparse_transfer.errors import UserError

Stage = Literal["prune", "evaluate", "tune", "linear", "few_shot", "online", "full", "bench"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class Subject:
    """The pruned (or dense) upstream model that a run makes or uses, as the tables name it."""

    model: str
    method: str
    sparsity: float
    seed: int

    def __str__(self) -> str:
        if self.sparsity == 0:
            return f"{self.model} {self.method} s{self.seed}"
        return f"{self.model} {self.method} {self.sparsity:.4g} s{self.seed}"


@dataclass(frozen=True)
class PruneSpec:
    """Make one upstream checkpoint: train and prune by a method under a recipe, then score it."""

    model: config.ModelSpec
    task: config.TaskRef | None
    preprocess: config.Preprocess
    recipe: config.Recipe
    method: config.MethodSpec
    sparsity: float
    seed: int
    recalibrate_bn: config.RecalibrateBn | None


@dataclass(frozen=True)
class EvaluateSpec:
    """Score the checkpoint, head and all, on the test part of a further task."""

    task: config.TaskRef
    preprocess: config.Preprocess
    precision: devices.Precision


@dataclass(frozen=True)
class LinearSpec:
    """Probe frozen features on one task, all transfer seeds at once."""

    task: config.TaskRef
    preprocess: config.Preprocess
    profile: config.LinearProfile
    seeds: tuple[int, ...]
    calibrate: bool = False


@dataclass(frozen=True)
class FewShotSpec:
    """Probe frozen features on ever more images per class; of the profile, only its transform."""

    task: config.TaskRef
    preprocess: config.Preprocess
    profile: config.LinearProfile
    few_shot: config.FewShot


@dataclass(frozen=True)
class OnlineSpec:
    """Train a head on one task, the frozen backbone being recomputed each step."""

    task: config.TaskRef
    preprocess: config.Preprocess
    profile: config.OnlineProfile
    seed: int
    calibrate: bool = False


@dataclass(frozen=True)
class FullSpec:
    """Fine-tune on one task with the mask held fixed; as a `tune` run, search its `lr_grid`."""

    task: config.TaskRef
    preprocess: config.Preprocess
    profile: config.FullProfile
    seed: int
    calibrate: bool = False


@dataclass(frozen=True)
class BenchSpec:
    """Measure latency beside the dense parent, if there is one.

    `task` and `preprocess` say which images backends are calibrated and scored on; None where no
    backend asks for any, or the arm has no upstream task.
    """

    bench: config.Bench
    image_size: int
    task: config.TaskRef | None = None
    preprocess: config.Preprocess | None = None


Spec = PruneSpec | EvaluateSpec | LinearSpec | FewShotSpec | OnlineSpec | FullSpec | BenchSpec


@dataclass(frozen=True, eq=False)
class Run:
    """One node: what to do (`spec`), to which model (`subject`), from which results (`parents`).

    Runs of one identity are equal, whatever two arms call their subject.
    """

    stage: Stage
    subject: Subject
    spec: Spec
    identity: dict[str, Any]
    parents: dict[str, Run] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the identity."""
        return store.digest(self.identity)[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def title(self) -> str:
        """What people read in a list of runs."""
        if isinstance(self.spec, LinearSpec | FewShotSpec | EvaluateSpec):
            return f"{self.subject} → {self.spec.task.title}"
        if isinstance(self.spec, OnlineSpec | FullSpec):
            return f"{self.subject} → {self.spec.task.title} t{self.spec.seed}"
        return str(self.subject)


@dataclass(frozen=True)
class Unavailable:
    """A task or model of an arm whose files cannot be opened here."""

    arm: str
    what: str
    error: UserError


@dataclass(frozen=True)
class Plan:
    """All runs of an experiment, parents before children, and what cannot be run here."""

    experiment: config.Experiment
    arms: dict[str, tuple[Run, ...]]
    unavailable: tuple[Unavailable, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run once, parents first, stage by stage."""
        unique = {run.id: run for runs in self.arms.values() for run in runs}
        return tuple(sorted(unique.values(), key=lambda run: STAGES.index(run.stage)))


def origin(run: Run) -> config.ModelSpec:
    """The model whose weights a checkpoint goes back to; see `lineage`."""
    while "checkpoint" in run.parents or "model" in run.parents:
        run = run.parents.get("checkpoint") or run.parents["model"]
    assert isinstance(run.spec, PruneSpec)
    return run.spec.model

"""An experiment becomes runs: a small DAG whose nodes are named by a hash of what defines them.

    prune ─▶ linear        prune (dense) ─▶ tune ─▶ full        prune (dense), prune ─▶ bench
      ├────▶ few_shot, online, full
      └────▶ evaluate

Planning reads the labels of the data (for split hashes) and the bytes of outside weight files, and
nothing else; it decides no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from sparse_transfer import cards, config, devices, lineage, plugins, store
from sparse_transfer.errors import UserError, nearest
from sparse_transfer.weights import content_hash

# Raised when an unchanged configuration no longer gives the numbers it gave before.
RESULTS_VERSION = 2  # 2: upstream scores are computed in the recipe's precision on CPUs, too

Stage = Literal["prune", "evaluate", "tune", "linear", "few_shot", "online", "full", "bench"]
STAGES: tuple[Stage, ...] = get_args(Stage)

_NOT_IDENTITY = {"label", "kind", "source", "deviations"}


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
    """Measure latency beside the dense parent, if there is one."""

    bench: config.Bench
    image_size: int


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


def make(experiment: config.Experiment, split_hash: Callable[[config.TaskRef], str]) -> Plan:
    """Expand an experiment into its runs.

    Args:
        experiment: the validated file.
        split_hash: the hash of a task's frozen splits; raises UserError where the data is missing.

    Raises:
        UserError: a pruner or option that does not exist, or an outside file that cannot be read.
    """
    unavailable: list[Unavailable] = []
    arms: dict[str, tuple[Run, ...]] = {}
    for arm in experiment.arms:
        hashes: dict[config.TaskRef, str] = {}
        upstream = [arm.upstream.task] if arm.upstream.task else []
        downstream = arm.transfer.tasks if arm.transfer else ()
        for ref in dict.fromkeys([*upstream, *arm.upstream.evaluate, *downstream]):
            try:
                hashes[ref] = split_hash(ref)
            except UserError as error:
                unavailable.append(Unavailable(arm.name, f"task {ref.name}", error))
        ready = arm.upstream.task is None or arm.upstream.task in hashes
        overriding = [method.model for method in arm.prune.methods if method.model]
        earlier = experiment.arms[: len(arms)]
        for model in (*arm.upstream.models, *overriding):
            try:
                if not lineage.is_made_here(model):
                    _model(model)
                elif not arms[lineage.maker(model, earlier)[0].name]:
                    ready = False  # why is said where it is made
            except UserError as error:
                unavailable.append(Unavailable(arm.name, f"model {model.title}", error))
                ready = False
        made = _Made(experiment.arms, arms)
        arms[arm.name] = tuple(_arm_runs(arm, hashes, made)) if ready else ()
    return Plan(experiment, arms, tuple(unavailable))


def options_of(method: config.MethodSpec) -> Any:
    """The validated options of a method.

    Raises:
        UserError: no such pruner, or an option that it does not have.
    """
    from pydantic import ValidationError

    plugin = plugins.load("pruner", method.name)
    try:
        return plugin.Options.model_validate(method.options)
    except ValidationError as error:
        problems = "\n".join(
            f"  {'.'.join(map(str, item['loc'])) or 'options'}: {item['msg']}"
            for item in error.errors()
        )
        fields = list(plugin.Options.model_fields)
        unknown = [str(e["loc"][0]) for e in error.errors() if e["type"] == "extra_forbidden"]
        close = [match for name in unknown for match in nearest(name, fields)]
        guess = f"Did you mean {' or '.join(close)}? " if close else ""
        known = ", ".join(fields) or "none"
        raise UserError(
            f"The options of pruner `{method.name}` are wrong.",
            problems,
            f"{guess}Its options: {known}.",
        ) from error


def _has_target(method: config.MethodSpec) -> bool:
    return plugins.load("pruner", method.name).has_target


def check_targets(arm: config.Arm) -> None:
    """Refuse an arm whose methods do not mean one thing by a sparsity, or lack one.

    Raises:
        UserError: weights and channels in one arm, or a method with a target and no sparsity.
    """
    pruning = [method for method in arm.prune.methods if method.name != "dense"]
    wanting = [method.title for method in pruning if _has_target(method)]
    if wanting and not arm.prune.sparsities:
        raise UserError(
            f"`prune.sparsities` of arm {arm.name} is empty.",
            f"{wanting[0]} needs a target.",
            "List at least one, for example `sparsities: [0.9]`.",
        )
    plugins_ = {method.title: plugins.load("pruner", method.name) for method in pruning}
    channels = [title for title, plugin in plugins_.items() if plugin.removes_channels]
    if channels and len(channels) < len(pruning):
        other = next(title for title in plugins_ if title not in channels)
        raise UserError(
            f"Arm {arm.name} compares {channels[0]} with {other} at one sparsity.",
            f"For {channels[0]} a sparsity is the share of MACs removed, for {other} of weights.",
            "Put them into two arms.",
        )


def _arm_runs(arm: config.Arm, hashes: dict[config.TaskRef, str], made: _Made) -> Iterator[Run]:
    check_targets(arm)
    plain_dense = [m for m in arm.prune.methods if m.name == "dense" and m.model is None]
    has_dense = arm.prune.dense or plain_dense
    for model in arm.upstream.models:
        dense = {
            seed: _prune(arm, model, _DENSE, 0.0, seed, hashes, made)
            for seed in (arm.prune.seeds if has_dense else ())
        }
        checkpoints = list(dense.values())
        for method in arm.prune.methods:
            if method in plain_dense:
                continue
            sparsities = arm.prune.sparsities if _has_target(method) else (0.0,)
            checkpoints += [
                _prune(arm, model, method, sparsity, seed, hashes, made)
                for sparsity in sparsities
                for seed in arm.prune.seeds
            ]
        yield from checkpoints
        yield from _evaluate_runs(arm, checkpoints, hashes)
        if arm.transfer is not None:
            anchor = checkpoints[0]  # the dense model, unless the arm has none
            yield from _transfer_runs(arm.transfer, anchor, checkpoints, hashes)
        if arm.bench is not None:
            first = arm.prune.seeds[0]
            size = (arm.transfer.preprocess if arm.transfer else arm.upstream.preprocess).image_size
            for run in checkpoints:
                if run.subject.seed == first:
                    yield _bench(arm.bench, size, run, dense.get(first))


_DENSE = config.MethodSpec(name="dense")


def _prune(
    arm: config.Arm,
    model: config.ModelSpec,
    method: config.MethodSpec,
    sparsity: float,
    seed: int,
    hashes: dict[config.TaskRef, str],
    made: _Made,
) -> Run:
    built = method.model or model
    start = made.start(built, sparsity, seed) if lineage.is_made_here(built) else None
    # A dense model was not pruned: its batch-norm statistics are its own and stay.
    recalibrate = None if method.name == "dense" else arm.prune.recalibrate_bn
    identity = {
        **_base("prune"),
        "model": {"checkpoint": start.id} if start else _model(built),
        "task": _task(arm.upstream.task, hashes) if arm.upstream.task else None,
        "preprocess": _plain(arm.upstream.preprocess),
        "recipe": _plain(arm.recipe, {"name"}) | {"version": arm.recipe.version},
        "method": {
            "name": method.name,
            "version": plugins.load("pruner", method.name).version,
            "options": options_of(method).model_dump(mode="json", exclude_defaults=True),
        },
        "sparsity": sparsity,
        "seed": seed,
        **({"recalibrate_bn": _plain(recalibrate)} if recalibrate else {}),
    }
    spec = PruneSpec(
        built,
        arm.upstream.task,
        arm.upstream.preprocess,
        arm.recipe,
        method,
        sparsity,
        seed,
        recalibrate,
    )
    subject = Subject(model.title, method.title, sparsity, seed)
    return Run("prune", subject, spec, identity, {"model": start} if start else {})


@dataclass(frozen=True)
class _Made:
    """The checkpoints of earlier arms, for models that are called `checkpoint:ARM/METHOD`."""

    arms: tuple[config.Arm, ...]
    runs: dict[str, tuple[Run, ...]]

    def start(self, spec: config.ModelSpec, sparsity: float, seed: int) -> Run:
        """The run whose checkpoint a row begins with.

        Raises:
            UserError: no run or several fit.
        """
        arm, title = lineage.maker(spec, self.arms[: len(self.runs)])
        found = [
            run
            for run in self.runs[arm.name]
            if run.stage == "prune"
            and run.subject.method == title
            and run.subject.seed == seed
            and run.subject.sparsity in (0.0, sparsity)
        ]
        if len(found) > 1:
            found = [run for run in found if run.subject.model == spec.title]
        if len(found) != 1:
            at = f" at sparsity {sparsity:g}" if sparsity else ""
            made = ", ".join(str(r.subject) for r in self.runs[arm.name] if r.stage == "prune")
            raise UserError(
                f"{spec.name} names {len(found) or 'no'} checkpoint{'s' * (len(found) > 1)} of "
                f"seed {seed}{at}.",
                f"Arm {arm.name} makes: {made}.",
                "Give both arms the same seeds and sparsities, and models the same `label`.",
            )
        return found[0]


def origin(run: Run) -> config.ModelSpec:
    """The model whose weights a checkpoint goes back to; see `lineage`."""
    while "checkpoint" in run.parents or "model" in run.parents:
        run = run.parents.get("checkpoint") or run.parents["model"]
    assert isinstance(run.spec, PruneSpec)
    return run.spec.model


def _evaluate_runs(
    arm: config.Arm, checkpoints: list[Run], hashes: dict[config.TaskRef, str]
) -> Iterator[Run]:
    """Every checkpoint on every further test set, in the recipe's precision."""
    # the checkpoint's own statistics and interpolation, whatever they were resolved from
    own = {"normalise": "model", "interpolation": "model"}
    preprocess = arm.upstream.preprocess.model_copy(update=own)
    precision = arm.recipe.precision
    for task in arm.upstream.evaluate:
        for run in checkpoints if task in hashes else ():
            identity = {
                **_base("evaluate"),
                "task": _task(task, hashes),
                "preprocess": _plain(preprocess),
                "precision": precision,
                "checkpoint": run.id,
            }
            spec = EvaluateSpec(task, preprocess, precision)
            yield Run("evaluate", run.subject, spec, identity, {"checkpoint": run})


def _transfer_runs(
    transfer: config.Transfer,
    anchor: Run,
    checkpoints: list[Run],
    hashes: dict[config.TaskRef, str],
) -> Iterator[Run]:
    """Every mode of every checkpoint; a learning rate is searched on `anchor`."""
    for task in transfer.tasks:
        if task not in hashes:
            continue
        common = {"task": _task(task, hashes), "preprocess": _plain(transfer.preprocess)}
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
            **_base("linear"),
            **common,
            "checkpoint": run.id,
            "profile": _profile(profile),
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
            **_base("few_shot"),
            **common,
            "checkpoint": run.id,
            "few_shot": _plain(few_shot),
            "transform": profile.model_dump(mode="json", include={"normalise", "interpolation"}),
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
                **_base("online"),
                **common,
                "checkpoint": run.id,
                "profile": _profile(profile),
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
        **_base("tune"),
        **common,
        "checkpoint": anchor.id,
        "profile": _profile(profile),
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
                **_base("full"),
                **common,
                "checkpoint": run.id,
                "profile": _profile(profile),
                "seed": seed,
                **{role: parent.id for role, parent in parents.items()},
            }
            spec = FullSpec(task, transfer.preprocess, profile, seed, transfer.calibrate)
            yield Run("full", run.subject, spec, identity, {"checkpoint": run, **parents})


def _bench(bench: config.Bench, image_size: int, run: Run, dense: Run | None) -> Run:
    parents = {"checkpoint": run, **({"dense": dense} if dense else {})}
    identity = {
        **_base("bench"),
        "bench": _plain(bench),
        "image_size": image_size,
        **{role: parent.id for role, parent in parents.items()},
    }
    return Run("bench", run.subject, BenchSpec(bench, image_size), identity, parents)


def _base(stage: Stage) -> dict[str, Any]:
    processes = devices.world_size()
    return {
        "stage": stage,
        "results_version": RESULTS_VERSION,
        **({"processes": processes} if processes > 1 else {}),
    }


def _task(ref: config.TaskRef, hashes: dict[config.TaskRef, str]) -> dict[str, Any]:
    """The examples by their hash, and what the card says that changes numbers."""
    card = cards.card(ref.name)
    said = card.model_dump(
        mode="json", include={"hflip", "mean", "std", "metric"}, exclude_defaults=True
    )
    return {"name": card.name, "split_hash": hashes[ref], **said}


def _model(model: config.ModelSpec) -> dict[str, Any]:
    """A model by what it is: outside files by their content, never by their path."""
    outside = content_hash(model)
    described = _plain(model)
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


def _profile(
    profile: config.LinearProfile | config.OnlineProfile | config.FullProfile,
) -> dict[str, Any]:
    return _plain(profile, {"name"}) | {"version": profile.version}


def _plain(model: config.Frozen, without: set[str] | None = None) -> dict[str, Any]:
    """A configuration as JSON with fields at their default left out, names for people dropped."""
    return model.model_dump(
        mode="json", exclude_defaults=True, exclude=_NOT_IDENTITY | (without or set())
    )

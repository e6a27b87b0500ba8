"""An experiment becomes runs, parents before children.

Expanding reads the labels of the data (for split hashes) and the bytes of outside weight files, and
nothing else; it decides no number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sparse_transfer import config, lineage, plugins
from sparse_transfer.errors import UserError
from sparse_transfer.identity import base, model_identity, plain, task_identity
from sparse_transfer.method_options import check_targets, has_target, options_of
from sparse_transfer.plan import (
    BenchSpec,
    EvaluateSpec,
    Plan,
    PruneSpec,
    Run,
    Subject,
    Unavailable,
)
from sparse_transfer.transfer_expansion import transfer_runs


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
                    model_identity(model)
                elif not arms[lineage.maker(model, earlier)[0].name]:
                    ready = False  # why is said where it is made
            except UserError as error:
                unavailable.append(Unavailable(arm.name, f"model {model.title}", error))
                ready = False
        made = _Made(experiment.arms, arms)
        arms[arm.name] = tuple(_arm_runs(arm, hashes, made)) if ready else ()
    return Plan(experiment, arms, tuple(unavailable))


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
            sparsities = arm.prune.sparsities if has_target(method) else (0.0,)
            checkpoints += [
                _prune(arm, model, method, sparsity, seed, hashes, made)
                for sparsity in sparsities
                for seed in arm.prune.seeds
            ]
        yield from checkpoints
        yield from _evaluate_runs(arm, checkpoints, hashes)
        if arm.transfer is not None:
            anchor = checkpoints[0]  # the dense model, unless the arm has none
            yield from transfer_runs(arm.transfer, anchor, checkpoints, hashes)
        if arm.bench is not None:
            first = arm.prune.seeds[0]
            size = (arm.transfer.preprocess if arm.transfer else arm.upstream.preprocess).image_size
            for run in checkpoints:
                if run.subject.seed == first:
                    yield _bench(arm, arm.bench, size, run, dense.get(first), hashes)


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
        **base("prune"),
        "model": {"checkpoint": start.id} if start else model_identity(built),
        "task": task_identity(arm.upstream.task, hashes) if arm.upstream.task else None,
        "preprocess": plain(arm.upstream.preprocess),
        "recipe": plain(arm.recipe, {"name"}) | {"version": arm.recipe.version},
        "method": {
            "name": method.name,
            "version": plugins.load("pruner", method.name).version,
            "options": options_of(method).model_dump(mode="json", exclude_defaults=True),
        },
        "sparsity": sparsity,
        "seed": seed,
        **({"recalibrate_bn": plain(recalibrate)} if recalibrate else {}),
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


def _evaluate_runs(
    arm: config.Arm, checkpoints: list[Run], hashes: dict[config.TaskRef, str]
) -> Iterator[Run]:
    """Every checkpoint on every further test set, in the recipe's precision."""
    preprocess = _own_transform(arm.upstream.preprocess)
    precision = arm.recipe.precision
    for task in arm.upstream.evaluate:
        for run in checkpoints if task in hashes else ():
            identity = {
                **base("evaluate"),
                "task": task_identity(task, hashes),
                "preprocess": plain(preprocess),
                "precision": precision,
                "checkpoint": run.id,
            }
            spec = EvaluateSpec(task, preprocess, precision)
            yield Run("evaluate", run.subject, spec, identity, {"checkpoint": run})


def _bench(
    arm: config.Arm,
    bench: config.Bench,
    image_size: int,
    run: Run,
    dense: Run | None,
    hashes: dict[config.TaskRef, str],
) -> Run:
    parents = {"checkpoint": run, **({"dense": dense} if dense else {})}
    identity = {
        **base("bench"),
        "bench": plain(bench),
        "image_size": image_size,
        **{role: parent.id for role, parent in parents.items()},
    }
    spec = BenchSpec(bench, image_size)
    if arm.upstream.task is not None and _wants_images(bench):
        preprocess = _own_transform(arm.upstream.preprocess).model_copy(
            update={"image_size": image_size}
        )
        spec = BenchSpec(bench, image_size, arm.upstream.task, preprocess)
        identity["task"] = task_identity(arm.upstream.task, hashes)
        identity["preprocess"] = plain(preprocess)
    return Run("bench", run.subject, spec, identity, parents)


def _wants_images(bench: config.Bench) -> bool:
    known = set(bench.backends) & set(plugins.names("backend"))  # preflight tells the others
    return any(getattr(plugins.load("backend", n), "needs_images", False) for n in known)


def _own_transform(preprocess: config.Preprocess) -> config.Preprocess:
    """With the checkpoint's own statistics and interpolation, whatever they were resolved from."""
    return preprocess.model_copy(update={"normalise": "model", "interpolation": "model"})

"""Carry out a plan: claim, skip, resume, record failures, share the work between processes.

Any number of processes may work on one plan and one folder. Each run folder is claimed by an
operating-system lock that vanishes with its process; a run counts as finished only when its
`result.json` was renamed into place.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pydantic

from sparse_transfer import memory, signals
from sparse_transfer.errors import StopRequested, UserError
from sparse_transfer.plan import Plan, Run
from sparse_transfer.stages.context import Context
from sparse_transfer.store import Store, write_json

log = logging.getLogger(__name__)

_POLL_SECONDS = 2.0
_VERSIONED = ("torch", "timm", "torchvision", "accelerate", "datasets", "scikit-learn", "numpy")


@dataclass
class Outcome:
    """What became of the runs of a plan, by run id."""

    finished: list[Run] = field(default_factory=list)
    skipped: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    blocked: list[Run] = field(default_factory=list)


@dataclass(frozen=True)
class Shard:
    """One of `of` processes that share a plan, counted from 0."""

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n` with 0 <= i < n.

        Raises:
            UserError: anything else.
        """
        first, slash, second = text.partition("/")
        if not (slash and first.isdigit() and second.isdigit() and int(first) < int(second)):
            raise UserError(
                f"--shard {text} cannot be read.", hint="Write i/n with i from 0 to n-1, as in 0/4."
            )
        return cls(int(first), int(second))

    def owns(self, run: Run) -> bool:
        """Whether the run is in this share: runs of one checkpoint stay together."""
        root = run.parents.get("checkpoint", run)
        return int(root.id, 16) % self.of == self.index


def execute(
    plan: Plan,
    store: Store,
    context: Context,
    *,
    stages: Sequence[str] = (),
    only: Sequence[str] = (),
    shard: Shard | None = None,
) -> Outcome:
    """Do every run of the plan that is not finished, parents first.

    Args:
        plan: what to do.
        store: where results are kept.
        context: accelerator, data and cache folders, progress.
        stages: only these stages, if given; a missing parent of another stage blocks a run.
        only: only runs whose id starts with one of these.
        shard: only this share; a parent that nobody has done is done here too.

    Raises:
        StopRequested: a signal arrived; what is finished stays finished.
    """
    outcome = Outcome()
    wanted = [
        run
        for run in plan.runs
        if (not stages or run.stage in stages)
        and (not only or any(run.id.startswith(prefix) for prefix in only))
        and (shard is None or shard.owns(run))
    ]
    if only and not wanted:
        raise UserError(
            f"No run of `{plan.experiment.name}` has an id that starts with {' or '.join(only)}.",
            hint=f"`sparse-transfer plan {plan.experiment.name}` lists them.",
        )
    queue = [(f"[{number}/{len(wanted)}]", run) for number, run in enumerate(wanted, 1)]
    while queue:
        # What another process works on is passed over for now, so that both have work.
        busy = [
            (prefix, run)
            for prefix, run in queue
            if _run_with_parents(run, prefix, store, context, outcome, stages) is None
        ]
        if len(busy) == len(queue):
            time.sleep(_POLL_SECONDS)
        queue = busy
    return outcome


def forget(
    plan: Plan, store: Store, stages: Sequence[str], only: Sequence[str], shard: Shard | None
) -> None:
    """Delete what is known of the chosen runs, so that they are done again (`--force`)."""
    for run in plan.runs:
        chosen = (
            (not stages or run.stage in stages)
            and (not only or any(run.id.startswith(prefix) for prefix in only))
            and (shard is None or shard.owns(run))
        )
        folder = store.folder(run.stage, run.id)
        if chosen and folder.is_dir():
            with store.claim(run.stage, run.id) as claimed:
                if claimed is None:
                    raise UserError(
                        f"{run.title} cannot be done again now.", "Another process works on it."
                    )
            (folder / "result.json").unlink(missing_ok=True)  # first: never finished by halves
            shutil.rmtree(folder)


def _run_with_parents(
    run: Run, prefix: str, store: Store, context: Context, outcome: Outcome, stages: Sequence[str]
) -> bool | None:
    """Do `run`, its unfinished parents first.

    Returns:
        Whether it is finished; None while another process works on it or on a parent.
    """
    if run in outcome.finished or run in outcome.skipped:
        return True
    if run in outcome.failed or run in outcome.blocked:
        return False
    for parent in run.parents.values():
        if _status(parent, store, context) == "finished":
            continue
        allowed = not stages or parent.stage in stages
        done = allowed and _run_with_parents(parent, prefix, store, context, outcome, stages)
        if done is None:
            return None
        if not done:
            log.warning("%s %s %s: waits for %s", prefix, run.stage, run.title, parent.title)
            outcome.blocked.append(run)
            return False
    return _do(run, prefix, store, context, outcome)


def _do(run: Run, prefix: str, store: Store, context: Context, outcome: Outcome) -> bool | None:
    """As `_run_with_parents`, for a run whose parents are finished."""
    if context.agreed(signals.received):
        raise StopRequested(signals.name())
    if _status(run, store, context) != "finished":
        with _claim(run, store, context) as claimed:
            if not claimed:
                log.debug("%s %s %s: another process works on it", prefix, run.stage, run.title)
                return None
            if _status(run, store, context) != "finished":  # asked again: now nobody else can
                return _attempt(run, prefix, store, context, outcome)
    outcome.skipped.append(run)
    log.debug("%s %s %s: finished before", prefix, run.stage, run.title)
    return True


def _attempt(run: Run, prefix: str, store: Store, context: Context, outcome: Outcome) -> bool:
    out = store.folder(run.stage, run.id)
    main = context.accelerator.is_main_process
    log.info("%s %s %s (%s)", prefix, run.stage, run.title, run.id)
    manifest = _manifest(run, context)
    started = time.perf_counter()
    memory.reset_peak()
    if main:
        (out / "failure.json").unlink(missing_ok=True)
        write_json(out / "manifest.json", manifest)
    try:
        parents = {role: store.folder(p.stage, p.id) for role, p in run.parents.items()}
        stage = import_module(f"sparse_transfer.stages.{run.stage}")
        result = stage.run(run, parents, out, context)
        cost = {
            "seconds": round(time.perf_counter() - started, 3),
            "peak_memory_bytes": memory.peak(),
        }
        if main:
            manifest |= result.pop("manifest", {}) | cost
            result = {"title": run.title, "stage": run.stage, **result, "cost": cost}
            write_json(out / "manifest.json", manifest)
            write_json(out / "result.json", result)
    except (StopRequested, KeyboardInterrupt):
        raise
    except Exception as error:  # a failed run is a row of the report, not the end of the plan
        expected = isinstance(error, UserError)
        log.error("%s %s %s failed: %s", prefix, run.stage, run.title, str(error) or repr(error))
        if main:
            failure = {
                "error": str(error) if expected else f"{type(error).__name__}: {error}",
                "expected": expected,
                "traceback": traceback.format_exc(),
            }
            write_json(out / "failure.json", failure)
        if context.debug or context.accelerator.num_processes > 1:
            raise  # the other processes would wait for this one for ever
        outcome.failed.append(run)
        return False
    finally:
        context.progress.done()
        memory.release_freed_blocks()
    if main:
        for leftover in out.glob("resume.*"):
            leftover.unlink()
    context.accelerator.wait_for_everyone()
    outcome.finished.append(run)
    return True


def _status(run: Run, store: Store, context: Context) -> str:
    return context.agreed(lambda: store.status(run.stage, run.id))


class _claim:  # noqa: N801 - reads as a verb in its one `with` statement
    """Rank 0 claims the folder, all ranks learn whether it did."""

    def __init__(self, run: Run, store: Store, context: Context) -> None:
        self._cm = store.claim(run.stage, run.id) if context.accelerator.is_main_process else None
        self._context = context

    def __enter__(self) -> bool:
        folder = self._cm.__enter__() if self._cm else None
        return self._context.agreed(lambda: folder is not None)

    def __exit__(self, *details: Any) -> None:
        if self._cm:
            self._cm.__exit__(*details)


def _manifest(run: Run, context: Context) -> dict[str, Any]:
    import torch

    return {
        "id": run.id,
        "stage": run.stage,
        "title": run.title,
        "subject": asdict(run.subject),
        "identity": run.identity,
        "config": {key: _jsonable(value) for key, value in vars(run.spec).items()},
        "parents": {role: {"stage": p.stage, "id": p.id} for role, p in run.parents.items()},
        "versions": {"python": platform.python_version(), **package_versions()},
        "device": str(context.accelerator.device),
        "threads": torch.get_num_threads(),
        "processes": context.accelerator.num_processes,
        "process_id": os.getpid(),
        "machine": {
            "system": platform.system(),
            "cpu": platform.machine(),
            "cores": os.cpu_count(),
        },
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found: dict[str, str] = {}
    for name in ("sparse-transfer", *_VERSIONED):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def _jsonable(value: Any) -> Any:
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    return str(value) if isinstance(value, Path) else value

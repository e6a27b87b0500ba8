"""What several verbs do: open an experiment, refuse what cannot run, run it, report, speak."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sparse_transfer.commands.app import EXIT_BAD_INPUT, EXIT_FAILED_RUN
from sparse_transfer.errors import UserError, unknown_name

if TYPE_CHECKING:
    from sparse_transfer.config import Experiment
    from sparse_transfer.plan import Plan
    from sparse_transfer.stages.context import Context


def run_plan(
    experiment: Experiment,
    runs: Path,
    data_root: Path | None,
    stages: list[str],
    only: list[str],
    shard: str | None,
    force: bool,
    debug: bool,
) -> int:
    from sparse_transfer import execute, gather, plan, record
    from sparse_transfer.store import Store

    for stage in stages:
        if stage not in (*plan.STAGES, "report"):
            raise unknown_name("stage", stage, (*plan.STAGES, "report"))
    store = Store(runs)
    gather.refuse_clash(store, experiment.name)
    made = make_plan(experiment, data_root, runs)
    to_run = [stage for stage in stages if stage != "report"]
    share = execute.Shard.parse(shard) if shard else None
    failed = bool(made.unavailable)
    if made.unavailable and not made.runs:
        first, *more = made.unavailable
        raise UserError(
            f"{first.what} cannot be used.",
            str(first.error),
            f"And {len(more)} more: `sparse-transfer check`." if more else "",
        )
    for item in made.unavailable:
        say(f"warning: arm {item.arm}: {item.what} is left out:\n{item.error}")
    if to_run or not stages:
        context = make_context(runs, data_root, debug)
        if context.accelerator.is_main_process:
            record.save(made, store)
            if force:
                execute.forget(made, store, to_run, only, share)
        context.accelerator.wait_for_everyone()
        outcome = execute.execute(made, store, context, stages=to_run, only=only, shard=share)
        failed = failed or bool(outcome.failed or outcome.blocked)
        say(
            f"{len(outcome.finished)} runs done, {len(outcome.skipped)} finished before, "
            f"{len(outcome.failed)} failed, {len(outcome.blocked)} waiting for others."
        )
        if context.accelerator.num_processes > 1:
            context.accelerator.end_training()
    if is_main() and ("report" in stages or not (stages or only or share)):
        write_report(experiment.name, runs, None, data_root)
    return EXIT_FAILED_RUN if failed else 0


def refuse_problems(experiment: Experiment, data_root: Path | None, runs: Path) -> None:
    """Raise everything that is known to be wrong before anything is run."""
    from sparse_transfer import preflight

    refuse(experiment, preflight.check(experiment, data_root, cache_folder(runs)))


def refuse(experiment: Experiment, problems: Sequence[tuple[str, UserError]]) -> None:
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise UserError(
            f"{experiment.name} cannot be run as it is: {count}.",
            "\n".join(f"- {where}: {error}" for where, error in problems),
        )


def say_availability(data_root: Path | None, runs: Path) -> int:
    """Print the state of every task; the exit code, bad input if data differs from its card."""
    from textwrap import TextWrapper

    from sparse_transfer import availability, cards

    states = availability.survey(cards.names(), data_root, cache_folder(runs))
    width = max(len(one.name) for one in states)
    wrapper = TextWrapper(width=96, initial_indent=" " * 4, subsequent_indent=" " * 6)
    wrapper.break_long_words = wrapper.break_on_hyphens = False  # paths can be copied
    for one in states:
        typer.echo(f"{one.name:<{width}}  {one.state}")
        for line in (*one.found, *([f"By hand: {one.manual}"] if one.manual else [])):
            for part in line.splitlines():
                typer.echo(wrapper.fill(part))
    count = {state: sum(one.state == state for one in states) for state in ("here", "broken")}
    typer.echo(f"{count['here']} of {len(states)} tasks are here, {count['broken']} are broken.")
    return EXIT_BAD_INPUT if count["broken"] else 0


def write_report(
    name: str | None, runs: Path, out: Path | None, data_root: Path | None = None
) -> None:
    from rich.console import Console

    from sparse_transfer import gather
    from sparse_transfer.originals import Originals
    from sparse_transfer.report.terminal import print_report
    from sparse_transfer.report.write import build, save
    from sparse_transfer.store import Store

    results = gather.collect(Store(runs), name)
    images = Originals(results.facts.get("references", {}), data_root, cache_folder(runs))
    made = build(results.frame, results.bench, results.facts, results.predictions, images)
    page = save(made, out or runs / "report" / results.facts["experiment"])
    print_report(made.facts["title"], made.verdict, made.summary, Console(), made.closing)
    typer.echo(f"Report: {page}")


def load_experiment(name: str, sets: list[str] | None, data_root: Path | None) -> Experiment:
    from sparse_transfer import experiment_file

    return experiment_file.load(name, sets or [], data_root)


def make_plan(experiment: Experiment, data_root: Path | None, runs: Path) -> Plan:
    from sparse_transfer import data, expansion

    cache = cache_folder(runs)
    return expansion.make(experiment, lambda ref: data.split_hash(ref, data_root, cache))


def make_context(runs: Path, data_root: Path | None, debug: bool) -> Context:
    from sparse_transfer import console, memory, signals
    from sparse_transfer.devices import accelerator
    from sparse_transfer.stages.context import Context, Silent

    signals.listen()
    memory.keep_freed_blocks()
    progress = console.progress() if is_main() else Silent()
    return Context(accelerator(), data_root, cache_folder(runs), progress, debug)


def cache_folder(runs: Path) -> Path:
    return Path(os.environ.get("SPARSE_TRANSFER_CACHE") or runs / "cache")


def set_up(debug: bool, threads: int | None = None) -> None:
    from sparse_transfer import console

    console.set_up_logging(verbose=debug, quiet=not is_main())
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)


def set_up_device(device: str) -> None:
    """Refuse a device that is not there, before anything is loaded; on a GPU, fp32 means fp32."""
    import torch

    from sparse_transfer import devices

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda cannot be used.",
            "PyTorch finds no NVIDIA GPU here.",
            "Measure on the CPU: leave --device out.",
        )
    if device == "cuda":
        devices.accelerator()


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def complain(error: UserError) -> None:
    first, *rest = [part for part in (error.what, error.why, error.hint) if part]
    say("\n".join([f"error: {first}", *rest]))


def say(text: str) -> None:
    if is_main():
        typer.echo(text, err=True)

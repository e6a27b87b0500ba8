"""Verbs on an experiment file: check, plan, run, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_transfer.commands.app import (
    EXIT_BAD_INPUT,
    ConfigName,
    DataRoot,
    Debug,
    Json,
    Runs,
    Sets,
    Threads,
    app,
    examples,
)
from sparse_transfer.commands.steps import (
    cache_folder,
    load_experiment,
    make_plan,
    print_json,
    refuse,
    refuse_problems,
    run_plan,
    say_availability,
    set_up,
    write_report,
)
from sparse_transfer.errors import UserError


@app.command(
    epilog=examples(
        "sparse-transfer check quickstart",
        "sparse-transfer check --tasks --data-root ~/images",
    )
)
def check(
    name: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file or a shipped name.")
    ] = "",
    tasks: Annotated[
        bool, typer.Option("--tasks", help="Say for every task whether its data is here.")
    ] = False,
    sets: Sets = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Check an experiment without running it: fields, names, options, data, models, schedules.

    With --tasks instead: which task cards can be used here, and how to get the others.
    """
    from sparse_transfer import preflight

    set_up(debug)
    if tasks == bool(name):
        raise UserError("Give an experiment to check, or --tasks, one of the two.")
    if tasks:
        raise typer.Exit(say_availability(data_root, runs))
    experiment = load_experiment(name, sets, data_root)
    refuse_problems(experiment, data_root, runs)
    for line in preflight.describe(experiment):
        typer.echo(line)
    typer.echo(f"{name} can be run. Next: sparse-transfer plan {name}")


@app.command(
    epilog=examples("sparse-transfer plan quickstart", "sparse-transfer plan small-study --json")
)
def plan(
    name: ConfigName,
    sets: Sets = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    estimate: Annotated[
        bool, typer.Option(help="Measure this machine for some seconds to estimate the time.")
    ] = True,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """List the runs of an experiment, their status, rough time and disk, and do nothing."""
    from sparse_transfer import estimate as estimates
    from sparse_transfer import preflight
    from sparse_transfer.store import Store

    set_up(debug, threads)
    experiment = load_experiment(name, sets, data_root)
    refuse(experiment, preflight.methods(experiment, data_root, cache_folder(runs)))
    made = make_plan(experiment, data_root, runs)
    store = Store(runs)
    seconds, bytes_ = (
        estimates.estimate(made, data_root, cache_folder(runs)) if estimate else ({}, {})
    )
    rows = [
        {
            "id": run.id,
            "stage": run.stage,
            "title": run.title,
            "status": store.status(run.stage, run.id),
            "seconds": seconds.get(run.id),
            "bytes": bytes_.get(run.id),
        }
        for run in made.runs
    ]
    missing = [
        {"arm": item.arm, "what": item.what, "error": str(item.error)} for item in made.unavailable
    ]
    if as_json:
        print_json({"runs": rows, "unavailable": missing})
    else:
        from sparse_transfer.report import console_tables

        console_tables.print_plan(rows, missing)
    if missing:
        raise typer.Exit(EXIT_BAD_INPUT)


@app.command(
    epilog=examples(
        "sparse-transfer run quickstart",
        "sparse-transfer run small-study --data-root ~/images --stage prune --shard 0/4",
    )
)
def run(
    name: ConfigName,
    sets: Sets = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this stage: prune, evaluate, tune, linear, few_shot, online, full, bench, "
            "report."
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only runs whose id starts so.")] = None,
    shard: Annotated[
        str | None, typer.Option(help="Only share i of n of the work, as i/n.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Do finished runs again.")] = False,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Run an experiment: skip what is finished, resume what is not, end with the report."""
    from sparse_transfer import preflight

    set_up(debug, threads)
    experiment = load_experiment(name, sets, data_root)
    refuse(experiment, preflight.methods(experiment, data_root, cache_folder(runs)))
    raise typer.Exit(
        run_plan(
            experiment,
            runs,
            data_root,
            stage or [],
            only or [],
            shard,
            force,
            debug,
        )
    )


@app.command(
    epilog=examples(
        "sparse-transfer report quickstart",
        "sparse-transfer report paper --out talk/",
    )
)
def report(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="An experiment or an imported set; default: the last experiment run.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: RUNS/report/NAME.")] = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write the report from the results that are there: HTML, CSV, Markdown, and a table here."""
    set_up(debug)
    write_report(name, runs, out, data_root)

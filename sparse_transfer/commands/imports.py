"""Verbs on results of others: import-results, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sparse_transfer.commands.app import (
    DataRoot,
    Debug,
    Json,
    Runs,
    Sets,
    Threads,
    TransferSeeds,
    app,
    examples,
)
from sparse_transfer.commands.steps import (
    cache_folder,
    is_main,
    print_json,
    refuse_problems,
    run_plan,
    say,
    set_up,
    write_report,
)


@app.command(
    "import-results",
    epilog=examples(
        "sparse-transfer import-results linear_transfer_results.txt full_transfer_results.txt",
        "sparse-transfer import-results theirs.csv --name theirs --setting full --architecture "
        "resnet50 --align 0.8,0.9",
    ),
)
def import_results(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Raw result files: a line per run.")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Of the set; default: `paper` for the study's files, else from FILE."),
    ] = None,
    unit: Annotated[
        Literal["fraction", "percent"] | None,
        typer.Option(help="Of the accuracies, for files that have both ≤ 1 and > 1."),
    ] = None,
    setting: Annotated[
        Literal["linear", "full"] | None,
        typer.Option(help="For files whose name and columns do not tell."),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(help="Default: the file's column or name (mobilenet), else resnet50."),
    ] = None,
    duplicates: Annotated[
        Literal["keep", "mean", "first", "last", "error"],
        typer.Option(help="Of equal keys; `keep` keeps every line and compares their mean."),
    ] = "keep",
    task: Annotated[
        list[str] | None, typer.Option(help="A further task name to accept. May be repeated.")
    ] = None,
    align: Annotated[
        str, typer.Option(help="Sparsities that labels within 0.015 are moved to, as 0.8,0.9.")
    ] = "",
    as_json: Json = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Import published result files as one named set: declared, not verified."""
    from sparse_transfer.imports import coverage, sets

    set_up(debug)
    how = sets.Reading(
        unit=unit,
        setting=setting,
        architecture=architecture,
        tasks=tuple(task or ()),
        duplicates=None if duplicates == "keep" else duplicates,
        levels=sets.levels(align),
    )
    frame = sets.read(files, how)
    kept, gaps = coverage.complete(sets.one_row_per_run(frame))
    coverage.refuse_empty(kept, gaps)
    chosen = name or sets.default_name(files)
    folder = sets.write(runs, chosen, frame, files, how)
    told = sets.told(chosen, frame, coverage.summary(kept), gaps)
    if as_json:
        print_json(told)
        return
    from sparse_transfer.report import console_tables

    console_tables.print_imported(told)
    typer.echo(f"{folder} written. Next: sparse-transfer report {chosen}")


@app.command(
    epilog=examples(
        "sparse-transfer compare runs/prune/0123456789abcdef/checkpoint --with paper",
        "sparse-transfer compare sparse/ --dense dense/ --with paper --tasks dtd,pets --mode full",
    )
)
def compare(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder of this program.")],
    beside: Annotated[
        str, typer.Option("--with", help="An imported set: `import-results` makes one.")
    ],
    dense: Annotated[
        Path | None,
        typer.Option(help="Its dense parent; default: the one that `prune` made with it."),
    ] = None,
    tasks: Annotated[
        str, typer.Option(help="`available`, or imported tasks, comma-separated.")
    ] = "available",
    mode: Annotated[
        list[str] | None,
        typer.Option(help="linear, full. May be repeated; default: linear."),
    ] = None,
    profile: Annotated[
        str, typer.Option(help="Transfer profiles PROFILE-linear and PROFILE-full.")
    ] = "paper",
    architecture: Annotated[
        str | None,
        typer.Option(help="The imported architecture that this is; default: the model's name."),
    ] = None,
    seeds: TransferSeeds = "0",
    sets: Sets = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Transfer a checkpoint and its dense parent, and report them beside imported results.

    Both share a ranking where the own dense model, run under the paper profile, lies within one
    point of the imported one on every shared task; else they stand side by side.
    """
    from sparse_transfer import gather, side_by_side
    from sparse_transfer.store import Store

    set_up(debug, threads)
    asked = side_by_side.request(
        Store(runs),
        checkpoint=checkpoint,
        dense=dense,
        imported=beside,
        tasks=tasks,
        modes=mode or ["linear"],
        profile=profile,
        architecture=architecture,
        seeds=seeds,
        overrides=sets or [],
        data_root=data_root,
        cache=cache_folder(runs),
    )
    for task, reason in asked.absent.items():
        say(f"not here: {task}: {reason}")
    refuse_problems(asked.experiment, data_root, runs)
    name = asked.experiment.name
    gather.put_beside(Store(runs), name, beside, asked.absent)
    stages = side_by_side.STAGES
    code = run_plan(asked.experiment, runs, data_root, [*stages], [], None, False, debug)
    if is_main():
        write_report(name, runs, None, data_root)
    raise typer.Exit(code)

"""The command line: parse, call, print. Every decision is taken elsewhere."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparse_transfer.errors import StopRequested, UserError, unknown_name

if TYPE_CHECKING:
    from sparse_transfer.config import Experiment
    from sparse_transfer.plan import Plan
    from sparse_transfer.stages.context import Context

EXIT_FAILED_RUN, EXIT_BAD_INPUT, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 75, 130

_INTERRUPTED = "Interrupted. What is finished is kept; run the same command again to go on."

app = typer.Typer(
    name="sparse-transfer",
    help="Prune vision models, transfer them to your tasks with the mask held fixed, and read what "
    "the zeros cost and bought.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)
    ] = False,
) -> None:
    if version:
        import sparse_transfer

        typer.echo(sparse_transfer.__version__)
        raise typer.Exit


def _examples(*lines: str) -> str:
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(f"  {line}" for line in lines)


Runs = Annotated[
    Path,
    typer.Option("--runs", envvar="SPARSE_TRANSFER_RUNS", help="Folder that holds all results."),
]
DataRoot = Annotated[
    Path | None,
    typer.Option("--data-root", envvar="SPARSE_TRANSFER_DATA", help="Folder of local data sets."),
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Change one field: a.b=c. May be repeated.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of this process.")
]
ConfigName = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file or a shipped name.")]

LISTS = ("pruners", "tasks", "metrics", "backends", "configs", "recipes", "models")


@app.command(epilog=_examples("sparse-transfer ls pruners", "sparse-transfer ls tasks --json"))
def ls(
    what: Annotated[str, typer.Argument(help=" | ".join(LISTS))],
    as_json: Json = False,
) -> None:
    """List what there is: pruners, tasks, metrics, backends, configs, recipes, models."""
    from sparse_transfer import listing

    if what not in LISTS:
        raise unknown_name("list", what, LISTS)
    rows = listing.rows(what)
    if as_json:
        _print_json([{"name": name, "summary": summary} for name, summary in rows])
        return
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        typer.echo(f"{name:<{width}}  {summary}".rstrip())


@app.command(epilog=_examples("sparse-transfer show gmp", "sparse-transfer show quickstart"))
def show(
    name: Annotated[str, typer.Argument(help="A pruner, task, metric, backend, config or recipe.")],
) -> None:
    """Show one thing in full: a pruner's source and options, a task card, a config."""
    from sparse_transfer import listing

    typer.echo(listing.details(name))


@app.command(
    epilog=_examples(
        "sparse-transfer cp quickstart my-study.yaml",
        "sparse-transfer cp small-study studies/first.yaml",
    )
)
def cp(
    name: Annotated[str, typer.Argument(metavar="CONFIG", help="A shipped experiment or recipe.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A new file.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite DEST.")] = False,
) -> None:
    """Copy a shipped config, to be changed and run as your own."""
    from sparse_transfer import listing
    from sparse_transfer.store import replacing

    if destination.exists() and not force:
        raise UserError(f"{destination} exists already.", hint="Choose another name, or --force.")
    text = listing.config_text(name, destination.stem)
    with replacing(destination) as temporary:
        temporary.write_text(text, encoding="utf-8")
    typer.echo(f"{destination} written. Next: sparse-transfer check {destination}")


@app.command(
    epilog=_examples(
        "sparse-transfer check quickstart",
        "sparse-transfer check small-study --data-root ~/images",
    )
)
def check(
    name: ConfigName,
    sets: Sets = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Check an experiment without running it: fields, names, options, data, models, schedules."""
    from sparse_transfer import preflight

    _set_up(debug)
    experiment = _load(name, sets, data_root)
    _refuse_problems(experiment, data_root, runs)
    for line in preflight.describe(experiment):
        typer.echo(line)
    typer.echo(f"{name} can be run. Next: sparse-transfer plan {name}")


@app.command(
    epilog=_examples("sparse-transfer plan quickstart", "sparse-transfer plan small-study --json")
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

    _set_up(debug, threads)
    experiment = _load(name, sets, data_root)
    _refuse(experiment, preflight.methods(experiment, data_root, _cache(runs)))
    made = _plan(experiment, data_root, runs)
    store = Store(runs)
    seconds, bytes_ = estimates.estimate(made, data_root, _cache(runs)) if estimate else ({}, {})
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
        _print_json({"runs": rows, "unavailable": missing})
    else:
        from sparse_transfer.report import console_tables

        console_tables.print_plan(rows, missing)
    if missing:
        raise typer.Exit(EXIT_BAD_INPUT)


@app.command(
    epilog=_examples(
        "sparse-transfer run quickstart",
        "sparse-transfer run small-study --data-root ~/images --stage prune --shard 0/4",
    )
)
def run(
    name: ConfigName,
    sets: Sets = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Only this stage: prune, tune, linear, full, bench, report."),
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

    _set_up(debug, threads)
    experiment = _load(name, sets, data_root)
    _refuse(experiment, preflight.methods(experiment, data_root, _cache(runs)))
    raise typer.Exit(
        _execute(
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
    epilog=_examples(
        "sparse-transfer prune resnet20_cifar --weights random --task shapes --recipe demo "
        "--image-size 32 --crop none --method fggp --sparsity 0.9",
        "sparse-transfer prune resnet18 --task pets --method gmp --recipe short-prune",
    )
)
def prune(
    model: Annotated[str, typer.Argument(help="timm name, hf-hub:ORG/NAME or local-dir:PATH.")],
    task: Annotated[str, typer.Option(help="Task card of the upstream images.")],
    method: Annotated[str, typer.Option(help="A pruner: `sparse-transfer ls pruners`.")] = "gmp",
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="Share of zeros (of MACs removed, for structured methods), 0 to below 1; "
            "default: 0.9, or the only one that an N:M pattern has.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Training recipe: `ls recipes`.")] = "short-prune",
    weights: Annotated[
        str, typer.Option(help="`pretrained`, `random`, or a .safetensors / .pth file.")
    ] = "pretrained",
    kwarg: Annotated[
        list[str] | None, typer.Option(help="Model argument name=value. May be repeated.")
    ] = None,
    cfg: Annotated[
        list[str] | None,
        typer.Option(help="pretrained_cfg override name=value, e.g. mean=[.5,.5,.5]."),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Pruner option name=value. May be repeated.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Pixels.")] = 224,
    crop: Annotated[
        str, typer.Option(help="`center` or `none` (whole image squeezed).")
    ] = "center",
    recalibrate_bn: Annotated[
        int, typer.Option(help="Images to recompute batch-norm statistics on afterwards; 0: none.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Upstream seed.")] = 0,
    sets: Sets = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Prune one upstream model (and make its dense counterpart); prints the checkpoint's folder."""
    from sparse_transfer import single

    _set_up(debug, threads)
    experiment = single.prune_experiment(
        model=model,
        task=task,
        method=method,
        sparsity=sparsity,
        recipe=recipe,
        weights=weights,
        kwargs=kwarg or [],
        pretrained_cfg=cfg or [],
        options=option or [],
        image_size=image_size,
        crop=crop,
        recalibrate_bn=recalibrate_bn,
        seed=seed,
        overrides=sets or [],
    )
    _refuse_problems(experiment, data_root, runs)
    code = _execute(experiment, runs, data_root, [], [], None, False, debug)
    made = _plan(experiment, data_root, runs)
    for item in made.runs:
        folder = runs / "prune" / item.id / "checkpoint"
        if folder.is_dir() and _is_main():
            typer.echo(f"{single.outcome(folder.parent)}\n{item.title}: {folder}")
    raise typer.Exit(code)


@app.command(
    epilog=_examples(
        "sparse-transfer transfer runs/prune/0123456789abcdef/checkpoint --task digits",
        "sparse-transfer transfer sparse/ --dense dense/ --task my.yaml --mode linear --mode full",
    )
)
def transfer(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder of this program.")],
    task: Annotated[list[str], typer.Option(help="Task card. May be repeated.")],
    mode: Annotated[list[str] | None, typer.Option(help="linear, full. May be repeated.")] = None,
    dense: Annotated[
        Path | None, typer.Option(help="Checkpoint of the dense model to compare with.")
    ] = None,
    linear: Annotated[str, typer.Option(help="Linear profile.")] = "paper-linear",
    full: Annotated[str, typer.Option(help="Full fine-tuning profile.")] = "short",
    image_size: Annotated[
        int | None, typer.Option(help="Pixels; default: the checkpoint's own.")
    ] = None,
    crop: Annotated[
        str | None,
        typer.Option(help="`center` or `none` (whole image squeezed); default: as it was pruned."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Transfer seeds, comma-separated.")] = "0",
    sets: Sets = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Transfer a checkpoint to downstream tasks, its mask held fixed; ends with a report."""
    from sparse_transfer import single

    _set_up(debug, threads)
    experiment = single.transfer_experiment(
        checkpoint=checkpoint,
        dense=dense,
        tasks=task,
        modes=mode or ["linear"],
        linear=linear,
        full=full,
        image_size=image_size,
        crop=crop,
        seeds=seeds,
        overrides=sets or [],
    )
    _refuse_problems(experiment, data_root, runs)
    raise typer.Exit(_execute(experiment, runs, data_root, [], [], None, False, debug))


@app.command(
    epilog=_examples(
        "sparse-transfer bench runs/prune/0123456789abcdef/checkpoint --dense dense/checkpoint",
        "sparse-transfer bench sparse/ --backend dense --backend onnxruntime --batch-size 1",
    )
)
def bench(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder of this program.")],
    dense: Annotated[
        Path | None, typer.Option(help="Dense checkpoint to compare with; default: no comparison.")
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="May be repeated: `ls backends`.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per call.")] = 16,
    image_size: Annotated[
        int | None, typer.Option(help="Pixels; default: the checkpoint's own.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=6, help="Timed calls of each, interleaved.")] = 30,
    as_json: Json = False,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure latency beside the dense model: interleaved, median, agreement checked first."""
    from sparse_transfer.report import console_tables
    from sparse_transfer.stages import bench as stage

    _set_up(debug, threads)
    rows, reasons = stage.measure_checkpoints(
        checkpoint, dense, tuple(backend or ["dense"]), batch_size, image_size, repeats
    )
    if as_json:
        _print_json(rows)
    else:
        console_tables.print_bench(rows)
    for reason in reasons:
        _say(f"not measured: {reason}")


@app.command(
    epilog=_examples("sparse-transfer report quickstart", "sparse-transfer report --out talk/")
)
def report(
    name: Annotated[
        str | None, typer.Argument(metavar="[EXPERIMENT]", help="Name; default: the last one run.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; default: RUNS/report/NAME.")] = None,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Write the report from the results that are there: HTML, CSV, Markdown, and a table here."""
    _set_up(debug)
    _report(name, runs, out)


def main() -> None:
    """Entry point: every expected error is a message and an exit code, never a traceback."""
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False) or 0
        if code == EXIT_INTERRUPTED:  # the parser turns Ctrl-C into a code of its own
            _say(_INTERRUPTED)
        sys.exit(code)
    except UserError as error:
        if debug:
            raise
        _complain(error)
        sys.exit(EXIT_BAD_INPUT)
    except StopRequested as stop:
        _say(f"Stopped by {stop}. Run the same command again to go on from the last epoch.")
        sys.exit(EXIT_STOPPED)
    except KeyboardInterrupt:
        _say(_INTERRUPTED)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error of the parser, whichever click it is
            error.show()  # type: ignore[attr-defined]
            sys.exit(EXIT_BAD_INPUT)
        if debug:
            raise
        _say(f"error: {type(error).__name__}: {error}")
        _say("This is a mistake of the program. Run it again with --debug for the traceback.")
        sys.exit(EXIT_FAILED_RUN)


def _execute(
    experiment: Experiment,
    runs: Path,
    data_root: Path | None,
    stages: list[str],
    only: list[str],
    shard: str | None,
    force: bool,
    debug: bool,
) -> int:
    from sparse_transfer import execute, plan, record
    from sparse_transfer.store import Store

    for stage in stages:
        if stage not in (*plan.STAGES, "report"):
            raise unknown_name("stage", stage, (*plan.STAGES, "report"))
    made = _plan(experiment, data_root, runs)
    store = Store(runs)
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
        _say(f"warning: arm {item.arm}: {item.what} is left out:\n{item.error}")
    if to_run or not stages:
        context = _context(runs, data_root, debug)
        if context.accelerator.is_main_process:
            record.save(made, store)
            if force:
                execute.forget(made, store, to_run, only, share)
        context.accelerator.wait_for_everyone()
        outcome = execute.execute(made, store, context, stages=to_run, only=only, shard=share)
        failed = failed or bool(outcome.failed or outcome.blocked)
        _say(
            f"{len(outcome.finished)} runs done, {len(outcome.skipped)} finished before, "
            f"{len(outcome.failed)} failed, {len(outcome.blocked)} waiting for others."
        )
        if context.accelerator.num_processes > 1:
            context.accelerator.end_training()
    if _is_main() and ("report" in stages or not (stages or only or share)):
        _report(experiment.name, runs, None)
    return EXIT_FAILED_RUN if failed else 0


def _refuse_problems(experiment: Experiment, data_root: Path | None, runs: Path) -> None:
    """Raise everything that is known to be wrong before anything is run."""
    from sparse_transfer import preflight

    _refuse(experiment, preflight.check(experiment, data_root, _cache(runs)))


def _refuse(experiment: Experiment, problems: Sequence[tuple[str, UserError]]) -> None:
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise UserError(
            f"{experiment.name} cannot be run as it is: {count}.",
            "\n".join(f"- {where}: {error}" for where, error in problems),
        )


def _report(name: str | None, runs: Path, out: Path | None) -> None:
    from rich.console import Console

    from sparse_transfer import record
    from sparse_transfer.report.terminal import print_report
    from sparse_transfer.report.write import build, save
    from sparse_transfer.store import Store

    results = record.collect(Store(runs), name)
    made = build(results.frame, results.bench, results.facts, results.predictions)
    page = save(made, out or runs / "report" / results.facts["experiment"])
    print_report(made.facts["title"], made.verdict, made.summary, Console())
    typer.echo(f"Report: {page}")


def _load(name: str, sets: list[str] | None, data_root: Path | None) -> Experiment:
    from sparse_transfer import experiment_file

    return experiment_file.load(name, sets or [], data_root)


def _plan(experiment: Experiment, data_root: Path | None, runs: Path) -> Plan:
    from sparse_transfer import data, plan

    return plan.make(experiment, lambda ref: data.split_hash(ref, data_root, _cache(runs)))


def _context(runs: Path, data_root: Path | None, debug: bool) -> Context:
    from sparse_transfer import console, memory, signals
    from sparse_transfer.devices import accelerator
    from sparse_transfer.stages.context import Context, Silent

    signals.listen()
    memory.keep_freed_blocks()
    progress = console.progress() if _is_main() else Silent()
    return Context(accelerator(), data_root, _cache(runs), progress, debug)


def _cache(runs: Path) -> Path:
    return Path(os.environ.get("SPARSE_TRANSFER_CACHE") or runs / "cache")


def _set_up(debug: bool, threads: int | None = None) -> None:
    from sparse_transfer import console

    console.set_up_logging(verbose=debug, quiet=not _is_main())
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import torch

        torch.set_num_threads(threads)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _complain(error: UserError) -> None:
    first, *rest = [part for part in (error.what, error.why, error.hint) if part]
    _say("\n".join([f"error: {first}", *rest]))


def _say(text: str) -> None:
    if _is_main():
        typer.echo(text, err=True)


if __name__ == "__main__":
    main()

"""The application that verbs are registered with, and the options that they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXIT_FAILED_RUN, EXIT_BAD_INPUT, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 75, 130

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


def examples(*lines: str) -> str:
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

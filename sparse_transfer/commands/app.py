"""The application that verbs are registered with, and the options that they share."""

from __future__ import annotations

from enum import StrEnum
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


class Engine(StrEnum):
    """What computes a training."""

    auto = "auto"
    dense = "dense"
    sparse = "sparse"


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
Weights = Annotated[
    str, typer.Option(help="`pretrained`, `random`, or a .safetensors / .pth file.")
]
ModelArguments = Annotated[
    list[str] | None, typer.Option(help="Model argument name=value. May be repeated.")
]
InputTransform = Annotated[
    list[str] | None,
    typer.Option(help="pretrained_cfg override name=value, e.g. mean=[.5,.5,.5]."),
]
ImageSize = Annotated[
    int | None, typer.Option(min=8, help="Pixels; default: the checkpoint's own.")
]
Crop = Annotated[
    str | None,
    typer.Option(help="`center` or `none` (whole image squeezed); default: as it was pruned."),
]
TransferSeeds = Annotated[str, typer.Option(help="Transfer seeds, comma-separated.")]

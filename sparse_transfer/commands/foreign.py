"""Verbs on checkpoints of any origin: import, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_transfer.commands.app import Debug, Json, Runs, app, examples
from sparse_transfer.commands.steps import print_json, set_up


@app.command(
    "import",
    epilog=examples(
        "sparse-transfer import acdc_90.ckpt --arch resnet50 --sparse 0.9",
        "sparse-transfer import squeezenet.safetensors --arch squeezenet1_0 --sparse 0.6658",
        "sparse-transfer import dense.pth --arch resnet18 --dense --cfg mean=[.5,.5,.5]",
    ),
)
def import_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A .safetensors, .pth, .pt or .ckpt file.")
    ],
    arch: Annotated[str, typer.Option(help="timm or torchvision name of the network.")],
    layout: Annotated[str, typer.Option(help="`auto`, or one of `ls layouts`.")] = "auto",
    sparse: Annotated[
        float | None, typer.Option(help="The share of zeros it is said to have; it is verified.")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="It is dense: zeros, if any, may train.")
    ] = False,
    kwarg: Annotated[
        list[str] | None, typer.Option(help="Model argument name=value. May be repeated.")
    ] = None,
    cfg: Annotated[
        list[str] | None,
        typer.Option(help="Input transform name=value, e.g. mean=[.5,.5,.5]. May be repeated."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="New folder; default: RUNS/import/NAME OF THE FILE/checkpoint."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a checkpoint in OUT.")] = False,
    as_json: Json = False,
    runs: Runs = Path("runs"),
    debug: Debug = False,
) -> None:
    """Bring in a checkpoint of another project: its layout is found, its sparsity verified."""
    from sparse_transfer import single
    from sparse_transfer.imports import checkpoints
    from sparse_transfer.report import console_tables

    set_up(debug)
    found = checkpoints.convert(
        checkpoint,
        arch,
        layout=layout,
        sparse=sparse,
        dense=dense,
        kwargs=single.pairs(kwarg or [], "--kwarg"),
        pretrained_cfg=single.pairs(cfg or [], "--cfg"),
    )
    folder = out or runs / "import" / single.slug(checkpoint.stem) / "checkpoint"
    found.save(folder, replace_existing=force)
    rows = checkpoints.effective_layers(found)
    if as_json:
        print_json({"checkpoint": str(folder), "facts": found.facts, "layers": rows})
        return
    if rows:
        console_tables.print_effective_layers(rows)
    for line in checkpoints.describe(found):
        typer.echo(line)
    typer.echo(f"{folder}\nNext: sparse-transfer transfer {folder} --task TASK")

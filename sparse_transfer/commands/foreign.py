"""Verbs on checkpoints of any origin: import, inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sparse_transfer.commands.app import (
    DataRoot,
    Debug,
    Json,
    ModelArguments,
    Runs,
    Threads,
    app,
    examples,
)
from sparse_transfer.commands.steps import make_context, print_json, say, set_up


@app.command(
    "import",
    epilog=examples(
        "sparse-transfer import acdc_90.ckpt --arch resnet50 --sparse 0.9",
        "sparse-transfer import squeezenet.safetensors --arch squeezenet1_0 --sparse 0.6658",
        "sparse-transfer import checkpoint.packed --out sparse",
    ),
)
def import_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A .safetensors, .pth, .pt or .ckpt file, or a packed one."
        ),
    ],
    arch: Annotated[
        str | None,
        typer.Option(help="timm or torchvision name of the network; a packed file has its own."),
    ] = None,
    layout: Annotated[str, typer.Option(help="`auto`, or one of `ls layouts`.")] = "auto",
    sparse: Annotated[
        float | None, typer.Option(help="The share of zeros it is said to have; it is verified.")
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="It is dense: zeros, if any, may train.")
    ] = False,
    kwarg: ModelArguments = None,
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
    """Bring in a checkpoint of another project: its layout is found, its sparsity verified.

    A packed file (`export --to packed`) becomes the folder again that it was made of.
    """
    from sparse_transfer import packed, single
    from sparse_transfer.imports import checkpoints
    from sparse_transfer.report import console_tables
    from sparse_transfer.store import slug

    set_up(debug)
    folder = out or runs / "import" / slug(checkpoint.stem) / "checkpoint"
    if packed.is_packed(checkpoint):
        described = {"--arch": arch, "--sparse": sparse, "--kwarg": kwarg, "--cfg": cfg}
        given = [name for name, value in described.items() if value] + ["--dense"] * dense
        opened = checkpoints.unpack(checkpoint, folder, given, replace_existing=force)
        if as_json:
            print_json({"checkpoint": str(folder), "facts": opened.facts})
        else:
            typer.echo(f"{opened.loaded.title}\n{folder}")
        return
    found = checkpoints.convert(
        checkpoint,
        checkpoints.stated(arch, checkpoint),
        layout=layout,
        sparse=sparse,
        dense=dense,
        kwargs=single.pairs(kwarg or [], "--kwarg"),
        pretrained_cfg=single.pairs(cfg or [], "--cfg"),
    )
    found.save(folder, replace_existing=force)
    rows = checkpoints.effective_layers(found)
    if as_json:
        print_json({"checkpoint": str(folder), "facts": found.facts, "layers": rows})
        return
    if rows:
        console_tables.print_effective_layers(rows)
    for line in checkpoints.describe(found):
        typer.echo(line)
    typer.echo(f"{folder}\n{checkpoints.next_step(found, folder)}")


@app.command(
    epilog=examples(
        "sparse-transfer inspect resnet18 --weights random",
        "sparse-transfer inspect runs/prune/0123456789abcdef/checkpoint --sensitivity digits",
    )
)
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="CKPT", help="A checkpoint folder, or any model name.")
    ],
    sensitivity: Annotated[
        str | None,
        typer.Option(help="Task card: prune each layer alone to 80, 90, 95 % and score it."),
    ] = None,
    judge: Annotated[
        Literal["auto", "head", "probe"],
        typer.Option(help="Of --sensitivity; `auto`: the head if recorded to be the task's."),
    ] = "auto",
    dense: Annotated[
        str | None, typer.Option(help="The dense checkpoint or model, for its times and totals.")
    ] = None,
    images: Annotated[
        int, typer.Option(min=2, help="Test images that --sensitivity looks at, at most.")
    ] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per timed call.")] = 1,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="Pixels of the timed calls; default: the model's own."),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="For model names: `pretrained`, `random`, or a weight file.")
    ] = "pretrained",
    kwarg: Annotated[
        list[str] | None, typer.Option(help="For model names: argument name=value.")
    ] = None,
    as_json: Json = False,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Show a network layer by layer: density, share of MACs, dead channels, ms; what matters."""
    from sparse_transfer import inspection, layer_sensitivity, single
    from sparse_transfer.report import inspection_tables

    set_up(debug, threads)
    context = make_context(runs, data_root, debug)
    kwargs = single.pairs(kwarg or [], "--kwarg")
    loaded, masks = inspection.open_any(model, weights, kwargs)
    found = inspection.inspect_model(loaded, masks, batch_size=batch_size, image_size=image_size)
    beside = None
    if dense is not None:
        full, _ = inspection.open_any(dense)
        beside = inspection.inspect_model(full, None, batch_size=batch_size, image_size=image_size)
    measured = None
    if sensitivity is not None:
        measured = layer_sensitivity.measure(
            loaded, sensitivity, context, judge=judge, images=images
        )
    if as_json:
        parts = {"inspected": found, "dense": beside, "sensitivity": measured}
        print_json({name: part.to_json() for name, part in parts.items() if part is not None})
        return
    inspection_tables.print_inspection(
        found.to_json()["rows"],
        timed=True,
        full_seconds=beside.layer_seconds() if beside else None,
        changes=measured.accuracy_changes() if measured else None,
    )
    for part in (found, beside):
        if part is not None:
            typer.echo(inspection_tables.totals_line(part.totals()))
    if not inspection.sparse_backends():
        say(inspection.NO_SPARSE_TIME)
    if measured is not None:
        typer.echo(f"{measured.setting()}\n{measured.sentence()}")

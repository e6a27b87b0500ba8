"""Verbs on one model or checkpoint: prune, transfer, evaluate, bench, export."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from sparse_transfer.commands.app import (
    ENGINE,
    Crop,
    DataRoot,
    Debug,
    Engine,
    ImageSize,
    InputTransform,
    Json,
    ModelArguments,
    Runs,
    Sets,
    Threads,
    TransferSeeds,
    Weights,
    app,
    examples,
)
from sparse_transfer.commands.steps import (
    cache_folder,
    is_main,
    make_plan,
    print_json,
    refuse_problems,
    run_plan,
    say,
    set_up,
    set_up_device,
)


@app.command(
    epilog=examples(
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
    weights: Weights = "pretrained",
    kwarg: ModelArguments = None,
    cfg: InputTransform = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Pruner option name=value. May be repeated.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=8, help="Pixels.")] = 224,
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

    set_up(debug, threads)
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
    refuse_problems(experiment, data_root, runs)
    code = run_plan(experiment, runs, data_root, [], [], None, False, debug)
    made = make_plan(experiment, data_root, runs)
    for item in made.runs:
        folder = runs / "prune" / item.id / "checkpoint"
        if folder.is_dir() and is_main():
            typer.echo(f"{single.outcome(folder.parent)}\n{item.title}: {folder}")
    raise typer.Exit(code)


@app.command(
    epilog=examples(
        "sparse-transfer transfer runs/prune/0123456789abcdef/checkpoint --task digits",
        "sparse-transfer transfer sparse/ --dense d/ --task my.yaml --mode full --engine sparse",
    )
)
def transfer(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder of this program.")],
    task: Annotated[list[str], typer.Option(help="Task card. May be repeated.")],
    mode: Annotated[
        list[str] | None, typer.Option(help="linear, linear-online, full. May be repeated.")
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint of the dense model to compare with; without it accuracies have no "
            "reference."
        ),
    ] = None,
    linear: Annotated[str, typer.Option(help="Linear profile.")] = "paper-linear",
    full: Annotated[str, typer.Option(help="Full fine-tuning profile.")] = "short",
    online: Annotated[
        str, typer.Option(help="Profile of linear-online: backbone recomputed each step.")
    ] = "paper-linear-online",
    engine: Annotated[Engine, typer.Option(help=ENGINE)] = Engine.auto,
    image_size: ImageSize = None,
    crop: Crop = None,
    seeds: TransferSeeds = "0",
    sets: Sets = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Transfer a checkpoint to downstream tasks, its mask held fixed; ends with a report."""
    from sparse_transfer import single

    set_up(debug, threads)
    experiment = single.transfer_experiment(
        checkpoint=checkpoint,
        dense=dense,
        tasks=task,
        modes=mode or ["linear"],
        linear=linear,
        full=full,
        online=online,
        engine=engine.value,
        image_size=image_size,
        crop=crop,
        seeds=seeds,
        overrides=sets or [],
    )
    refuse_problems(experiment, data_root, runs)
    raise typer.Exit(run_plan(experiment, runs, data_root, [], [], None, False, debug))


@app.command(
    epilog=examples(
        "sparse-transfer evaluate runs/prune/0123456789abcdef/checkpoint --on imagenet_v2_matched",
        "sparse-transfer evaluate sparse/ --on imagenet1k --on imagenet_real --data-root ~/images",
    )
)
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint folder of this program.")],
    on: Annotated[list[str], typer.Option(help="Task card of a test set. May be repeated.")],
    engine: Annotated[Engine, typer.Option(help=ENGINE)] = Engine.auto,
    image_size: ImageSize = None,
    crop: Crop = None,
    sets: Sets = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Score a checkpoint, head and all, on test sets of its own classes, such as ImageNet-V2."""
    from sparse_transfer import single

    set_up(debug, threads)
    experiment = single.evaluate_experiment(
        checkpoint=checkpoint,
        tasks=on,
        engine=engine.value,
        image_size=image_size,
        crop=crop,
        overrides=sets or [],
    )
    refuse_problems(experiment, data_root, runs)
    stages = ["prune", "evaluate"]
    code = run_plan(experiment, runs, data_root, stages, [], None, False, debug)
    for item in make_plan(experiment, data_root, runs).runs:
        folder = runs / item.stage / item.id
        if item.stage == "evaluate" and (folder / "result.json").is_file() and is_main():
            typer.echo(single.score(folder))
    raise typer.Exit(code)


class Device(StrEnum):
    """What `bench` measures on."""

    cpu = "cpu"
    cuda = "cuda"


@app.command(
    epilog=examples(
        "sparse-transfer bench sparse/ --dense dense/ --backend dense --backend sparse "
        "--batch-size 1 --batch-size 16 --batch-size 64 --idle-ms 30",
        "sparse-transfer bench runs/prune/0123456789abcdef/checkpoint --backend dense "
        "--backend onnxruntime-int8 --task pets",
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
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Images per call; may be repeated. Default: 16."),
    ] = None,
    image_size: ImageSize = None,
    repeats: Annotated[int, typer.Option(min=6, help="Timed calls of each, interleaved.")] = 30,
    idle_ms: Annotated[
        int,
        typer.Option(
            min=0, max=1000, help="Batch 1 too, after a pause of so many ms before each call."
        ),
    ] = 0,
    task: Annotated[
        str | None,
        typer.Option(help="Task card of images to calibrate on (train) and to score (test)."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    as_json: Json = False,
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Measure latency beside the dense model: interleaved, median, agreement checked first."""
    from sparse_transfer import single
    from sparse_transfer.report import console_tables
    from sparse_transfer.stages import bench as stage

    settings, wanted = single.bench_settings(
        checkpoint,
        backends=backend or ["dense"],
        batch_sizes=batch_size or [16],
        repeats=repeats,
        idle_ms=idle_ms,
        task=task,
        image_size=image_size,
    )
    set_up(debug, threads)
    set_up_device(device.value)
    source = stage.Source(*wanted, data_root, cache_folder(runs)) if wanted else None
    rows, reasons = stage.measure_checkpoints(
        checkpoint, dense, settings, image_size, source, device.value
    )
    if as_json:
        print_json(rows)
    else:
        console_tables.print_bench(rows)
    for reason in reasons:
        say(f"not measured: {reason}")


@app.command(
    epilog=examples(
        "sparse-transfer export runs/prune/0123456789abcdef/checkpoint --to packed",
        "sparse-transfer export sparse.packed --to onnx --out sparse.onnx",
    )
)
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A checkpoint folder, or a packed file.")
    ],
    to: Annotated[
        Literal["packed", "onnx"],
        typer.Option(help="`packed`: a bit for each weight, and those that are not zero."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file; default: CKPT.packed or CKPT.onnx, beside it.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Pixels of the ONNX graph; default: its own.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file OUT.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a checkpoint as one file: small, or for other engines; it is checked before it is kept.

    A packed file opens wherever a checkpoint is only read (bench, inspect, Python); `import` makes
    the folder of it again. An ONNX file has its batch norms folded and takes any number of images.
    """
    from sparse_transfer import export as exports

    set_up(debug)
    made = exports.export(checkpoint, to, out, image_size=image_size, replace_existing=force)
    if as_json:
        print_json(
            {
                "path": str(made.path),
                "bytes": made.bytes,
                "dense_bytes": made.dense_bytes,
                "note": made.note,
            }
        )
        return
    ratio = made.dense_bytes / made.bytes
    more = f" ({ratio:.1f} times as many)" if ratio >= 1.05 else ""
    typer.echo(
        f"{made.path}\n{made.bytes:,} bytes; the weights take {made.dense_bytes:,}{more}; "
        f"{made.note}"
    )

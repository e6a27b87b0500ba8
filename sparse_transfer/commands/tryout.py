"""The verb `try`: one model, one folder of images, one answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparse_transfer.commands.app import (
    DataRoot,
    Debug,
    InputTransform,
    ModelArguments,
    Runs,
    Sets,
    Threads,
    Weights,
    app,
    examples,
)
from sparse_transfer.commands.steps import (
    cache_folder,
    is_main,
    refuse_problems,
    run_plan,
    set_up,
)
from sparse_transfer.errors import UserError

if TYPE_CHECKING:
    from sparse_transfer.trial.prepare import Choice, Forecast


@app.command(
    name="try",
    epilog=examples(
        "sparse-transfer try resnet20_cifar shapes --weights random --sparsity 0.8 --plan",
        "sparse-transfer try mobilenetv2_100 photos/ --sparsity 0.9 --budget 30m",
    ),
)
def try_(
    model: Annotated[str, typer.Argument(help="timm name, hf-hub:ORG/NAME or local-dir:PATH.")],
    folder: Annotated[
        str,
        typer.Argument(help="FOLDER/CLASS/*.jpg, a folder of Parquet files, or a task card."),
    ],
    sparsity: Annotated[float, typer.Option(help="Share of zeros, above 0 and below 1.")] = 0.9,
    budget: Annotated[
        str | None,
        typer.Option(help="Take the longest variant that fits: 90s, 30m, 2h; default: `short`."),
    ] = None,
    variant: Annotated[
        str | None, typer.Option(help="quick, short or full, whatever the budget.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before running.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print the time and stop.")] = False,
    smaller: Annotated[
        str,
        typer.Option(
            help="Smaller dense model to compare with, or `none`; default: one of the family.",
            show_default=False,
        ),
    ] = "",
    smaller_weights: Annotated[
        str, typer.Option(help="Its weights: `pretrained` or a file.")
    ] = "pretrained",
    weights: Weights = "pretrained",
    kwarg: ModelArguments = None,
    cfg: InputTransform = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=8, help="Pixels; default: the variant's, at most the model's own."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of new heads and data order.")] = 0,
    sets: Sets = None,
    data_root: DataRoot = None,
    runs: Runs = Path("runs"),
    threads: Threads = None,
    debug: Debug = False,
) -> None:
    """Try pruning on a folder of images: fine-tune, prune, compare with what else you could do."""
    from sparse_transfer import config
    from sparse_transfer.single import pairs
    from sparse_transfer.trial import experiment, prepare

    set_up(debug, threads)
    allowed = experiment.seconds_of(budget) if budget else None
    spec = config.ModelSpec(
        name=model,
        weights=weights,
        kwargs=pairs(kwarg or [], "--kwarg"),
        pretrained_cfg=pairs(cfg or [], "--cfg"),
    )
    asked = prepare.request(
        model=spec,
        given=folder,
        sparsity=sparsity,
        image_size=image_size,
        rival=smaller,
        rival_weights=smaller_weights,
        seed=seed,
        overrides=sets or [],
        data_root=data_root,
        runs=runs,
        cache=cache_folder(runs),
    )
    made = prepare.forecasts(asked, data_root, cache_folder(runs))
    choice = prepare.choose(asked, made, budget=allowed, wanted=variant, runs=runs)
    if is_main():
        for line in (*asked.notes, *_lines(made, choice)):
            typer.echo(line)
    if plan:
        return
    chosen = choice.forecast.experiment
    refuse_problems(chosen, data_root, runs)
    if not (yes or _agreed()):
        raise typer.Exit
    if is_main():
        choice.remember()
    raise typer.Exit(run_plan(chosen, runs, data_root, [], [], None, False, debug))


def _lines(made: dict[str, Forecast], choice: Choice) -> list[str]:
    from sparse_transfer.trial.experiment import duration

    chosen = choice.forecast
    lines = ["", "variant  pixels  epochs  about"]
    for name, one in made.items():
        first = one.experiment.arms[0]
        size, epochs = first.upstream.preprocess.image_size, first.recipe.epochs
        mark = "  <- this one" if one is chosen else ""
        lines.append(f"{name:<7}  {size:>6}  {f'2 x {epochs}':>6}  {duration(one.total)}{mark}")
    if choice.notes:
        lines += ["", *choice.notes]
    lines += ["", f"Rows of `{chosen.variant.name}`, with the time that each takes:"]
    lines += [f"  {row:<26}  {duration(seconds)}" for row, seconds in chosen.rows().items()]
    answer = chosen.experiment.answer
    lines += [f"Left out: {text}." for text in (answer.left_out if answer else ())]
    return lines


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UserError(
            "Nothing was run.",
            "The time above was not agreed to, and there is no terminal to ask in.",
            "Add --yes to run it.",
        )
    return typer.confirm("Run it?")

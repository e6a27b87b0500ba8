"""Verbs that show what there is: ls, show, cp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparse_transfer.commands.app import Json, app, examples
from sparse_transfer.commands.steps import print_json
from sparse_transfer.errors import UserError, unknown_name

LISTS = ("pruners", "tasks", "metrics", "backends", "configs", "recipes", "models", "layouts")


@app.command(epilog=examples("sparse-transfer ls pruners", "sparse-transfer ls tasks --json"))
def ls(
    what: Annotated[str, typer.Argument(help=" | ".join(LISTS))],
    as_json: Json = False,
) -> None:
    """List what there is: pruners, tasks, metrics, backends, configs, recipes, models, layouts."""
    from sparse_transfer import listing

    if what not in LISTS:
        raise unknown_name("list", what, LISTS)
    rows = listing.rows(what)
    if as_json:
        print_json([{"name": name, "summary": summary} for name, summary in rows])
        return
    width = max((len(name) for name, _ in rows), default=0)
    for name, summary in rows:
        typer.echo(f"{name:<{width}}  {summary}".rstrip())


@app.command(epilog=examples("sparse-transfer show gmp", "sparse-transfer show quickstart"))
def show(
    name: Annotated[
        str, typer.Argument(help="A pruner, task, metric, backend, layout, config or recipe.")
    ],
) -> None:
    """Show one thing in full: a pruner's source and options, a task card, a config."""
    from sparse_transfer import listing

    typer.echo(listing.details(name))


@app.command(
    epilog=examples(
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

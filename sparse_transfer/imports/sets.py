"""Imported sets: the tables of one or more result files, kept under a name.

    RUNS/imported/NAME/SOURCE.parquet    one table per file, in the columns of the results frame
                       set.json          files with SHA-256, how they were read, when

Nothing here was measured by this program; every row says so in its column `origin`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from sparse_transfer.errors import UserError, nearest, unknown_name
from sparse_transfer.imports.coverage import Gap
from sparse_transfer.imports.results import (
    ORIGIN,
    SAME_RUN,
    Duplicates,
    Setting,
    Unit,
    align_sparsities,
    read_results,
    resolve_duplicates,
    write_table,
)
from sparse_transfer.store import file_digest, read_json, replacing, write_json

PAPER = "paper"
PAPER_FILES = {
    f"{setting}_{model}transfer_results.txt"
    for setting in ("linear", "full")
    for model in ("", "mobilenet_")
}


@dataclass(frozen=True)
class Reading:
    """How files are read, where they do not say it themselves.

    Attributes:
        unit, setting, architecture, tasks: see `results.read_results`.
        duplicates: of equal keys: keep every line (their mean is what is compared), or see
            `results.resolve_duplicates`.
        levels: sparsities that nominal ones are moved to, see `results.align_sparsities`.
    """

    unit: Unit | None = None
    setting: Setting | None = None
    architecture: str | None = None
    tasks: tuple[str, ...] = ()
    duplicates: Duplicates | None = None
    levels: tuple[float, ...] = ()


def levels(text: str) -> tuple[float, ...]:
    """The sparsities of `0.8,0.9`.

    Raises:
        UserError: one is no number between 0 and 1.
    """
    try:
        found = tuple(float(item) for item in text.split(",") if item.strip())
    except ValueError:
        found = (1.0,)
    if not all(0 < level < 1 for level in found):
        raise UserError(
            f"--align {text} cannot be read.", "Sparsities are shares of zeros.", "Write 0.8,0.9."
        )
    return found


def one_row_per_run(frame: pd.DataFrame) -> pd.DataFrame:
    """Equal keys averaged, which is what a mean over seeds would do with them."""
    return resolve_duplicates(frame, "mean")


def default_name(files: Sequence[Path]) -> str:
    """`paper` for the study's own files; else the file's name, or the folder's of several files."""
    if all(path.name in PAPER_FILES for path in files):
        return PAPER
    text = files[0].stem if len(files) == 1 else files[0].resolve().parent.name
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._") or "results"


def read(files: Sequence[Path], how: Reading) -> pd.DataFrame:
    """Read all files into one results frame.

    Raises:
        UserError: with file and line, whatever `read_results` refuses; a run that stands in two
            files, two files of one name, two sparsities that would become one.
    """
    names = [path.name for path in files]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"Two files are named {name}.",
                "The tables of a set are told apart by the names of their files.",
                "Give each once, and rename one of two different files.",
            )
    parts = []
    for path in files:
        part = read_results(
            path,
            unit=how.unit,
            setting=how.setting,
            architecture=how.architecture,
            tasks=how.tasks,
        )
        if how.duplicates:
            part = resolve_duplicates(part, how.duplicates)
        parts.append(part)
    frame = pd.concat(parts, ignore_index=True)
    if how.levels:  # of all files at once: a method's sparsities may stand in several
        frame = align_sparsities(frame, how.levels)
    _refuse_repeated(frame)
    return frame


def write(root: Path, name: str, frame: pd.DataFrame, files: Sequence[Path], how: Reading) -> Path:
    """Write a set into `root`/imported/`name`, whole or not at all; one of that name is replaced.

    Returns:
        Its folder.

    Raises:
        UserError: `name` cannot name a folder, or is that of a recorded experiment.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise UserError(
            f"'{name}' cannot name a set of results.",
            "A name has small letters, digits, dots, dashes and underscores.",
        )
    if (root / "experiments" / f"{name}.json").is_file():
        raise UserError(
            f"An experiment named {name} is recorded in {root} already.",
            "`report` could not tell the two apart.",
            f"Choose another name, as in --name {name}-imported.",
        )
    folder = root / "imported" / name
    sources = []
    with replacing(folder) as temporary:
        temporary.mkdir()
        for path in files:
            table = frame[frame["source"] == path.name]
            write_table(table, temporary / f"{path.name}.parquet")
            sources.append(
                {"file": path.name, "sha256": file_digest(path), "rows": len(table)}
                | {"table": f"{path.name}.parquet"}
            )
        facts = {
            "name": name,
            "origin": ORIGIN,
            "imported": datetime.now(UTC).isoformat(timespec="seconds"),
            "read_with": asdict(how),
            "sources": sources,
        }
        write_json(temporary / "set.json", facts)
    return folder


def names(root: Path) -> list[str]:
    """The imported sets."""
    found = (path.parent.name for path in (root / "imported").glob("*/set.json"))
    return sorted(name for name in found if not name.startswith("."))  # left by a killed `write`


def load(root: Path, name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """An imported set: its results frame, one row per run, and what `write` noted of it.

    Raises:
        UserError: there is no such set; for the study's, with the command that imports it.
    """
    if name not in names(root):
        raise _not_imported(root, name)
    folder = root / "imported" / name
    facts = read_json(folder / "set.json")
    try:
        tables = [pd.read_parquet(folder / source["table"]) for source in facts["sources"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The imported set {name} cannot be read.", str(error), "Import its files again."
        ) from error
    return one_row_per_run(pd.concat(tables, ignore_index=True)), facts


def sources(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What each file holds: source, models, modes, rows, cells, fewest and most seeds per cell."""
    found = []
    for source, part in frame.groupby("source", sort=False):
        runs = part.groupby(["model", "mode", "method", "sparsity", "task"])["transfer_seed"]
        counts = runs.nunique()
        found.append(
            {
                "source": source,
                "models": sorted(part["model"].unique()),
                "modes": sorted(part["mode"].unique()),
                "rows": len(part),
                "cells": len(counts),
                "fewest_seeds": int(counts.min()),
                "most_seeds": int(counts.max()),
                "repeated": int((part["occurrence"] > 0).sum()),
            }
        )
    return found


def told(
    name: str, frame: pd.DataFrame, summary: pd.DataFrame, gaps: Sequence[Gap]
) -> dict[str, Any]:
    """What `import-results` says of a set, as JSON-able values.

    Args:
        frame: from `read`.
        summary, gaps: from `coverage`.
    """
    rows = summary.astype(object).where(summary.notna(), None).to_dict("records")
    return {
        "name": name,
        "origin": ORIGIN,
        "rows": len(frame),
        "sources": sources(frame),
        "left_out": [str(gap) for gap in gaps],
        "summary": rows,
    }


def _refuse_repeated(frame: pd.DataFrame) -> None:
    """Refuse a run that stands in two files: it is counted twice, or one of them is mislabelled."""
    first = frame[frame["occurrence"] == 0]
    again = first[first.duplicated(SAME_RUN)]
    if again.empty:
        return
    row = again.iloc[0]
    same = (first[SAME_RUN] == row[SAME_RUN]).all(axis=1)
    other = first[same].iloc[0]
    raise UserError(
        f"{row['source']}, line {row['line']}: this run stands in {other['source']}, line "
        f"{other['line']}, too.",
        f"{row['method']} {row['sparsity']:g} on {row['task']}, {row['mode']}, {row['model']}, "
        f"seed {row['transfer_seed']}; {len(again)} such lines in all.",
        "If the files differ in setting or architecture, import them one by one with --setting or "
        "--architecture and a --name each.",
    )


def _not_imported(root: Path, name: str) -> UserError:
    known: Collection[str] = names(root)
    if name == PAPER:
        return UserError(
            f"The study's results are not imported into {root}.",
            "They are the files of raw_results in github.com/IST-DASLab/sparse-imagenet-transfer.",
            "sparse-transfer import-results linear_transfer_results.txt full_transfer_results.txt "
            f"--name {PAPER} --runs {root}",
        )
    if nearest(name, known):
        return unknown_name("imported set", name, known)
    return UserError(
        f"There is no imported set named '{name}' in {root}.",
        f"Imported: {', '.join(known)}." if known else "Nothing was imported.",
        f"sparse-transfer import-results FILE… --name {name}",
    )

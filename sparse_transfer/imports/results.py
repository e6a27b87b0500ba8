"""Raw result files of "How Well Do Sparse ImageNet Models Transfer?" and files of that family.

One line per run: task, method, sparsity, seed, accuracy, separated by commas or tabs. Setting and
architecture stand in the file name (`full_mobilenet_transfer_results.txt`) unless the file has
columns for them. Source: arXiv 2111.13445, repository IST-DASLab/sparse-imagenet-transfer,
folder `raw_results`.

Every file becomes one table in the columns of the results frame, marked `ORIGIN`: what a file says
about sparsity, split and metric is believed, not measured. Bad rows are refused with file and line.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.store import replacing

logger = logging.getLogger(__name__)

ORIGIN = "imported: declared, not verified"

Setting = Literal["linear", "full"]
Unit = Literal["fraction", "percent"]
Duplicates = Literal["mean", "first", "last", "error"]

HEADER_ALIASES = {
    "dset": "task",
    "dataset": "task",
    "task": "task",
    "model": "method",
    "method": "method",
    "sparsity": "sparsity",
    "seed": "seed",
    "val_acc": "value",
    "acc": "value",
    "accuracy": "value",
    "setting": "setting",
    "arch": "architecture",
    "architecture": "architecture",
}
NEEDED = ("task", "method", "sparsity", "seed", "value")

# name in files, lower case → (task, the metric that the study used for it)
TASKS = {
    "aircraft": ("aircraft", "mean_per_class"),
    "birds": ("birdsnap", "top1"),
    "caltech101": ("caltech101", "mean_per_class"),
    "caltech256": ("caltech256", "mean_per_class"),
    "cars": ("stanford_cars", "top1"),
    "cifar10": ("cifar10", "top1"),
    "cifar100": ("cifar100", "top1"),
    "dtd": ("dtd", "top1"),
    "flowers": ("flowers102", "mean_per_class"),
    "food101": ("food101", "top1"),
    "pets": ("pets", "mean_per_class"),
    "sun": ("sun397", "top1"),
}
TASK_ALIASES = {name: task for name, (task, _) in TASKS.items()} | {
    "fgvc_aircraft": "aircraft",
    "food": "food101",
    "oxford_flowers102": "flowers102",
    "oxford_iiit_pet": "pets",
    "oxford_pets": "pets",
}
METRICS = {task: metric for task, metric in TASKS.values()}

MODES: dict[Setting, str] = {"linear": "linear-sgd", "full": "full"}
ARCHITECTURES = {"mobilenet": "mobilenetv1_100", "resnet50": "resnet50"}
SAME_RUN = ["model", "mode", "method", "sparsity", "task", "transfer_seed"]


@dataclass(frozen=True)
class _Line:
    number: int
    task: str
    method: str
    sparsity: float
    seed: int
    value: float
    setting: Setting
    architecture: str


def read_results(
    path: Path,
    *,
    unit: Unit | None = None,
    setting: Setting | None = None,
    architecture: str | None = None,
    tasks: Collection[str] = (),
) -> pd.DataFrame:
    """Read one result file into the results frame.

    Accuracies are fractions if all are in [0, 1] and percent if all are above 1; a file with both
    is refused unless `unit` says which it is. Equal keys are kept, numbered by `occurrence`, and
    warned of.

    Args:
        path: the file.
        unit: of the accuracies, for files that do not tell.
        setting: linear or full, for files whose name and columns do not tell.
        architecture: name of the upstream architecture; by default from a column or the file name
            (mobilenet, else ResNet-50, as the study names its files).
        tasks: names of further tasks to accept as they are.

    Returns:
        One row per line of data: the columns of the results frame (value in [0, 1]; what the file
        does not say is NaN; `upstream_seed` 0, as one checkpoint per method is all that a file
        shows) and origin, source (file name), line, occurrence.

    Raises:
        UserError: with file and line, for malformed rows, NaN, unknown tasks, mixed units.
    """
    lines = list(_parsed(path, setting, architecture, tasks))
    if not lines:
        raise UserError(f"{path} holds no results.", "There is no line after the header.")
    scale = _scale(path, lines, unit)
    frame = pd.DataFrame([_row(path, line, scale) for line in lines])
    frame["occurrence"] = frame.groupby(SAME_RUN).cumcount()
    repeated = frame[frame["occurrence"] > 0]
    if len(repeated):
        logger.warning(
            "%s: %d lines repeat the key of an earlier line, first line %d; all are kept, numbered "
            "in the column 'occurrence'",
            path,
            len(repeated),
            repeated["line"].iloc[0],
        )
    return frame


def resolve_duplicates(frame: pd.DataFrame, how: Duplicates) -> pd.DataFrame:
    """One row per run where a file has several with the same key.

    Equal keys with different values are probably different checkpoints, so nothing is chosen by
    default.

    Args:
        frame: from `read_results`.
        how: mean of the values, the first or last line, or error.

    Raises:
        UserError: for `error`, when a key occurs twice.
    """
    if how == "error":
        repeated = frame[frame["occurrence"] > 0]
        if len(repeated):
            row = repeated.iloc[0]
            raise UserError(
                f"{row['source']}, line {row['line']}: this run occurs twice.",
                f"{row['method']} {row['sparsity']:g} on {row['task']}, seed "
                f"{row['transfer_seed']}; {len(repeated)} such lines in all.",
                "Choose mean, first or last.",
            )
        return frame
    keys = ["source", *SAME_RUN]
    if how == "mean":
        frame = frame.assign(value=frame.groupby(keys)["value"].transform("mean"))
    keep: Literal["first", "last"] = "last" if how == "last" else "first"
    return frame.drop_duplicates(keys, keep=keep).reset_index(drop=True)


def align_sparsities(
    frame: pd.DataFrame, levels: Collection[float], *, tolerance: float = 0.015
) -> pd.DataFrame:
    """Move nominal sparsities to the nearest level within a tolerance, to compare across methods.

    Published labels are roundings (0.89 of one method beside 0.9 of another). The label of the file
    stays in the column `nominal_sparsity`.

    Args:
        frame: from `read_results`.
        levels: sparsities in [0, 1].
        tolerance: largest difference that is moved.
    """
    moved = {}
    for sparsity in frame["sparsity"].unique():
        level = min(levels, key=lambda level: abs(level - sparsity), default=sparsity)
        # 1e-9: 0.89 + 0.01 and 0.9 differ in floating point.
        moved[sparsity] = level if abs(level - sparsity) <= tolerance + 1e-9 else sparsity
    return frame.assign(nominal_sparsity=frame["sparsity"], sparsity=frame["sparsity"].map(moved))


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write an imported table as Parquet, completely or not at all."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def _parsed(
    path: Path,
    setting: Setting | None,
    architecture: str | None,
    tasks: Collection[str],
) -> Iterator[_Line]:
    rows = _rows(path)
    first, header = next(rows, (1, []))
    _drop_empty_end(header, 0)  # a trailing comma is no column
    columns = _columns(path, first, header)
    known = {name.lower(): name for name in tasks} | TASK_ALIASES | {t: t for t in METRICS}
    declared_setting = setting or _setting_of_name(path)
    declared_architecture = architecture or _architecture_of_name(path)
    if declared_setting is None and "setting" not in columns:
        raise UserError(
            f"{path} does not say whether it holds linear or full results.",
            "Neither its name nor its columns tell.",
            "Name the setting: linear or full.",
        )
    for number, fields in rows:
        _drop_empty_end(fields, len(header))
        if len(fields) != len(header):
            raise _bad(path, number, f"{len(fields)} fields, the header has {len(header)}.")
        cells = {name: fields[index] for name, index in columns.items()}
        yield _line(path, number, cells, known, declared_setting, declared_architecture)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, stripped fields) of every line that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read.", str(error)) from error
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    reader = csv.reader(lines, delimiter="\t" if "\t" in first else ",", strict=True)
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            if any(fields):
                yield reader.line_num, fields
    except csv.Error as error:
        raise _bad(path, reader.line_num, f"{error}.") from error


def _drop_empty_end(fields: list[str], width: int) -> None:
    """Remove empty fields from the end while there are more than `width`."""
    while len(fields) > width and not fields[-1]:
        fields.pop()


def _columns(path: Path, number: int, header: list[str]) -> dict[str, int]:
    """Our name → index of the column; other columns are allowed and not read."""
    columns: dict[str, int] = {}
    for index, name in enumerate(header):
        ours = HEADER_ALIASES.get(name.lower())
        if ours is None:
            continue
        if ours in columns:
            raise _bad(
                path, number, f"Two columns mean '{ours}': {header[columns[ours]]} and {name}."
            )
        columns[ours] = index
    absent = [name for name in NEEDED if name not in columns]
    if absent:
        raise UserError(
            f"{path}, line {number}: this is not the header of a results file.",
            f"No column for {', '.join(absent)}; found: {', '.join(header) or 'nothing'}.",
            "Expected for instance: dset,model,sparsity,seed,val_acc",
        )
    return columns


def _line(
    path: Path,
    number: int,
    cells: Mapping[str, str],
    known: Mapping[str, str],
    setting: Setting | None,
    architecture: str,
) -> _Line:
    name = cells["task"]
    if name.lower() not in known:
        error = unknown_name("task", name, {*known, *known.values()})
        raise UserError(f"{path}, line {number}: {error.what}", error.why, error.hint)
    method = cells["method"]
    if not method:
        raise _bad(path, number, "The method is empty.")
    method = "dense" if method.lower() == "dense" else method
    sparsity = _number(path, number, "sparsity", cells["sparsity"])
    if not 0 <= sparsity < 1:
        raise _bad(path, number, f"sparsity {sparsity:g} is not a share of zeros in [0, 1).")
    if method == "dense" and sparsity:
        raise _bad(path, number, f"A dense model of sparsity {sparsity:g}.")
    value = _number(path, number, "accuracy", cells["value"])
    if value < 0 or value > 100:
        raise _bad(path, number, f"accuracy {value:g} is neither a fraction nor percent.")
    seed = re.fullmatch(r"(?:seed_)?(\d+)", cells["seed"])
    if seed is None:
        raise _bad(path, number, f"seed '{cells['seed']}' is not like seed_21.")
    declared = cells.get("setting", "").lower()
    if declared and declared not in get_args(Setting):
        raise _bad(path, number, f"setting '{declared}' is neither linear nor full.")
    row_setting: Setting | None = (
        "linear" if declared == "linear" else "full" if declared == "full" else setting
    )
    if row_setting is None:
        raise _bad(path, number, "The setting is empty.")
    return _Line(
        number,
        known[name.lower()],
        method,
        sparsity,
        int(seed[1]),
        value,
        row_setting,
        cells.get("architecture") or architecture,
    )


def _number(path: Path, number: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise _bad(path, number, f"{name} '{text}' is not a number.") from None
    if not math.isfinite(value):
        raise _bad(path, number, f"{name} is {text}.")
    return value


def _scale(path: Path, lines: list[_Line], unit: Unit | None) -> float:
    """1 for fractions, 100 for percent."""
    above = [line for line in lines if line.value > 1]
    if unit == "percent":
        return 100.0
    if unit == "fraction":
        if above:
            raise _bad(path, above[0].number, f"accuracy {above[0].value:g} is not a fraction.")
        return 1.0
    if above and len(above) < len(lines):
        below = next(line for line in lines if line.value <= 1)
        raise UserError(
            f"{path} mixes percent and fractions, or has accuracies of at most 1 %.",
            f"Line {below.number}: {below.value:g}. Line {above[0].number}: {above[0].value:g}. "
            f"{len(above)} of {len(lines)} accuracies are above 1.",
            "Name the unit, fraction or percent, if the file has only one.",
        )
    return 100.0 if above else 1.0


def _row(path: Path, line: _Line, scale: float) -> dict[str, object]:
    nothing = float("nan")
    return {
        "stage": line.setting,
        "run": f"imported/{path.name}",
        "arm": "imported",
        "model": line.architecture,
        "method": line.method,
        "sparsity": line.sparsity,
        "measured_sparsity": nothing,
        "upstream_seed": 0,
        "recipe": "declared",
        "task": line.task,
        "mode": MODES[line.setting],
        "transfer_seed": line.seed,
        "profile": f"paper-{line.setting}",
        "image_size": 224,
        "split_hash": "declared",
        "n_test": nothing,
        "metric": METRICS.get(line.task, "top1"),
        # Rounding undoes the binary error of the division: 49.23 / 100 reads .4923 again.
        "value": round(line.value / scale, 12),
        "top1": nothing,
        "mean_per_class": nothing,
        "log_loss": nothing,
        "ece": nothing,
        "mac_ratio": nothing,
        "predictions": None,
        "origin": ORIGIN,
        "source": path.name,
        "line": line.number,
    }


def _setting_of_name(path: Path) -> Setting | None:
    words = re.split(r"[^a-z0-9]+", path.stem.lower())
    if ("linear" in words) == ("full" in words):
        return None
    return "linear" if "linear" in words else "full"


def _architecture_of_name(path: Path) -> str:
    for word, architecture in ARCHITECTURES.items():
        if word in path.stem.lower():
            return architecture
    return ARCHITECTURES["resnet50"]


def _bad(path: Path, number: int, why: str) -> UserError:
    return UserError(f"{path}, line {number}: this line cannot be read.", why)

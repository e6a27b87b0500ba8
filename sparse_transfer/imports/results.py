"""Raw result files of "How Well Do Sparse ImageNet Models Transfer?" and files of that family.

One line per run: task, method, sparsity, seed, accuracy, separated by commas or tabs. Setting and
architecture stand in the file name (`full_mobilenet_transfer_results.txt`) unless the file has
columns for them. Source: arXiv 2111.13445, repository IST-DASLab/sparse-imagenet-transfer,
folder `raw_results`.

Every file becomes one table in the columns of the results frame, marked `ORIGIN`: what a file says
about sparsity, split and metric is believed, not measured. Bad rows are refused with file and line.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import pandas as pd

from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.imports.lines import Lines, bad_line, read_lines
from sparse_transfer.store import replacing

logger = logging.getLogger(__name__)

ORIGIN = "imported: declared, not verified"

Setting = Literal["linear", "full"]
Unit = Literal["fraction", "percent"]
Duplicates = Literal["mean", "first", "last", "error"]

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
SAME_CELL = ["arm", "model", "mode", "method", "task"]  # and sparsity: one checkpoint on one task
SAME_RUN = ["model", "mode", "method", "sparsity", "task", "transfer_seed"]


@dataclass(frozen=True)
class _Declared:
    """What the user says of a file that does not say it itself."""

    setting: Setting | None
    architecture: str | None
    unit: Unit | None


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
    text = read_lines(path)
    known = {name.lower(): name for name in tasks} | TASK_ALIASES | {t: t for t in METRICS}
    frame = _frame(text, known, _Declared(setting, architecture, unit))
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
                "Choose mean, first or last (--duplicates).",
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

    Raises:
        UserError: two labels of one method on one task would become one.
    """
    moved = {}
    for sparsity in frame["sparsity"].unique():
        level = min(levels, key=lambda level: abs(level - sparsity), default=sparsity)
        # 1e-9: 0.89 + 0.01 and 0.9 differ in floating point.
        moved[sparsity] = level if abs(level - sparsity) <= tolerance + 1e-9 else sparsity
    aligned = frame.assign(
        nominal_sparsity=frame["sparsity"], sparsity=frame["sparsity"].map(moved)
    )
    _refuse_merged(aligned)
    return aligned


def _refuse_merged(aligned: pd.DataFrame) -> None:
    """Refuse levels that give two labels of a cell one name: their mean is no method's."""
    cells = [*SAME_CELL, "sparsity"]
    labels = aligned.groupby(cells)["nominal_sparsity"].transform("nunique")
    merged = aligned[labels > 1]
    if merged.empty:
        return
    first = merged.iloc[0]
    cell = merged[(merged[cells] == first[cells]).all(axis=1)]
    cell = cell.drop_duplicates("nominal_sparsity").sort_values("nominal_sparsity")
    known = [f"{label:g}" for label in cell["nominal_sparsity"]]
    places = cell["run"]  # one's own results have no lines
    if "line" in cell:
        places = cell["source"] + ", line " + cell["line"].astype(str)
    raise UserError(
        f"{first['method']} {' and '.join(known)} on {first['task']} ({first['model']}, "
        f"{first['mode']}) would both become {first['sparsity']:g}.",
        "; ".join(f"{place}: {label}" for place, label in zip(places, known, strict=True)) + ".",
        "Align to levels that tell them apart, or leave one of them out.",
    )


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write an imported table as Parquet, completely or not at all."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)


def _frame(text: Lines, known: Mapping[str, str], declared: _Declared) -> pd.DataFrame:
    """The results frame, in the order of the lines."""
    path, nothing = text.path, float("nan")
    tasks = text.each("task", lambda number, name: _task(path, number, name, known))
    methods = text.each("method", lambda number, name: _method(path, number, name))
    sparsities = text.each("sparsity", lambda number, share: _sparsity(path, number, share))
    for number, method, sparsity in zip(text.numbers, methods, sparsities, strict=True):
        if method == "dense" and sparsity:
            raise bad_line(path, number, f"A dense model of sparsity {sparsity:g}.")
    seeds = text.each("seed", lambda number, seed: _seed(path, number, seed))
    settings = _settings(text, declared.setting)
    values = text.each("value", lambda number, value: _accuracy(path, number, value))
    scale = _scale(text, values, declared.unit)
    return pd.DataFrame(
        {
            "stage": settings,
            "run": f"imported/{path.name}",
            "arm": "imported",
            "model": _architectures(text, declared.architecture),
            "method": methods,
            "sparsity": sparsities,
            "measured_sparsity": nothing,
            "upstream_seed": 0,
            "recipe": "declared",
            "task": tasks,
            "mode": [MODES[setting] for setting in settings],
            "transfer_seed": seeds,
            "profile": [f"paper-{setting}" for setting in settings],
            "image_size": 224,
            "split_hash": "declared",
            "n_test": nothing,
            "metric": [METRICS.get(task, "top1") for task in tasks],
            # Rounding undoes the binary error of the division: 49.23 / 100 reads .4923 again.
            "value": [round(value / scale, 12) for value in values],
            "top1": nothing,
            "mean_per_class": nothing,
            "log_loss": nothing,
            "ece": nothing,
            "mac_ratio": nothing,
            "predictions": None,
            "origin": ORIGIN,
            "source": path.name,
            "line": text.numbers,
        }
    )


def _task(path: Path, number: int, name: str, known: Mapping[str, str]) -> str:
    if name.lower() not in known:
        error = unknown_name("task", name, {*known, *known.values()})
        hint = f"{error.hint} To accept it as it is: --task {name}"
        raise UserError(f"{path}, line {number}: {error.what}", error.why, hint)
    return known[name.lower()]


def _method(path: Path, number: int, name: str) -> str:
    if not name:
        raise bad_line(path, number, "The method is empty.")
    return "dense" if name.lower() == "dense" else name


def _sparsity(path: Path, number: int, text: str) -> float:
    sparsity = _number(path, number, "sparsity", text)
    if not 0 <= sparsity < 1:
        raise bad_line(path, number, f"sparsity {sparsity:g} is not a share of zeros in [0, 1).")
    return sparsity


def _seed(path: Path, number: int, text: str) -> int:
    seed = re.fullmatch(r"(?:seed_)?(\d+)", text)
    if seed is None:
        raise bad_line(path, number, f"seed '{text}' is not like seed_21.")
    return int(seed[1])


def _accuracy(path: Path, number: int, text: str) -> float:
    value = _number(path, number, "accuracy", text)
    if value < 0 or value > 100:
        raise bad_line(path, number, f"accuracy {value:g} is neither a fraction nor percent.")
    return value


def _settings(text: Lines, declared: Setting | None) -> list[Setting]:
    """Linear or full of every line: what it says itself, else what was declared of the file."""
    own = declared or _setting_of_name(text.path)
    if "setting" not in text.columns:
        if own is None:
            raise UserError(
                f"{text.path} does not say whether it holds linear or full results.",
                "Neither its name nor its columns tell.",
                "Name the setting: --setting linear or --setting full.",
            )
        return [own] * len(text.numbers)

    def setting(number: int, name: str) -> Setting:
        for known in get_args(Setting):
            if name.lower() == known:
                return known
        if name:
            raise bad_line(text.path, number, f"setting '{name}' is neither linear nor full.")
        if own is None:
            raise bad_line(text.path, number, "The setting is empty.")
        return own

    return text.each("setting", setting)


def _architectures(text: Lines, declared: str | None) -> list[str]:
    own = declared or _architecture_of_name(text.path)
    if "architecture" not in text.columns:
        return [own] * len(text.numbers)
    return text.each("architecture", lambda _, name: name or own)


def _number(path: Path, number: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise bad_line(path, number, f"{name} '{text}' is not a number.") from None
    if not math.isfinite(value):
        raise bad_line(path, number, f"{name} is {text}.")
    return value


def _scale(text: Lines, values: Sequence[float], unit: Unit | None) -> float:
    """1 for fractions, 100 for percent."""
    path = text.path
    above = [place for place, value in enumerate(values) if value > 1]
    if unit == "percent":
        return 100.0
    first = above[0] if above else 0
    if unit == "fraction":
        if above:
            raise bad_line(
                path, text.numbers[first], f"accuracy {values[first]:g} is not a fraction."
            )
        return 1.0
    if above and len(above) < len(values):
        below = next(place for place, value in enumerate(values) if value <= 1)
        raise UserError(
            f"{path} mixes percent and fractions, or has accuracies of at most 1 %.",
            f"Line {text.numbers[below]}: {values[below]:g}. Line {text.numbers[first]}: "
            f"{values[first]:g}. {len(above)} of {len(values)} accuracies are above 1.",
            "If the file has only one unit, name it: --unit fraction or --unit percent.",
        )
    return 100.0 if above else 1.0


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

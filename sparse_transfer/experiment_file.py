"""Read an experiment file: strict YAML, shared fields merged into arms, recipes looked up, `--set`.

All mistakes of a file are reported at once, each with its line, its path and, for a name that
does not exist, the nearest names that do.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sparse_transfer import config
from sparse_transfer.errors import UserError, unknown_name
from sparse_transfer.mistakes import Location, explain

_PER_EXPERIMENT = ("name", "title", "notes", "contrasts", "demo", "answer", "arms")
_LISTS = {"experiment": "configs", "recipe": "recipes"}
_RECIPE_FIELDS = (
    ("recipe",),
    ("transfer", "linear"),
    ("transfer", "online"),
    ("transfer", "full"),
)


class _StrictLoader(yaml.SafeLoader):
    """YAML whose scalars mean what they look like: `1e-3` is a number, `no` and `2:4` are words."""


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] == "null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(  # no base 60, in which 2:4 would be 124
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+|0o?[0-7_]+)$"),
    list("-+0123456789"),
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf")
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def config_folder() -> Path:
    """The folder of the shipped experiments; below it `paper/` holds those of the 2022 study and
    `recipes/` the shipped recipes."""
    packaged = Path(str(files("sparse_transfer"))) / "configs"
    return packaged if packaged.is_dir() else packaged.parent.parent / "configs"


def config_names() -> list[str]:
    """Names of the shipped experiments."""
    return sorted(_shipped(config_folder(), "paper"))


def recipe_names() -> list[str]:
    """Names of the shipped recipes and transfer profiles."""
    return sorted(_shipped(config_folder() / "recipes"))


def config_path(name: str) -> Path:
    """The file of an experiment given by path or by shipped name.

    Raises:
        UserError: neither exists; the nearest names are given.
    """
    return _named_file(name, "experiment", _shipped(config_folder(), "paper"))


def recipe_path(name: str) -> Path:
    """The file of a recipe or profile given by path or by shipped name."""
    return _named_file(name, "recipe", _shipped(config_folder() / "recipes"))


def load(
    name: str, overrides: Sequence[str] = (), data_root: Path | None = None
) -> config.Experiment:
    """Read and validate an experiment.

    Args:
        name: a path, or the name of a shipped experiment.
        overrides: `a.b=c` assignments; the value is YAML.
        data_root: stands for `{data_root}` in any text of the file, so that an experiment can name
            weights that lie beside the data without knowing where that is.

    Raises:
        UserError: with every mistake of the file, one per line.
    """
    path = config_path(name)
    raw, lines = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not an experiment.", "It is not a mapping of fields.")
    return _validated(_filled(raw, data_root, path), overrides, path, lines)


def build(raw: dict[str, Any], overrides: Sequence[str] = ()) -> config.Experiment:
    """Validate an experiment that was not read from a file (see `load`)."""
    return _validated(raw, overrides, Path(raw["name"]), {})


def _validated(
    raw: dict[str, Any], overrides: Sequence[str], path: Path, lines: dict[Location, int]
) -> config.Experiment:
    arms_given = raw.get("arms", [{}])
    if not isinstance(arms_given, list) or not all(isinstance(arm, dict) for arm in arms_given):
        raise UserError(
            f"{path}: `arms` must be a list of mappings.",
            hint="See `sparse-transfer show small-study`.",
        )
    experiment = {key: raw[key] for key in _PER_EXPERIMENT if key in raw and key != "arms"}
    shared = {key: value for key, value in raw.items() if key not in _PER_EXPERIMENT}
    experiment["arms"] = [copy.deepcopy(_merge(shared, arm)) for arm in arms_given]
    for assignment in overrides:
        _assign(experiment, assignment)
    problems: list[str] = []
    for arm in experiment["arms"]:
        problems += _resolve_recipes(arm, path)
    try:
        found = _from_plain(config.Experiment, experiment)
    except ValidationError as error:

        def place(location: Location) -> Location:
            """A field that all arms share stands outside `arms` in the file."""
            shared_field = location[:1] == ("arms",) and location[:3] not in lines
            return location[2:] if shared_field else location

        problems += explain(error, config.Experiment, str(path), lines, place=place)
    else:
        if not problems:
            return found
    problems = list(dict.fromkeys(problems))
    raise UserError(
        f"{path} has {len(problems)} mistake{'s' * (len(problems) > 1)}.",
        "\n".join(problems),
        "`sparse-transfer show quickstart` is an example; `check` says when all is well.",
    )


M = TypeVar("M", bound=config.Frozen)


def _from_plain(model: type[M], value: Any) -> M:
    """Validate without guessing: `true` is no number and `"20"` is no integer."""
    return model.model_validate_json(json.dumps(value), strict=True)


def load_recipe(
    name: str,
) -> config.Recipe | config.LinearProfile | config.OnlineProfile | config.FullProfile:
    """Read and validate a recipe or transfer profile by name or path."""
    path = recipe_path(name)
    raw, lines = read_yaml(path)
    kinds = {
        "prune": config.Recipe,
        "linear": config.LinearProfile,
        "online": config.OnlineProfile,
        "full": config.FullProfile,
    }
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if kind not in kinds:
        raise UserError(
            f"{path} is not a recipe.", f"`kind` is {kind!r}.", f"One of: {', '.join(kinds)}."
        )
    try:
        return _from_plain(kinds[kind], {"name": path.stem, **raw})
    except ValidationError as error:
        problems = "\n".join(explain(error, kinds[kind], str(path), lines))
        raise UserError(f"{path} has mistakes.", problems) from error


def read_yaml(path: Path) -> tuple[Any, dict[Location, int]]:
    """The content of a strict YAML file and the line of every key path.

    Raises:
        UserError: unreadable, not YAML, or a key given twice (with both lines).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read.", str(error)) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> tuple[Any, dict[Location, int]]:
    """As `read_yaml`, for text; `origin` stands in the errors."""
    lines: dict[Location, int] = {}
    loader = None
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        return (None if node is None else _construct(loader, node, (), lines, origin)), lines
    except RecursionError as error:
        raise UserError(f"{origin} is not valid YAML.", "It contains itself.") from error
    except yaml.MarkedYAMLError as error:
        where = f"{origin}:{error.problem_mark.line + 1}" if error.problem_mark else origin
        raise UserError(f"{where} is not valid YAML.", error.problem or str(error)) from error
    except yaml.YAMLError as error:
        raise UserError(f"{origin} is not valid YAML.", str(error)) from error
    finally:
        if loader is not None:
            loader.dispose()


def _construct(
    loader: _StrictLoader, node: yaml.Node, path: Location, lines: dict[Location, int], origin: str
) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in mapping:
                raise UserError(
                    f"{origin}:{line}: the key `{key}` is given twice.",
                    f"It stands in line {lines[*path, key]} too.",
                    "Remove one of them.",
                )
            mapping[key] = _construct(loader, value_node, (*path, key), lines, origin)
            lines[*path, key] = line
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(loader, item, (*path, index), lines, origin)
            for index, item in enumerate(node.value)
        ]
    value = loader.construct_object(node)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{origin}:{lines[path]}: {node.value} is not a finite number.")
    return value


def _filled(value: Any, data_root: Path | None, origin: Path) -> Any:
    """`value` with `{data_root}` replaced in every text below it."""
    if isinstance(value, dict):
        return {key: _filled(item, data_root, origin) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, data_root, origin) for item in value]
    if not isinstance(value, str) or "{data_root}" not in value:
        return value
    if data_root is None:
        raise UserError(
            f"{origin} needs to know where the data lies.",
            f"It says `{value}`.",
            "Give the folder: --data-root or SPARSE_TRANSFER_DATA.",
        )
    return value.replace("{data_root}", str(data_root))


def _merge(base: Any, over: Any) -> Any:
    """`over` on top of `base`: mappings are merged, everything else is replaced."""
    if isinstance(base, dict) and isinstance(over, dict):
        return {
            key: _merge(base[key], over[key])
            if key in base and key in over
            else over.get(key, base.get(key))
            for key in {**base, **over}
        }
    return over


def _resolve_recipes(arm: dict[str, Any], origin: Path) -> list[str]:
    """Replace recipe names of an arm by what they stand for; returns what could not be."""
    problems: list[str] = []
    for *parents, field in _RECIPE_FIELDS:
        holder: Any = arm
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        value = holder.get(field) if isinstance(holder, dict) else None
        base = value.get("base") if isinstance(value, dict) else value
        if base is None:
            continue
        try:
            holder[field] = _resolved(base, value, field, origin)
        except UserError as error:
            problems.append(f"{origin}: {'.'.join([*parents, field])}: {error}")
            holder[field] = {"steps": 0} if field != "linear" else {}  # so that the rest is checked
    return problems


def _resolved(base: Any, value: Any, field: str, origin: Path) -> dict[str, Any]:
    """A recipe by name, with the changes that stand beside `base`."""
    if not isinstance(base, str):
        raise UserError(f"found {base!r} where the name of a recipe was expected.")
    recipe = load_recipe(_beside(base, origin))
    expected = {"recipe": "prune"}.get(field, field)
    if recipe.kind != expected:
        raise UserError(
            f"`{base}` is a recipe of kind `{recipe.kind}`.",
            hint=f"Choose one of kind `{expected}`: `sparse-transfer ls recipes`.",
        )
    changes = {k: v for k, v in value.items() if k != "base"} if isinstance(value, dict) else {}
    resolved = _merge(recipe.model_dump(mode="json", exclude_unset=True), changes)
    if {"steps", "epochs"} & changes.keys():
        for other in {"steps", "epochs"} - changes.keys():
            resolved.pop(other, None)
    if changes.keys() - {"engine"} and "name" not in changes:  # an engine makes no other recipe
        resolved["name"] = f"{recipe.name} (changed)"
    return resolved


def _beside(name: str, origin: Path) -> str:
    """A recipe file named relative to the experiment file that names it."""
    candidate = origin.parent / name
    return str(candidate) if name.endswith(".yaml") and candidate.is_file() else name


def _assign(experiment: dict[str, Any], assignment: str) -> None:
    """Apply `a.b=c`: to the experiment, to one arm (`arms.0.…`), or else to every arm."""
    dotted, equals, text = assignment.partition("=")
    if not equals or not dotted:
        raise UserError(f"--set {assignment} cannot be read.", hint="Write --set field.sub=value.")
    value, _ = parse_yaml(text, f"--set {dotted}")
    *parents, last = dotted.split(".")
    everywhere = dotted.split(".")[0] not in _PER_EXPERIMENT
    for target in experiment["arms"] if everywhere else [experiment]:
        for key in parents:
            target = _child(target, key, assignment)
        if isinstance(target, list):
            target[_index(target, last, assignment)] = value
        elif isinstance(target, dict):
            target[last] = value
        else:
            raise UserError(
                f"--set {assignment} names no field.",
                f"`{'.'.join(parents)}` is {target!r}, which has no fields.",
                "Give the whole of it, as in --set prune.methods=[{name: gmp}].",
            )


def _child(holder: Any, key: str, assignment: str) -> Any:
    """What `key` names below `holder`, made a mapping where it is not a container yet."""
    if isinstance(holder, list):
        return holder[_index(holder, key, assignment)]
    if not isinstance(holder, dict):
        return holder
    child = holder.get(key)
    if isinstance(child, str) and key in ("recipe", "linear", "online", "full"):
        child = {"base": child}
    elif not isinstance(child, dict | list):
        child = {}
    holder[key] = child
    return child


def _index(items: list[Any], key: str, assignment: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise UserError(
            f"--set {assignment} names no item.", f"`{key}` is not one of 0 to {len(items) - 1}."
        )
    return int(key)


def _shipped(folder: Path, *below: str) -> dict[str, Path]:
    """The YAML files of a folder, and of some folders below it, by name."""
    return {path.stem: path for place in ("", *below) for path in (folder / place).glob("*.yaml")}


def _named_file(name: str, kind: str, shipped: dict[str, Path]) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise UserError(
            f"The {kind} file {name} does not exist.",
            hint=f"`sparse-transfer ls {_LISTS[kind]}` names those that ship.",
        )
    if name not in shipped:
        raise unknown_name(kind, name, shipped)
    return shipped[name]

"""Read an experiment file: strict YAML, shared fields merged into arms, recipes looked up, `--set`.

All mistakes of a file are reported at once, each with its line, its path and, for a name that
does not exist, the nearest names that do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sparse_transfer import config
from sparse_transfer.errors import UserError, nearest, unknown_name

_PER_EXPERIMENT = ("name", "title", "notes", "arms")
_RECIPE_FIELDS = (("recipe",), ("transfer", "linear"), ("transfer", "full"))

KeyPath = tuple[str | int, ...]


class _StrictLoader(yaml.SafeLoader):
    """YAML whose scalars mean what they look like: `1e-3` is a number, `no` is a word."""


_StrictLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("int", "null")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf")
)
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def config_folder() -> Path:
    """The folder of the shipped experiments; `recipes/` below it holds the shipped recipes."""
    packaged = Path(str(files("sparse_transfer"))) / "configs"
    return packaged if packaged.is_dir() else packaged.parent.parent / "configs"


def config_names() -> list[str]:
    """Names of the shipped experiments."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def recipe_names() -> list[str]:
    """Names of the shipped recipes and transfer profiles."""
    return sorted(path.stem for path in (config_folder() / "recipes").glob("*.yaml"))


def config_path(name: str) -> Path:
    """The file of an experiment given by path or by shipped name.

    Raises:
        UserError: neither exists; the nearest names are given.
    """
    return _named_file(name, config_folder(), "experiment")


def recipe_path(name: str) -> Path:
    """The file of a recipe or profile given by path or by shipped name."""
    return _named_file(name, config_folder() / "recipes", "recipe")


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
    raw: dict[str, Any], overrides: Sequence[str], path: Path, lines: dict[KeyPath, int]
) -> config.Experiment:
    for assignment in overrides:
        _assign(raw, assignment)
    experiment = {key: raw[key] for key in _PER_EXPERIMENT if key in raw and key != "arms"}
    shared = {key: value for key, value in raw.items() if key not in _PER_EXPERIMENT}
    arms = raw.get("arms", [{}])
    if not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
        raise UserError(
            f"{path}: `arms` must be a list of mappings.",
            hint="See `sparse-transfer show small-study`.",
        )
    experiment["arms"] = [_with_recipes(_merge(shared, arm), path) for arm in arms]
    try:
        return config.Experiment.model_validate(experiment)
    except ValidationError as error:
        mistakes = [_explain(item, path, lines, "arms" in raw) for item in error.errors()]
        raise UserError(
            f"{path} has {error.error_count()} mistake{'s' * (error.error_count() > 1)}.",
            "\n".join(dict.fromkeys(mistakes)),
            "`sparse-transfer show quickstart` is an example; `check` says when all is well.",
        ) from error


def load_recipe(name: str) -> config.Recipe | config.LinearProfile | config.FullProfile:
    """Read and validate a recipe or transfer profile by name or path."""
    path = recipe_path(name)
    raw, lines = read_yaml(path)
    kinds = {"prune": config.Recipe, "linear": config.LinearProfile, "full": config.FullProfile}
    kind = raw.get("kind") if isinstance(raw, dict) else None
    if kind not in kinds:
        raise UserError(
            f"{path} is not a recipe.", f"`kind` is {kind!r}.", "One of: prune, linear, full."
        )
    try:
        return kinds[kind].model_validate({"name": path.stem, **raw})
    except ValidationError as error:
        problems = "\n".join(_explain(item, path, lines, False) for item in error.errors())
        raise UserError(f"{path} has mistakes.", problems) from error


def read_yaml(path: Path) -> tuple[Any, dict[KeyPath, int]]:
    """The content of a strict YAML file and the line of every key path.

    Raises:
        UserError: unreadable, not YAML, or a key given twice (with both lines).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read.", str(error)) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> tuple[Any, dict[KeyPath, int]]:
    """As `read_yaml`, for text; `origin` stands in the errors."""
    lines: dict[KeyPath, int] = {}
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        return (None if node is None else _construct(loader, node, (), lines, origin)), lines
    except yaml.MarkedYAMLError as error:
        where = f"{origin}:{error.problem_mark.line + 1}" if error.problem_mark else origin
        raise UserError(f"{where} is not valid YAML.", error.problem or str(error)) from error
    except yaml.YAMLError as error:
        raise UserError(f"{origin} is not valid YAML.", str(error)) from error
    finally:
        loader.dispose()


def _construct(
    loader: _StrictLoader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], origin: str
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
    return loader.construct_object(node)


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


def _with_recipes(arm: dict[str, Any], origin: Path) -> dict[str, Any]:
    """The arm with recipe names replaced by what they stand for."""
    for *parents, field in _RECIPE_FIELDS:
        holder: Any = arm
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or holder.get(field) is None:
            continue
        value = holder[field]
        base = (
            value
            if isinstance(value, str)
            else value.get("base")
            if isinstance(value, dict)
            else None
        )
        if base is None:
            continue
        recipe = load_recipe(_beside(base, origin))
        expected = {"recipe": "prune"}.get(field, field)
        if recipe.kind != expected:
            raise UserError(
                f"`{field}: {base}` cannot be used.",
                f"{base} is a recipe of kind `{recipe.kind}`.",
                f"Choose one of kind `{expected}`: `sparse-transfer ls recipes`.",
            )
        changes = {} if isinstance(value, str) else {k: v for k, v in value.items() if k != "base"}
        resolved = _merge(recipe.model_dump(mode="json", exclude_unset=True), changes)
        if {"steps", "epochs"} & changes.keys():
            for other in {"steps", "epochs"} - changes.keys():
                resolved.pop(other, None)
        if changes and "name" not in changes:
            resolved["name"] = f"{recipe.name}, changed"
        holder[field] = resolved
    return arm


def _beside(name: str, origin: Path) -> str:
    """A recipe file named relative to the experiment file that names it."""
    candidate = origin.parent / name
    return str(candidate) if name.endswith(".yaml") and candidate.is_file() else name


def _assign(raw: dict[str, Any], assignment: str) -> None:
    dotted, equals, text = assignment.partition("=")
    if not equals or not dotted:
        raise UserError(f"--set {assignment} cannot be read.", hint="Write --set field.sub=value.")
    value, _ = parse_yaml(text, f"--set {dotted}")
    *parents, last = dotted.split(".")
    target: Any = raw
    for key in parents:
        target = _child(target, key, assignment)
    if isinstance(target, list):
        target[_index(target, last, assignment)] = value
    else:
        target[last] = value


def _child(holder: Any, key: str, assignment: str) -> Any:
    """What `key` names below `holder`, made a mapping where it is not a container yet."""
    if isinstance(holder, list):
        return holder[_index(holder, key, assignment)]
    child = holder.get(key)
    if isinstance(child, str) and key in ("recipe", "linear", "full"):
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


def _explain(item: Any, path: Path, lines: dict[KeyPath, int], has_arms: bool) -> str:
    location: KeyPath = tuple(item["loc"])
    in_file = location
    if location[:1] == ("arms",) and (not has_arms or location not in lines):
        in_file = location[2:]  # a shared field, merged into each arm
    shown = ".".join(str(part) for part in in_file) or "(the whole file)"
    line = next(
        (
            lines[in_file[:length]]
            for length in range(len(in_file), 0, -1)
            if in_file[:length] in lines
        ),
        0,
    )
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = nearest(str(location[-1]), _all_fields())
        message = "unknown field" + (f"; did you mean {' or '.join(known)}?" if known else "")
    elif item["type"] == "missing":
        message = "is missing"
    else:
        message += f" (found {item['input']!r})" if not isinstance(item["input"], dict) else ""
    return f"{path}:{line}: {shown}: {message}" if line else f"{path}: {shown}: {message}"


def _all_fields() -> Iterable[str]:
    classes = [value for value in vars(config).values() if isinstance(value, type)]
    return {name for cls in classes if issubclass(cls, config.Frozen) for name in cls.model_fields}


def _named_file(name: str, folder: Path, kind: str) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        if Path(name).is_file():
            return Path(name)
        raise UserError(
            f"The {kind} file {name} does not exist.", hint=f"`sparse-transfer ls {kind}s`"
        )
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise unknown_name(kind, name, [found.stem for found in folder.glob("*.yaml")])
    return path

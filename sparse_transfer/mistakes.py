"""What is wrong with a configuration, one line for people per mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from sparse_transfer.errors import nearest

Location = tuple[str | int, ...]


def explain(
    error: ValidationError,
    root: type[BaseModel],
    origin: str,
    lines: Mapping[Location, int],
    *,
    place: Callable[[Location], Location] = lambda location: location,
    more_names: Iterable[str] = (),
) -> list[str]:
    """Every mistake as `origin:line: field: what is wrong`, without repetitions.

    Args:
        error: what pydantic found.
        root: the model that was validated; its fields at the place of a mistake are the "did you
            mean" of an unknown one.
        origin: the file, for people.
        lines: line numbers by location.
        place: where a location stands in the file, if it was moved before validation.
        more_names: names allowed at the top level beside the fields.
    """
    found = []
    items = error.errors(include_url=False)
    locations = [tuple(item["loc"]) for item in items]
    for item, location in zip(items, locations, strict=True):
        is_consequence = item["type"] == "too_short" and any(
            len(other) > len(location) and other[: len(location)] == location for other in locations
        )
        if not is_consequence:
            message = _message(item, location, root, more_names)
            found.append(_line(origin, place(location), lines) + message)
    return list(dict.fromkeys(found))


def _message(item: Any, location: Location, root: type[BaseModel], more: Iterable[str]) -> str:
    if item["type"] == "extra_forbidden":
        known = {name for model in _models_at(root, location[:-1]) for name in model.model_fields}
        close = nearest(str(location[-1]), known | set(more if len(location) == 1 else ()))
        return "unknown field" + (f"; did you mean {' or '.join(close)}?" if close else "")
    if item["type"] == "missing":
        return "is missing"
    message = item["msg"].removeprefix("Value error, ")
    is_container = isinstance(item["input"], dict | list | tuple)
    return message if is_container else f"{message} (found {item['input']!r})"


def _line(origin: str, location: Location, lines: Mapping[Location, int]) -> str:
    """`origin:line: field: `, with the line of the nearest enclosing entry that has one."""
    prefixes = (location[:length] for length in range(len(location), 0, -1))
    line = next((lines[prefix] for prefix in prefixes if prefix in lines), None)
    shown = ".".join(str(part) for part in location)
    where = f"{origin}:{line}" if line else origin
    return f"{where}: {shown}: " if shown else f"{where}: "


def _models_at(root: type[BaseModel], location: Location) -> list[type[BaseModel]]:
    """The models whose fields may stand at a location."""
    models = [root]
    for part in location:
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [found for field in fields for found in _models_in(field.annotation)]
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]

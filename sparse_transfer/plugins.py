"""Plugins are files: kind = folder, name = file, symbol = fixed; listed without being imported.

A file may state one other name for itself in a module-level constant `ALIAS = "name"`, for the
cases where the field's name would shadow a builtin or standard module (`random`, `str`).
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import Any

from sparse_transfer.errors import unknown_name

# kind → (package, symbol that a file of that kind defines)
KINDS = {
    "pruner": ("sparse_transfer.pruning.methods", "Method"),
    "metric": ("sparse_transfer.metrics", "METRIC"),
    "backend": ("sparse_transfer.backends", "Backend"),
    "source": ("sparse_transfer.sources", "open_source"),
    "layout": ("sparse_transfer.imports.layouts", "LAYOUT"),
}


def names(kind: str) -> list[str]:
    """The names of all plugins of a kind, sorted."""
    return sorted(_files(kind))


def summary(kind: str, name: str) -> str:
    """The first line of the plugin's docstring, read without importing it."""
    docstring = ast.get_docstring(ast.parse(path(kind, name).read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def document(kind: str, name: str) -> str:
    """The plugin's whole module docstring, read without importing it."""
    return ast.get_docstring(ast.parse(path(kind, name).read_text(encoding="utf-8"))) or ""


def load(kind: str, name: str) -> Any:
    """Import the plugin and return the symbol of its kind.

    Raises:
        UserError: there is no such plugin; the nearest names are given.
    """
    package, symbol = KINDS[kind]
    return getattr(importlib.import_module(f"{package}.{path(kind, name).stem}"), symbol)


def path(kind: str, name: str) -> Path:
    """The file of a plugin.

    Raises:
        UserError: there is no such plugin; the nearest names are given.
    """
    files = _files(kind)
    if name not in files:
        raise unknown_name(kind, name, files)
    return files[name]


@cache
def _files(kind: str) -> dict[str, Path]:
    package, _ = KINDS[kind]
    folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
    return {_alias(path) or path.stem: path for path in folder.glob("[!_]*.py")}


def _alias(path: Path) -> str | None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "ALIAS"
            and isinstance(node.value, ast.Constant)
        ):
            return str(node.value.value)
    return None

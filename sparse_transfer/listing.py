"""What `ls` and `show` print, read without importing torch.

Backends are the exception: they are asked whether they can be used here.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from sparse_transfer import cards, experiment_file, plugins
from sparse_transfer.errors import UserError, unknown_name

_PLUGINS = {"pruners": "pruner", "metrics": "metric", "backends": "backend", "layouts": "layout"}
_WORDS = {
    "Fraction": "0 to below 1",
    "Allocation": "'global' | 'uniform' | 'erk' | 'lamp' | a pattern such as '2:4'",
    "Pattern": "a pattern such as '2:4'",
}
_MODELS = Path(__file__).with_name("small_models.py")


def rows(what: str) -> list[tuple[str, str]]:
    """(name, one line) of every thing of a kind."""
    if what in _PLUGINS:
        kind = _PLUGINS[what]
        return [
            (name, plugins.summary(kind, name) + _absent(kind, name))
            for name in plugins.names(kind)
        ]
    if what == "tasks":
        return [(name, _task(name)) for name in cards.names()]
    if what == "configs":
        return [
            (n, _header(experiment_file.config_path(n))) for n in experiment_file.config_names()
        ]
    if what == "recipes":
        return [
            (n, _header(experiment_file.recipe_path(n))) for n in experiment_file.recipe_names()
        ]
    return _small_models() + [
        ("any timm name", "with or without tag, as in resnet50 or resnet50.a1_in1k"),
        ("torchvision:NAME", "a network of torchvision, as in torchvision:squeezenet1_0"),
        ("hf-hub:ORG/NAME", "a timm model of the Hugging Face Hub"),
        ("local-dir:PATH", "a folder in timm's layout, ours included"),
    ]


def details(name: str) -> str:
    """Everything known of one thing, whatever its kind.

    Raises:
        UserError: nothing has that name; the nearest names are given.
    """
    # a method and the layout of its authors' checkpoints share a name: both are shown
    found = [
        "\n".join([f"{kind} {name}", "", plugins.document(kind, name), *_options(kind, name)])
        for kind in _PLUGINS.values()
        if name in plugins.names(kind)
    ]
    if found:
        return "\n\n".join(found)
    if name in cards.names() or name.endswith(".yaml") and Path(name).is_file():
        path = cards.path(name) if name in cards.names() else Path(name)
        return path.read_text(encoding="utf-8").rstrip()
    for names, path in (
        (experiment_file.config_names, experiment_file.config_path),
        (experiment_file.recipe_names, experiment_file.recipe_path),
    ):
        if name in names():
            return path(name).read_text(encoding="utf-8").rstrip()
    everything = [n for kind in _PLUGINS.values() for n in plugins.names(kind)]
    everything += [*cards.names(), *experiment_file.config_names(), *experiment_file.recipe_names()]
    raise unknown_name("pruner, task, metric, backend, layout, config or recipe", name, everything)


def config_text(name: str, new_name: str) -> str:
    """The text of a shipped experiment or recipe, for `cp`; an experiment gets a new name."""
    names = (experiment_file.config_names(), experiment_file.recipe_names())
    if not any(name in known for known in names):
        raise unknown_name("experiment or recipe", name, [*names[0], *names[1]])
    if name not in names[0]:
        return experiment_file.recipe_path(name).read_text(encoding="utf-8")
    path = experiment_file.config_path(name)
    own = re.sub(r"[^a-z0-9._-]", "-", new_name.lower()).lstrip("._-") or path.stem
    text = path.read_text(encoding="utf-8").replace(f"run {path.stem}", f"run {own}.yaml")
    return re.sub(rf"^name: {re.escape(path.stem)}$", f"name: {own}", text, flags=re.MULTILINE)


def _task(name: str) -> str:
    """The title of a task, or why its card cannot be used: the others are listed all the same."""
    try:
        found = cards.card(name)
    except UserError as error:
        return " ".join(f"{error.what} {error.why}".split())
    return found.title


def _absent(kind: str, name: str) -> str:
    """Why a backend cannot be used here, in brackets; nothing for one that can, and for others."""
    if kind != "backend":
        return ""
    reason = plugins.load(kind, name)().available()
    return f" [not available here: {' '.join(reason.split())}]" if reason else ""


def _options(kind: str, name: str) -> list[str]:
    """The options of a pruner as its source states them, read without importing it."""
    if kind != "pruner":
        return []
    tree = ast.parse(plugins.path(kind, name).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Options"):
            fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
            if fields:
                document = ast.get_docstring(node) or ""
                lines = [f"  {_option(item, tree)}" for item in fields]
                return ["", "Options", *lines, "", document]
    return ["", "It has no options."]


def _option(item: ast.AnnAssign, tree: ast.Module) -> str:
    """`name = default: what it may be`, in words as far as the source has them."""
    kind = re.sub(r"\w+", lambda word: _choices(word[0], tree), ast.unparse(item.annotation))
    kind = re.sub(r"Literal\[([^]]*)\]", lambda found: found[1].replace(", ", " | "), kind)
    value, limits = item.value, []
    if isinstance(value, ast.Call):  # pydantic's Field(default, ge=…, description=…)
        for keyword in value.keywords:
            sign = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}.get(keyword.arg or "")
            said = ast.literal_eval(keyword.value)
            if sign or keyword.arg == "description":
                limits.append(f"{sign} {said}" if sign else said)
        value = value.args[0] if value.args else None
    default = f" = {ast.unparse(value)}" if value is not None else ""
    notes = f" ({', '.join(limits)})" if limits else ""
    return f"{ast.unparse(item.target)}{default}: {kind}{notes}"


def _choices(name: str, tree: ast.Module) -> str:
    """What a type of our own allows; any other name as it is."""
    if name in _WORDS:
        return _WORDS[name]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            package, *path = (node.module or "").split(".")
            if package == "sparse_transfer":
                file = Path(__file__).parent.joinpath(*path).with_suffix(".py")
                return _choices(name, ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            text = ast.unparse(node.value)
            return text if text.startswith("Literal[") else name
    return name


def _small_models() -> list[tuple[str, str]]:
    tree = ast.parse(_MODELS.read_text(encoding="utf-8"))
    return [
        (node.name, (ast.get_docstring(node) or "").partition("\n")[0])
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and any(getattr(d, "id", "") == "register_model" for d in node.decorator_list)
    ]


def _header(path: Path) -> str:
    """The first comment line of a YAML file: its purpose."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    if not first.startswith("#"):
        raise UserError(f"{path} does not begin with a comment that says what it is for.")
    return first.lstrip("# ").rstrip()

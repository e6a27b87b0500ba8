"""Task cards: one YAML file says what a data set is, where it may be found and how it is scored.

A card of one's own needs little more than a name and a folder:

    name: my_birds
    folder: photos/birds        # photos/birds/{train,test}/CLASS/*.jpg
    metric: mean_per_class

Reading a card imports neither torch nor datasets.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, JsonValue, PrivateAttr, ValidationError, model_validator

from sparse_transfer import plugins
from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.errors import UserError, nearest, unknown_name
from sparse_transfer.experiment_file import read_yaml
from sparse_transfer.mistakes import explain

Channels = tuple[float, float, float]


class SourceSpec(Frozen):
    """One place where the images may be found, written as `KIND: LOCATION` plus options.

    Attributes:
        kind: a source plugin (`builtin`, `folder`, `hub`, `parquet`, `torchvision`).
        location: what the kind opens: a folder, a Hub id, a torchvision class, a built-in set.
        revision: commit of the Hub repository, so that the images never change unnoticed.
        subset: the configuration of a Hub data set, or the subfolder that holds the Parquet files.
        parts: our name of a part → the source's own: the name of its split, or for torchvision
            the arguments of the class. Empty: the source's own parts under their own names.
        marker: a path below the data root whose presence means that a torchvision set is here.
        download: whether torchvision may download the set into the data root.
        lists: our name of a part → a text file that names its images, one path per line, as they
            lie below the source; what no list names is left out. Looked for as a folder is.
        class_order: how folders of classes are numbered: by `name`, by the `number` that each
            name is (`10` after `9`), or by `wnid`, ImageNet's ids, which others are refused for.
    """

    kind: str
    location: str
    revision: str | None = None
    subset: str | None = None
    parts: dict[str, str | dict[str, JsonValue]] = {}
    marker: str | None = None
    download: bool = False
    lists: dict[str, str] = {}
    class_order: Literal["name", "number", "wnid"] = "name"

    @model_validator(mode="before")
    @classmethod
    def _kind_is_key(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "kind" in value:
            return value
        kinds = [key for key in value if key in plugins.names("source")]
        if len(kinds) != 1:
            known = ", ".join(plugins.names("source"))
            close = [match for key in value for match in nearest(key, plugins.names("source"))]
            hint = f"; did you mean `{close[0]}`?" if close else ""
            raise ValueError(f"a source starts with one of: {known}{hint}")
        rest = {key: item for key, item in value.items() if key != kinds[0]}
        return {"kind": kinds[0], "location": value[kinds[0]], **rest}

    @property
    def title(self) -> str:
        """What messages call this source."""
        return f"{self.kind} {self.location}"


class SplitRule(Frozen):
    """How the source's parts become a training and a test part.

    Rules, each with its short form in YAML:

    - `official`: the parts named `train` and `test`. `split: official`, or with other names
      `split: {train: train, test: validation}`.
    - `merge`: as official, the validation part added to the training part. `split: merge`.
    - `first_per_class`: of one pool, the first k images of each class are the training part, in
      the order of the source. `split: {first_per_class: 30}`.
    - `alternate`: of one pool, even rows are the training part and odd rows the test part.
    - `stratified`: of one pool, a frozen stratified share is the test part.
      `split: {stratified: {test: 0.2}}`.

    Where the source has a validation part of its own, `validation: NAME` beside `train` and `test`
    takes it, and no share of the training part. With `by: content` frozen choices rank examples by
    a hash of the file's bytes instead of the task's name and the example's id: they stay as they
    are when files are renamed or moved, and new images do not move old ones.
    """

    rule: Literal["official", "merge", "first_per_class", "alternate", "stratified"] = "official"
    train: str = "train"
    test: str = "test"
    per_class: int | None = Field(None, ge=1)
    test_share: Fraction | None = None
    validation: str | None = None
    by: Literal["id", "content"] = "id"

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"rule": value}
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if "first_per_class" in value:
            value |= {"rule": "first_per_class", "per_class": value.pop("first_per_class")}
        if isinstance(value.get("stratified"), dict):
            share = value.pop("stratified")
            if set(share) != {"test"}:
                raise ValueError("write `stratified: {test: SHARE}`")
            value |= {"rule": "stratified", "test_share": share["test"]}
        return value

    @model_validator(mode="after")
    def _options_fit_rule(self) -> SplitRule:
        if (self.rule == "first_per_class") != (self.per_class is not None):
            raise ValueError("write `split: {first_per_class: NUMBER}`")
        if (self.rule == "stratified") != bool(self.test_share):
            raise ValueError("write `split: {stratified: {test: SHARE}}` with a share above 0")
        if self.validation is not None and self.rule != "official":
            raise ValueError("`validation: NAME` stands beside `train: NAME` and `test: NAME`")
        return self

    def identity(self) -> dict[str, Any]:
        """The rule as it is hashed; what came later is left out at its default."""
        told = self.model_dump(mode="json")
        later = {name: told.pop(name) for name in ("validation", "by")}
        return told | {k: v for k, v in later.items() if v != type(self).model_fields[k].default}


class Sizes(Frozen):
    """Images in the whole training and test part, after the split rule; None: not known."""

    train: int | None = Field(None, ge=0)
    test: int = Field(ge=1)


class Paper(Frozen):
    """What the 2022 study (arXiv 2111.13445) used for this data set.

    Attributes:
        key: the data set's name in the study's result files.
        full_lr: its base learning rate of full fine-tuning.
    """

    key: str
    full_lr: float = Field(gt=0)


class TaskCard(Frozen):
    """A data set as a classification task.

    Attributes:
        name: of the task; results join on it and on the split hash. A subset has its own name.
        version: raised when the card changes what is trained or tested on.
        classes: their number; None takes it from the data.
        sizes: images that the whole set has; a source that differs is refused. None: unchecked.
        metric: the number that the task is reported in.
        label_lists: lists of right classes, by the images' file names (`label_lists.py`): a
            prediction is right if its class is in the image's list. Images with an empty list are
            left out.
        image, label: columns, where the usual ones are not the right ones.
        hflip: whether a mirrored image keeps its class; False turns every random flip off.
        empty_classes: whether a class may lack training or test images.
        mean, std: of the training images' channels, in [0, 1]; None computes them.
        manual: how to get the data by hand, printed when no source is available.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    title: str = ""
    version: int = Field(1, ge=1)
    classes: int | None = Field(None, ge=2)
    sizes: Sizes | None = None
    metric: Literal["top1", "mean_per_class"] = "top1"
    label_lists: Literal["imagenet_real"] | None = None
    split: SplitRule = SplitRule.model_validate("official")
    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    image: str | None = None
    label: str | None = None
    hflip: bool = True
    empty_classes: bool = False
    mean: Channels | None = None
    std: Channels | None = None
    paper: Paper | None = None
    imagenet_overlap: str = ""
    traps: tuple[str, ...] = ()
    licence: str = ""
    citation: str = ""
    homepage: str = ""
    manual: str = ""
    _folder: Path | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        """`folder: PATH` at the top level is short for a list of this one source."""
        if not isinstance(value, dict) or "sources" in value:
            return value
        kinds = [key for key in value if key in plugins.names("source")]
        if not kinds:
            raise ValueError("no source; write for example `folder: PATH`")
        short = [{kind: value[kind]} for kind in kinds]
        return {**{k: v for k, v in value.items() if k not in kinds}, "sources": short}

    @model_validator(mode="after")
    def _mean_with_std(self) -> TaskCard:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both `mean` and `std`, or neither")
        return self

    @property
    def by_hand(self) -> str:
        """How to get the data by hand, with the address that `manual` calls the homepage."""
        where = f" Homepage: {self.homepage}" if self.manual and self.homepage else ""
        return self.manual + where

    @property
    def folder(self) -> Path | None:
        """The folder of a user's card, to which its locations are relative; None if shipped."""
        return self._folder


def card_folder() -> Path:
    """The folder of the shipped cards."""
    packaged = Path(str(files("sparse_transfer"))) / "tasks"
    return packaged if packaged.is_dir() else packaged.parent.parent / "tasks"


def card_files(folders: Iterable[Path] = ()) -> dict[str, Path]:
    """Name → file of every card: shipped ones, those in `./tasks`, and those in `folders`.

    A user's file with the name of a shipped card takes its place here and is refused when it is
    asked for, so that neither passes for the other and all others can be used.
    """
    found = _shipped()
    for folder in (Path("tasks"), *folders):
        if folder.resolve() == card_folder().resolve():
            continue
        for path in sorted(folder.glob("*.yaml")):
            found[path.stem] = path
    return found


def names(folders: Iterable[Path] = ()) -> list[str]:
    """The names of all cards, sorted, without reading them."""
    return sorted(card_files(folders))


def card(name: str, folders: Iterable[Path] = ()) -> TaskCard:
    """The card of a task, by name or by the path of its YAML file.

    Args:
        name: a card's name, or a path that ends in `.yaml`.
        folders: folders of cards beside the shipped ones and `./tasks`.

    Raises:
        UserError: no such card (the nearest names are given), or mistakes in it, all at once.
    """
    file = path(name, folders)
    found = _read(file)
    if not name.endswith((".yaml", ".yml")) and found.name != name:
        raise UserError(
            f"The task card {file} cannot be used.",
            f"It calls itself `{found.name}`.",
            "Give the file and the task the same name.",
        )
    return found


def path(name: str, folders: Iterable[Path] = ()) -> Path:
    """The file of a card.

    Raises:
        UserError: no such card (the nearest names are given), or a user's file that has the name
            of a shipped one.
    """
    if name.endswith((".yaml", ".yml")):
        file = Path(name).expanduser()
        if not file.is_file():
            raise UserError(
                f"The task card {name} does not exist.", hint="`sparse-transfer ls tasks`"
            )
        return file
    known = card_files(folders)
    if name not in known:
        raise unknown_name("task", name, known)
    if not _is_shipped(known[name]):
        _refuse_shipped_name(name, known[name])
    return known[name]


def _shipped() -> dict[str, Path]:
    return {path.stem: path for path in sorted(card_folder().glob("*.yaml"))}


def _is_shipped(path: Path) -> bool:
    return path.resolve().parent == card_folder().resolve()


def _read(path: Path) -> TaskCard:
    raw, lines = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} is not a task card.", "It is not a mapping of fields.")
    try:
        found = TaskCard.model_validate(raw)
    except ValidationError as error:
        names = plugins.names("source")
        problems = explain(error, TaskCard, str(path), lines, more_names=names)
        raise UserError(
            f"The task card {path} has {len(problems)} mistake{'s' * (len(problems) > 1)}.",
            "\n".join(problems),
        ) from error
    if not _is_shipped(path):
        _refuse_shipped_name(found.name, path)
        found._folder = path.resolve().parent
    return found


def _refuse_shipped_name(name: str, path: Path) -> None:
    if name in _shipped():
        raise UserError(
            f"The task card {path} cannot be used.",
            f"`{name}` is the name of a task that ships with sparse-transfer, and results are "
            "joined by name.",
            "Give your task another name.",
        )

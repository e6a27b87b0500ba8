"""The images behind stored predictions, where their data still lies here. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, final

from sparse_transfer.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from sparse_transfer import data


@dataclass(frozen=True)
class Found:
    """Test images of one task.

    Attributes:
        classes: names of the classes.
        images: id → 8-bit RGB image; ids that are not (or no longer) sound test images are absent.
    """

    classes: tuple[str, ...]
    images: Mapping[str, Image.Image] = field(repr=False)


@final
class Originals:
    """Finds test images by their ids.

    Args:
        references: task → the name or card file that its runs were asked for with.
        data_root: where data sets lie, or None.
        cache: the folder for what is computed once.
    """

    def __init__(self, references: Mapping[str, str], data_root: Path | None, cache: Path) -> None:
        self._references, self._data_root, self._cache = references, data_root, cache
        self._open = lru_cache(self._opened)

    def __call__(self, task: str, ids: Sequence[str]) -> Found:
        """The images of some ids of a task's test part.

        Raises:
            UserError: the data of the task is not here; the reason is in it.
        """
        opened = self._open(task)
        rows = {str(name): row for row, name in enumerate(opened.test.ids)}
        images = {}
        for name in ids:
            try:
                images[name] = opened.test.image(rows[name])
            except (KeyError, UserError):
                continue  # another version of the data, or a file that was damaged since
        return Found(opened.classes, images)

    def _opened(self, task: str) -> data.Task:
        from sparse_transfer import data
        from sparse_transfer.config import TaskRef

        name = self._references.get(task, task)
        states = data.availability(data.card(name), self._data_root)
        if not any(one.presence.state == "here" for one in states):
            reasons = [f"{one.source}: {one.presence.detail}" for one in states]
            raise UserError(f"The data of task `{task}` is not here.", "\n".join(reasons))
        return data.open_task(TaskRef(name=name), data_root=self._data_root, cache=self._cache)

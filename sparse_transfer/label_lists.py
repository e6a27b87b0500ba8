"""Images with several right classes: ImageNet's reassessed labels (ReaL).

The validation images were labelled anew with all classes that are right for them (Beyer et al.
2020, "Are we done with ImageNet?", arXiv 2006.07159). A prediction is right if its class is in the
list; images whose list is empty are left out. The lists ship with timm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import numpy as np

from sparse_transfer.errors import UserError

Classes = tuple[int, ...]


@cache
def imagenet_real() -> dict[str, Classes]:
    """File name of an ImageNet validation image → its right classes, as sorted wnids number them.

    Raises:
        UserError: this timm does not ship the lists.
    """
    package = find_spec("timm")  # found, not imported: planning stays without torch
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "data" / "_info" / "imagenet_real_labels.json"
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            "The ReaL labels of ImageNet cannot be read.",
            str(error),
            "They ship with timm: `pip install --upgrade timm`.",
        ) from error
    return {
        f"ILSVRC2012_val_{number:08d}.JPEG": tuple(classes)
        for number, classes in enumerate(lists, 1)
    }


LISTS = {"imagenet_real": imagenet_real}


def accepted(name: str, ids: Sequence[str]) -> dict[str, Classes]:
    """Example id → its right classes (maybe none), by the file name that the id ends in.

    Args:
        name: of the lists, a key of `LISTS`.
        ids: example ids that end in file names.

    Raises:
        UserError: a file that the lists do not know.
    """
    lists = LISTS[name]()
    files = {example: PurePosixPath(example).name for example in ids}
    if strange := [file for file in files.values() if file not in lists]:
        raise UserError(
            f"The label lists `{name}` do not fit these images.",
            f"They do not know {len(strange):,} of {len(files):,} files, as {strange[0]}.",
            "The files must keep their published names, as in ILSVRC2012_val_00000001.JPEG.",
        )
    return {example: lists[file] for example, file in files.items()}


def merged(logits: np.ndarray, lists: Sequence[Classes]) -> tuple[np.ndarray, np.ndarray]:
    """One label per image, the same for every model, and logits in which it stands for its list.

    The label is the lowest right class; its logit changes places with that of the right class that
    the model finds most probable. So top-1 accuracy is exactly the share of predictions that are
    in their lists, and other metrics have their usual meaning for the best-liked right class.

    Args:
        logits: (n, classes).
        lists: n tuples of right classes, none empty.

    Returns:
        (n,) int64 labels; (n, classes) logits.
    """
    made, rows = logits.copy(), np.arange(len(logits))
    labels = np.array([min(right) for right in lists], dtype=np.int64)
    best = np.array(
        [max(right, key=lambda c: (row[c], -c)) for row, right in zip(logits, lists, strict=True)],
        dtype=np.int64,
    )
    # a wrong prediction that merely ties with a right class must stay the prediction
    tied = (logits[rows, best] == logits.max(axis=1)) & (logits.argmax(axis=1) != best)
    best = np.where(tied, labels, best)
    made[rows, labels], made[rows, best] = logits[rows, best], logits[rows, labels]
    return labels, made


def usable(ids: Sequence[str], lists: Mapping[str, Classes]) -> np.ndarray:
    """(n,) bool: whether an image has any right class."""
    return np.array([bool(lists[example]) for example in ids], dtype=bool)

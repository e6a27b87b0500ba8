"""Look at a folder of images before anything is done with it, and write its task card.

What does not fit is said with the paths in question and a layout that would work; what can be left
out (files beside the classes, empty folders) is left out and said.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from sparse_transfer import cards, plugins
from sparse_transfer.decoding import BROKEN
from sparse_transfer.errors import UserError, nearest
from sparse_transfer.examples import IMAGE_SUFFIXES, Listing, Place, part_name
from sparse_transfer.partition import Pool, content_digests
from sparse_transfer.store import replacing

LEAST = 5  # images of a class: three to train on, one to choose by, one to test on
UNREADABLE_AT_MOST, UNREADABLE_SHARE = 8, 0.1  # as when images are decoded
LAYOUT = "It should hold a folder for each class, FOLDER/CLASS/*.jpg, or train/ and test/ of such."


@dataclass(frozen=True)
class Found:
    """A usable folder.

    Attributes:
        task: what to call it where a task is named: a card's name, or the file written for it.
        validation: share of the training part to hold out, 0 where the data has its own part.
        images: in all parts.
        classes: their number.
        notes: what was left out or decided, one sentence each.
    """

    task: str
    validation: float
    images: int
    classes: int
    notes: tuple[str, ...] = ()


def look(given: str, write_to: Path) -> Found:
    """What `given` is: a folder of images or of Parquet files, or the name of a task card.

    Args:
        given: as the user wrote it.
        write_to: the folder that a new card is written into.

    Raises:
        UserError: it is nothing of that, or there is too little in it.
    """
    folder = Path(given).expanduser()
    if given.endswith((".yaml", ".yml")) or (not folder.exists() and given in cards.names()):
        return Found(given, 0.25, 0, 0)
    if not folder.is_dir():
        close = nearest(given, cards.names())
        raise UserError(
            f"The folder {given} cannot be opened.",
            "It is a file." if folder.exists() else "There is no such folder.",
            f"Did you mean the task {' or '.join(close)}?" if close else LAYOUT,
        )
    folder = folder.resolve()
    parquet = any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet"))
    notes = [] if parquet else list(_look_at_images(folder))
    kind = "parquet" if parquet else "folder"
    spec = cards.SourceSpec(kind=kind, location=str(folder))
    draft = cards.TaskCard.model_validate({"name": "draft", "sources": [spec.model_dump()]})
    listing = plugins.load("source", kind)(spec, draft, Place(None)).listing()
    split, validation, more = _split(listing, folder)
    _check_counts(listing, split, folder)
    digest, copies = _digest(listing)
    if copies:
        words = "image is a copy" if copies == 1 else "images are copies"
        more.append(f"{copies} {words} of another: one may be learnt from and the other tested on.")
    card = {"name": f"folder-{digest[:8]}", kind: str(folder), "split": split}
    file = write_to / f"{card['name']}.yaml"
    with replacing(file) as temporary:
        temporary.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    total = sum(len(part.labels) for part in listing.parts.values())
    return Found(str(file), validation, total, len(listing.classes), (*notes, *more))


def _look_at_images(folder: Path) -> Iterator[str]:
    """Notes on a folder of class folders; raises what cannot be used."""
    children = _folders(folder)
    loose = _images(folder)
    others = [path for path in _files(folder) if path not in loose]
    if not children:
        raise UserError(
            f"{folder} has no class folders.",
            f"It holds {len(loose)} images side by side." if loose else "It holds no images.",
            LAYOUT,
        )
    parts = [child for child in children if part_name(child.name)]
    if parts and len(parts) < len(children):
        beside = _shown([child.name for child in children if child not in parts])
        raise UserError(
            f"{folder} holds parts and classes side by side.",
            f"{_shown([part.name for part in parts])} beside {beside}.",
            "Give the folder that holds either the classes or train/ and test/ alone.",
        )
    if loose or others:
        named = _shown([path.name for path in (*loose, *others)])
        yield f"Left out: {_count(len(loose) + len(others), 'file')} beside the classes ({named})."
    for root in parts or [folder]:
        yield from _look_at_classes(root)


def _look_at_classes(root: Path) -> Iterator[str]:
    classes = _folders(root)
    full = [child for child in classes if _images(child)]
    deep = {child: [inner for inner in _folders(child) if _images(inner)] for child in classes}
    deep = {child: inner for child, inner in deep.items() if inner}
    if deep:
        first, inner = next(iter(deep.items()))
        only = len(classes) == 1 and not full
        raise UserError(
            f"{root} holds classes inside classes.",
            f"{first.name} holds images in folders of its own: {_shown([i.name for i in inner])}.",
            f"Did you mean {first}?"
            if only
            else "Put all images of a class into one folder: CLASS/*.jpg.",
        )
    if not full:
        _refuse_deeper(root)
        suffixes = Counter(path.suffix.lower() for path in root.rglob("*") if path.is_file())
        held = ", ".join(f"{count} {suffix or 'without ending'}" for suffix, count in
                         suffixes.most_common(4))  # fmt: skip
        raise UserError(
            f"{root} holds no images.",
            f"Its files: {held}." if held else "It is empty.",
            f"Images end in {', '.join(sorted(IMAGE_SUFFIXES))}.",
        )
    if empty := [child.name for child in classes if child not in full]:
        yield f"Left out: {_count(len(empty), 'folder')} without images ({_shown(empty)})."
    yield from _look_at_files(root, full)


def _refuse_deeper(root: Path) -> None:
    """Say where the images are, if there are any further down."""
    holders = Counter(
        path.parent
        for path in sorted(root.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )
    if not holders:
        return
    above = {folder.parent for folder in holders}
    if all(part_name(folder.name) for folder in above):  # train/ and test/ of a folder
        above = {folder.parent for folder in above}
    first = min(holders)
    raise UserError(
        f"{root} has no images in its class folders.",
        f"They lie deeper: {first} holds {_count(holders[first], 'image')}"
        + (f", and {_count(len(holders) - 1, 'folder')} more." if len(holders) > 1 else "."),
        f"Did you mean {above.pop()}?" if len(above) == 1 and len(holders) > 1 else LAYOUT,
    )


def _look_at_files(root: Path, classes: list[Path]) -> Iterator[str]:
    """Open every image's header; the whole file is decoded when it is used."""
    files = {child: _images(child) for child in classes}
    broken = {child: [path for path in paths if not _opens(path)] for child, paths in files.items()}
    bad = [path for paths in broken.values() for path in paths]
    total = sum(len(paths) for paths in files.values())
    lost = [
        f"{child.name} has {len(files[child]) - len(broken[child])}"
        for child in classes
        if broken[child] and len(files[child]) - len(broken[child]) < LEAST
    ]
    if len(bad) > max(UNREADABLE_AT_MOST, UNREADABLE_SHARE * total) or lost:
        what = f"{len(bad)} of {total} images in {root} cannot be read."
        named = _shown([str(path.relative_to(root)) for path in bad])
        too_few = f" Readable: {_shown(lost)}; a class needs {LEAST}." if lost else ""
        raise UserError(what, f"{named}.{too_few}", "Remove or replace these files.")
    if bad:
        named = _shown([str(path.relative_to(root)) for path in bad])
        yield f"Left out: {_count(len(bad), 'image')} of {total} that cannot be read ({named})."


def _opens(path: Path) -> bool:
    try:
        with Image.open(path):
            return True
    except (*BROKEN, Image.DecompressionBombError):
        return False


def _split(listing: Listing, folder: Path) -> tuple[dict[str, Any], float, list[str]]:
    """The card's rule, the share to hold out for validation, and what to say of it."""
    parts = list(listing.parts)
    if len(parts) == 1:
        return {"stratified": {"test": 0.2}, "by": "content"}, 0.25, []
    if "train" not in parts or not {"test", "validation"} & set(parts):
        raise UserError(
            f"{folder} has parts that cannot be told apart.",
            f"Its parts: {', '.join(parts)}.",
            "Name them train, test and, if there is one, val.",
        )
    if "test" not in parts:
        note = "There is no test part: val/ is it, and a quarter of train/ is the validation part."
        return {"train": "train", "test": "validation", "by": "content"}, 0.25, [note]
    if "validation" not in parts:
        note = "Its own train/ and test/ are used; a quarter of train/ is the validation part."
        return {"train": "train", "test": "test", "by": "content"}, 0.25, [note]
    split = {"train": "train", "test": "test", "validation": "validation"}
    return split, 0.0, ["Its own train, validation and test parts are used."]


def _check_counts(listing: Listing, split: dict[str, Any], folder: Path) -> None:
    names = list(listing.classes)
    if len(names) < 2:
        raise UserError(
            f"{folder} has one class, {names[0]}.",
            "There is nothing to tell it from.",
            "Put the images of at least two classes into folders of their own.",
        )
    if "stratified" in split:
        needs = dict.fromkeys(listing.parts, LEAST)
    else:
        held_out = "validation" not in split
        needs = {split["test"]: 1, "train": 4 if held_out else 1}
    short = {}
    for part, least in needs.items():
        counts = np.bincount(listing.parts[part].labels, minlength=len(names))
        few = [f"{names[i]} has {counts[i]}" for i in np.flatnonzero(counts < least)]
        if few:
            short[part] = f"A class needs {least}; {_shown(few)}."
    if short:
        where = "" if "stratified" in split else f" in its {' part and its '.join(short)} part"
        several = len(short) > 1
        raise UserError(
            f"{folder} has too few images{where}.",
            " ".join(f"{part}: {text}" if several else text for part, text in short.items()),
            "Add images to these classes, or remove their folders. Fifty of a class, or more, "
            "make an answer that says something.",
        )


def _digest(listing: Listing) -> tuple[str, int]:
    """Of the classes and the images' content, in hex, not of where they lie; and how many images
    have the content of an earlier one."""
    state, seen = hashlib.sha256(), Counter()
    for name, part in sorted(listing.parts.items()):
        digests = content_digests(Pool(((part, np.arange(len(part.labels))),)))
        seen.update(digests)
        lines = zip(part.labels, part.ids, digests, strict=True)
        told = sorted(f"{listing.classes[label]} {where} {d.hex()}" for label, where, d in lines)
        state.update("\n".join([f"part {name}", *told, ""]).encode())
    return state.hexdigest(), seen.total() - len(seen)


def _folders(folder: Path) -> list[Path]:
    return [
        child
        for child in sorted(folder.iterdir())
        if child.is_dir() and not child.name.startswith(".")
    ]


def _files(folder: Path) -> list[Path]:
    return [
        child
        for child in sorted(folder.iterdir())
        if child.is_file() and not child.name.startswith(".")
    ]


def _images(folder: Path) -> list[Path]:
    """Of hidden files, too: the source takes every file with the ending of an image."""
    files = (child for child in sorted(folder.iterdir()) if child.is_file())
    return [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _shown(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")

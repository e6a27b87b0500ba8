"""Data sets of the Hugging Face Hub that are stored as Parquet, at a pinned revision.

Fetched by `datasets`, and read later from the Arrow files that it keeps: those of the pinned
revision, or without one the newest. (`datasets` itself would ask the Hub again each time, wait long
where there is no network, and then take whichever revision it kept last.) Data sets that come as a
loading script are refused by `datasets` 4 and later; they are no source. Nothing is asked of the
network while HF_HUB_OFFLINE or SPARSE_TRANSFER_OFFLINE is set, or where the data is already here.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, final

from sparse_transfer.cards import SourceSpec, TaskCard
from sparse_transfer.errors import UserError
from sparse_transfer.examples import (
    AbstractSource,
    Listing,
    Part,
    Place,
    Presence,
    SourceUnavailable,
    encode_labels,
    find_columns,
    part_name,
    unique_ids,
)

REACHABLE_WITHIN = 5.0  # seconds to answer; a Hub that is out of reach must not stop a plan


@final
class HubSource(AbstractSource):
    """One Hub repository."""

    def __init__(self, spec: SourceSpec, card: TaskCard, place: Place) -> None:
        self.spec, self.card, self.place = spec, card, place
        self._listing: Listing | None = None

    def presence(self) -> Presence:
        if kept := self._kept():
            return Presence("here", f"downloaded before, {kept}")
        if not self.place.online:
            return Presence("missing", "not downloaded before, and downloads are switched off")
        at = f" at {self.spec.revision[:12]}" if self.spec.revision else ", newest revision"
        return Presence("download", f"would be downloaded from the Hub{at}")

    def fingerprint(self) -> Any:
        kept = self._kept()
        state = [str(kept), kept.stat().st_mtime_ns] if kept else []
        return ["hub", self.spec.location, self.spec.subset, self.spec.revision, *state]

    def listing(self) -> Listing:
        if self._listing is None:
            kept = self._kept()
            self._listing = self._read(_kept_parts(kept) if kept else self._fetched())
        return self._listing

    def _kept(self) -> Path | None:
        """The folder in which `datasets` keeps this data set after its first use."""
        home = Path(
            os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
        ).expanduser()
        base = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
        folder = base / self.spec.location.replace("/", "___")
        pattern = f"{self.spec.subset or '*'}/*/{self.spec.revision or '*'}"
        finished = [path.parent for path in folder.glob(f"{pattern}/dataset_info.json")]
        return max(finished, key=lambda path: path.stat().st_mtime_ns, default=None)

    def _fetched(self) -> Any:
        import datasets

        self._check_reachable()
        try:
            return datasets.load_dataset(
                self.spec.location, self.spec.subset, revision=self.spec.revision
            )
        except Exception as error:  # whatever the network, the Hub or a foreign format raises
            raise SourceUnavailable(_one_line(error)) from error

    def _check_reachable(self) -> None:
        from huggingface_hub import HfApi

        try:
            HfApi().dataset_info(
                self.spec.location, revision=self.spec.revision, timeout=REACHABLE_WITHIN
            )
        except Exception as error:  # the classes differ between releases of the client
            raise SourceUnavailable(f"the Hub did not answer: {_one_line(error)}") from error

    def _read(self, parts: Any) -> Listing:
        from datasets import Image

        chosen = self._parts(parts)
        first = next(iter(chosen.values()))
        features = {name: _described(feature) for name, feature in first.features.items()}
        columns = find_columns(
            {name: _kind(feature) for name, feature in first.features.items()},
            features,
            image=self.card.image,
            label=self.card.label,
            origin=self.spec.title,
        )
        encoded = {
            name: part.cast_column(columns.image, Image(decode=False))
            for name, part in chosen.items()
        }
        classes, labels = encode_labels(
            {name: list(part[columns.label]) for name, part in chosen.items()},
            columns.names,
            origin=self.spec.title,
        )
        ids = unique_ids({name: [None] * len(part) for name, part in chosen.items()})
        return Listing(
            classes,
            {
                name: Part(ids[name], labels[name], _Fetch(part, columns.image))
                for name, part in encoded.items()
            },
        )

    def _parts(self, parts: Any) -> dict[str, Any]:
        if not self.spec.parts:
            return {part_name(name) or name: part for name, part in parts.items()}
        wanted = {ours: str(theirs) for ours, theirs in self.spec.parts.items()}
        missing = [name for name in wanted.values() if name not in parts]
        if missing:
            raise UserError(
                f"{self.spec.title} has no split {', '.join(missing)}.",
                f"It has: {', '.join(parts)}.",
                "Change `parts:` of this source in the card.",
            )
        return {ours: parts[theirs] for ours, theirs in wanted.items()}


def _kept_parts(folder: Path) -> dict[str, Any]:
    """Split name → data set, from `NAME-SPLIT.arrow` or `NAME-SPLIT-00000-of-00002.arrow`."""
    from datasets import Dataset, concatenate_datasets

    splits = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))["splits"]
    parts = {}
    for split in splits:
        name = re.compile(rf".+-{re.escape(split)}(-\d+-of-\d+)?\.arrow")
        files = sorted(path for path in folder.iterdir() if name.fullmatch(path.name))
        if not files:
            raise UserError(
                f"What `datasets` keeps in {folder} is incomplete.",
                f"There is no file of its split {split}.",
                "Delete that folder; the data is then fetched again.",
            )
        parts[split] = concatenate_datasets([Dataset.from_file(str(path)) for path in files])
    return parts


@final
class _Fetch:
    """Row → encoded bytes or the path of the image."""

    def __init__(self, part: Any, column: str) -> None:
        self.part, self.column = part, column

    def __call__(self, row: int) -> bytes | Path | None:
        value = self.part[row][self.column]
        if value is None or value.get("bytes") is not None:
            return value and value["bytes"]
        return Path(value["path"]) if value.get("path") else None


def _described(feature: Any) -> dict[str, Any]:
    kind = type(feature).__name__
    return {"_type": kind, "names": feature.names} if kind == "ClassLabel" else {"_type": kind}


def _kind(feature: Any) -> str:
    if type(feature).__name__ == "Image" or (isinstance(feature, dict) and "bytes" in feature):
        return "image"
    stored = str(getattr(feature, "dtype", ""))
    if stored in ("binary", "large_binary"):
        return "binary"
    if stored in ("string", "large_string"):
        return "string"
    return "integer" if "int" in stored else "other"


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def open_source(spec: SourceSpec, card: TaskCard, place: Place) -> AbstractSource:
    """The source of a card's entry `hub: ORG/NAME`."""
    return HubSource(spec, card, place)

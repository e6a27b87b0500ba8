"""Run folders: atomic files, status, claims, and a scan of all results.

runs/<stage>/<id>/manifest.json    what is run, by which versions, on which machine
                  result.json      written last: its presence means finished
                  failure.json     the error of the last attempt
                  resume.*         the last epoch of an unfinished training
                  claim.lock       held (flock) by the process that works here
                  predictions/*.parquet, checkpoint/
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from sparse_transfer.errors import UserError

Status = Literal["finished", "partial", "failed", "new"]


def slug(*parts: object) -> str:
    """A file name of the parts: small letters, digits, dots and dashes only."""
    text = "-".join(str(part) for part in parts if str(part))
    return re.sub(r"[^a-zA-Z0-9.]+", "-", text).strip("-.").lower() or "all"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it if the block succeeds, removed if not.

    Works for a file and for a folder (which must not exist yet, or is replaced). No system call
    here replaces a folder that is not empty, so the old one is renamed to `.NAME.old` first; after
    a kill between the two renames it is there, and the next call puts it back.

    Raises:
        UserError: the disk is full or the folder may not be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside = path.with_name(f".{path.name}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _put_back(aside, path)
        _remove(temporary)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            _remove(aside)
            path.replace(aside)
        temporary.replace(path)
        _remove(aside)
    except OSError as error:
        if not _concerns(error, path):
            raise
        reasons = {
            errno.ENOSPC: "The disk is full.",
            errno.EDQUOT: "Your share of the disk is full.",
            errno.EACCES: "The folder is read-only for you.",
            errno.EROFS: "The folder is read-only.",
        }
        raise UserError(
            f"{path} could not be written.",
            reasons.get(error.errno or 0, f"The system says: {error.strerror or error}."),
            "Free some space or choose another place with --runs, and run the same again.",
        ) from error
    finally:
        _put_back(aside, path)
        _remove(temporary)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is not there or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read.",
            str(error),
            "If it was edited or cut off, delete its folder and run the same again.",
        ) from error


class Store:
    """The folder that holds all runs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: str, run_id: str) -> Path:
        """The folder of one run."""
        return self.root / stage / run_id

    def status(self, stage: str, run_id: str) -> Status:
        """What is known of a run. A killed run is `partial` or `new`, never `finished`."""
        folder = self.folder(stage, run_id)
        if (folder / "result.json").is_file():
            return "finished"
        if (folder / "failure.json").is_file():
            return "failed"
        return "partial" if (folder / "manifest.json").is_file() else "new"

    @contextlib.contextmanager
    def claim(self, stage: str, run_id: str) -> Iterator[Path | None]:
        """Hold a run folder for this process; yields None while another process holds it.

        The lock is the operating system's: it vanishes with its process, even on kill -9.
        """
        folder = self.folder(stage, run_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "claim.lock", timeout=0)
            lock.acquire()
        except Timeout:
            yield None
            return
        except OSError as error:
            raise UserError(
                f"The run folder {folder} cannot be made.",
                error.strerror or str(error),
                "Choose another place with --runs.",
            ) from error
        try:
            yield folder
        finally:
            lock.release()


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is about writing `path`, and not about some other file."""
    if error.filename is None:
        return True
    place = Path(str(error.filename))
    return place in path.parents or path.parent in place.parents


def _put_back(aside: Path, path: Path) -> None:
    """Rename an old folder back where nothing took its place."""
    if aside.is_dir() and not path.exists():
        aside.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

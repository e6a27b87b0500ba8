"""Atomic files, status and claims."""

import errno
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest

from sparse_transfer.errors import UserError
from sparse_transfer.store import Store, canonical_json, digest, replacing, slug, write_json


def test_equal_values_have_equal_digests_whatever_their_order():
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": [1.5, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.0000001})
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"\\u00e9","b":1}'


def test_nan_never_reaches_a_file(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, 1)
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "1\n" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "folder"
    for content in ("one", "two"):
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(content)
    assert (target / "file").read_text() == "two"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("moment", range(1, 5))
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_one_or_the_new_one(
    tmp_path, monkeypatch, moment
):
    """Stopped before the first, second … change of the disk, the next writer finds all of it."""
    target, written = tmp_path / "folder", []

    def write(content: str) -> None:
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(content)
            written.append(content)

    class Killed(BaseException):
        pass

    calls = []

    def counted(change):
        def changed(*args, **kwargs):
            if written == ["one", "two"]:
                calls.append(change)
                if len(calls) >= moment:  # a killed process does nothing more, not even clean up
                    raise Killed
            return change(*args, **kwargs)

        return changed

    write("one")
    with monkeypatch.context() as patched:
        for owner, name in ((Path, "replace"), (Path, "unlink"), (shutil, "rmtree")):
            patched.setattr(owner, name, counted(getattr(owner, name)))
        with pytest.raises(Killed):
            write("two")
    with pytest.raises(RuntimeError), replacing(target):
        raise RuntimeError  # the next writer fails, too, and still nothing is lost
    assert (target / "file").read_text() == ("two" if moment > 3 else "one")
    write("three")
    assert (target / "file").read_text() == "three" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")]
)
def test_a_full_or_read_only_disk_is_said(tmp_path, number, words):
    with pytest.raises(UserError, match=words), replacing(tmp_path / "x"):
        raise OSError(number, "no")


def test_status_follows_the_files(tmp_path):
    store = Store(tmp_path)
    folder = store.folder("prune", "ab")
    assert store.status("prune", "ab") == "new"
    write_json(folder / "manifest.json", {})
    assert store.status("prune", "ab") == "partial"
    write_json(folder / "failure.json", {})
    assert store.status("prune", "ab") == "failed"
    write_json(folder / "result.json", {})
    assert store.status("prune", "ab") == "finished"


def _hold(root: Path, ready, release) -> None:  # noqa: ANN001
    with Store(root).claim("prune", "ab") as folder:
        assert folder is not None
        ready.set()
        release.wait(60)


@pytest.mark.parametrize("how", ["released", "killed"])
def test_a_claim_excludes_others_until_its_process_is_gone(tmp_path, how):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, release))
    other.start()
    assert ready.wait(60)
    with Store(tmp_path).claim("prune", "ab") as folder:
        assert folder is None
    if how == "killed":
        os.kill(other.pid or 0, signal.SIGKILL)
    else:
        release.set()
    other.join(60)
    with Store(tmp_path).claim("prune", "ab") as folder:
        assert folder is not None


def test_a_slug_is_a_safe_file_name():
    assert slug("main", "../../etc/Pass wd", "", "full") == "main-..-..-etc-pass-wd-full"
    assert slug("..") == "all"
    assert "/" not in slug("a/b", "c\\d")

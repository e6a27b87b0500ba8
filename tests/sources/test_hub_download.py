"""Downloads from a stand-in of the Hub on this machine: resumed after a cut, explained if dead.

The Hub's own client runs unchanged, in a process of its own, against a small HTTP server.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.server
import json
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.made_images import parquet, picture, png

CHUNK = 10 * 2**20  # the Hub's client writes in such pieces; a piece that was cut is lost
CUT = CHUNK + 1000
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """One data set repository `some/where`; ends every transfer after CUT bytes."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.files = files
        self.starts: list[int] = []  # where the transfers began


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"] or 0)
        asked = self.rfile.read(length).decode()
        entries = [self._entry(name) for name in self.server.files if name in asked]
        self._json(entries)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            self._file(path.partition("/resolve/")[2].partition("/")[2], with_body)
        elif path.startswith("/api/datasets/some/where/tree"):
            self._json([self._entry(name) for name in self.server.files])
        elif path.startswith("/api/datasets/some/where"):
            names = [{"rfilename": name} for name in self.server.files]
            self._json({"id": "some/where", "sha": COMMIT, "siblings": names, "private": False,
                        "gated": False, "disabled": False, "tags": [], "downloads": 0})  # fmt: skip
        else:
            self.send_error(404)

    def _entry(self, name: str) -> dict[str, object]:
        size = len(self.server.files[name])
        return {"type": "file", "path": name, "size": size, "oid": "0" * 40}

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, name: str, with_body: bool) -> None:
        if name not in self.server.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = self.server.files[name]
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        rest = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(rest)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        self.server.starts.append(start)
        self.wfile.write(rest[:CUT])
        self.close_connection = True


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    path = parquet(
        tmp_path / "made" / "train.parquet",
        [number % 2 for number in range(4)],
        images=[png(picture(number, (1000, 1000)), "BMP") for number in range(4)],
    )
    server = Hub({"train.parquet": path.read_bytes()})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


PROGRAM = """
import sys
from pathlib import Path
from sparse_transfer import data
from sparse_transfer.config import TaskRef
from sparse_transfer.console import set_up_logging
from sparse_transfer.errors import UserError
set_up_logging(verbose=False, quiet=False)
try:
    task = data.open_task(TaskRef(name=sys.argv[1]), data_root=None, cache=Path(sys.argv[2]))
    print(len(task.train), len(task.test), task.classes, task.train.image(0).size)
except UserError as error:
    print(error)
"""


def opened(tmp_path: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """Open a task whose only source is the stand-in, in a process of its own."""
    (tmp_path / "where.yaml").write_text(
        "name: where\nhub: some/where\nsplit: {stratified: {test: 0.5}}\n"
        "manual: Copy the Parquet file by hand.\n",
        encoding="utf-8",
    )
    quiet = ("HF_HUB_OFFLINE", "SPARSE_TRANSFER_OFFLINE", "HF_DATASETS_CACHE")
    environment = {key: value for key, value in os.environ.items() if key not in quiet}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "where.yaml"), str(tmp_path / "cache")]
    screen, terminal = pty.openpty()  # bars are drawn on terminals only
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    shown = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(screen, 4096):
                shown.append(piece)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=terminal, text=True, timeout=120,
        check=True,
    )  # fmt: skip
    os.close(terminal)
    reader.join(10)
    os.close(screen)
    done.stderr = b"".join(shown).decode()
    return done


def test_a_download_that_was_cut_is_resumed_and_shown(hub: Hub, tmp_path: Path) -> None:
    (content,) = hub.files.values()
    assert CHUNK < len(content) < 2 * CHUNK
    done = opened(tmp_path, f"http://127.0.0.1:{hub.server_port}")
    assert done.stdout.split()[:2] == ["2", "2"], done.stdout + done.stderr
    assert hub.starts == [0, CHUNK]
    assert "fetching the data of task where" in done.stderr
    assert "train.parquet:" in done.stderr and "%|" in done.stderr  # the bar of the client
    again = opened(tmp_path, "http://127.0.0.1:9")  # nobody answers there; nobody is asked
    assert again.stdout == done.stdout and len(hub.starts) == 2


def test_a_hub_that_does_not_answer_is_explained(tmp_path: Path) -> None:
    done = opened(tmp_path, "http://127.0.0.1:9")
    assert "not available" in done.stdout and "the Hub did not answer" in done.stdout
    assert "Copy the Parquet file by hand." in done.stdout

"""The built wheel: everything that runs, nothing else, and it works outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
# What a file of the tree is called in the wheel.
FOLDERS = {
    "sparse_transfer": "sparse_transfer",
    "configs": "sparse_transfer/configs",
    "tasks": "sparse_transfer/tasks",
}
SUFFIXES = {".py", ".yaml", ".html", ".css", ".js"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The wheel of a copy of the sources (a build writes beside them), unpacked."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*FOLDERS, "tests", "benchmarks"):
        shutil.copytree(
            CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "cli.py"):
        shutil.copy(CHECKOUT / name, source)
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    quick = os.environ | {
        "SPARSE_TRANSFER_KERNELS": "portable"
    }  # the others take longer to compile
    done = subprocess.run(
        [sys.executable, *command], env=quick, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(out / "unpacked")
    return out / "unpacked"


def test_only_the_package_is_at_the_top(unpacked: Path):
    top = {path.name for path in unpacked.iterdir()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"sparse_transfer"}
    assert len(top) == 2


def test_wheel_and_tree_have_the_same_files(unpacked: Path):
    tree = {
        f"{inside}/{path.relative_to(CHECKOUT / folder).as_posix()}"
        for folder, inside in FOLDERS.items()
        for path in (CHECKOUT / folder).rglob("*")
        if path.suffix in SUFFIXES | {".typed"}
    }
    packed = {
        path.relative_to(unpacked).as_posix()
        for path in (unpacked / "sparse_transfer").rglob("*")
        if path.is_file() and path.suffix != ".so"  # compiled here; the sources are not shipped
    }
    assert packed == tree
    assert {Path(name).suffix for name in tree} == SUFFIXES | {".typed"}


@pytest.mark.parametrize("what", ["tasks", "configs", "recipes"])
def test_it_lists_what_it_ships_outside_the_checkout(unpacked: Path, tmp_path: Path, what: str):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(unpacked)
    code = (
        "import sparse_transfer, sys; from sparse_transfer.__main__ import main\n"
        "print(sparse_transfer.__file__, file=sys.stderr); main()"
    )

    def listed(path: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", code, "ls", what], cwd=tmp_path, capture_output=True, text=True,
            env=environment | {"PYTHONPATH": path}, check=True, timeout=120,
        )  # fmt: skip
        return done.stdout, done.stderr

    shipped, where = listed(str(unpacked))
    assert Path(where.strip()).is_relative_to(unpacked)
    assert len(shipped.splitlines()) > 1 and shipped == listed(str(CHECKOUT))[0]


def test_the_kernels_are_in_it_and_are_found(unpacked: Path, tmp_path: Path):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")
    code = "from sparse_transfer.sparse import library as l; print(l.available(), l.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(unpacked)}, timeout=120,
    )  # fmt: skip
    reason, where = done.stdout.split()
    assert reason == "None" and Path(where).is_relative_to(unpacked)


def test_without_a_compiler_it_installs_and_says_what_to_do(tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(
        CHECKOUT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "*.so", "build")
    )
    command = ["setup.py", "--quiet", "build", "--build-lib", str(tmp_path / "built")]
    broken = os.environ | {"CC": "no-such-compiler", "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, *command], cwd=source, env=broken, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no-such-compiler" in done.stderr
    code = "from sparse_transfer.sparse import library; print(library.available())"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "built")}, timeout=120,
    ).stdout  # fmt: skip
    assert said.startswith("the sparse kernels were not compiled") and "install" in said


def test_the_command_is_installed(unpacked: Path):
    (entry,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "sparse-transfer = sparse_transfer.__main__:main" in entry.read_text()

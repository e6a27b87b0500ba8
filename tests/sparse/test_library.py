"""Which library is opened, and what is said where there is none."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from sparse_transfer.errors import UserError
from sparse_transfer.sparse import library

WIDE = ["-march=x86-64-v4", "-mprefer-vector-width=512"]


@pytest.mark.kernels
def test_the_best_level_is_taken_and_a_lower_one_can_be_asked_for(monkeypatch):
    monkeypatch.delenv(library.CHOICE, raising=False)
    best = library.best_level()
    assert library.current().level == best
    monkeypatch.setenv(library.CHOICE, "portable")
    assert library.current().level == "portable" and library.current().vector == 4
    monkeypatch.setenv(library.CHOICE, "avx513")
    with pytest.raises(UserError, match="avx512"):
        library.best_level()


@pytest.mark.kernels
def test_a_level_that_the_cpu_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(library, "LEVELS", ("portable", "warp"))
    monkeypatch.setenv(library.CHOICE, "warp")
    with pytest.raises(UserError, match="This machine has portable"):
        library.best_level()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        ("g++", []),
        ("aarch64-linux-gnu-g++", []),
        ("clang++", []),
        ("clang++", ["-march=x86-64-v3"]),
        ("clang++", WIDE),
        ("clang++", [*WIDE, "-mavx512bf16", "-DSPARSE_BF16"]),
        ("clang++", [*WIDE, "-mavx512fp16", "-DSPARSE_FP16"]),
    ],
)
def test_other_compilers_and_processors_take_the_kernels(tmp_path, compiler: str, flags: list[str]):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    if flags and platform.machine() != "x86_64":
        pytest.skip(f"{flags} are for another processor")
    done = subprocess.run(
        [
            compiler, "-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fvisibility=hidden",
            "-shared", "-fPIC", "-Wall", "-Wextra", *flags,
            "-Wno-pass-failed",  # clang says which loops it leaves rolled: slower, not wrong
            Path(library.__file__).parent / "native" / "run.cpp", "-o", tmp_path / "kernels.so",
        ],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr[-4000:]


def test_without_kernels_the_reason_says_what_to_do(monkeypatch):
    monkeypatch.setattr(library, "_file", lambda level: None)
    library._open.cache_clear()
    for compiler, words in ((None, "Install g"), ("/usr/bin/c++", "install the package again")):
        monkeypatch.setattr(library.shutil, "which", lambda name, found=compiler: found)
        assert words in (library.available() or "")
        with pytest.raises(UserError, match="not compiled when the package was installed"):
            library.current()


@pytest.mark.kernels
def test_kernels_of_other_sources_are_refused(monkeypatch):
    class Longer(library.abi.Planes):
        _fields_ = [("more", library.abi.c_int32), ("and_more", library.abi.c_int32)]

    monkeypatch.setattr(library.abi, "Planes", Longer)
    library.load.cache_clear()
    with pytest.raises(UserError, match="compiled from other sources"):
        library.load("portable")


@pytest.mark.kernels
def test_kernels_of_another_interface_are_refused_though_sizes_fit(monkeypatch):
    monkeypatch.setattr(library.abi, "VERSION", library.abi.VERSION + 1)
    library.load.cache_clear()
    with pytest.raises(UserError, match="compiled from other sources"):
        library.load("portable")


@pytest.mark.kernels
def test_kernels_without_a_version_are_refused(monkeypatch):
    """Older ones began with the sizes."""
    abi = library.abi
    sizes = [library.ctypes.sizeof(kind) for kind in (abi.Planes, abi.Op, abi.Segment, abi.Entry)]

    class Old:
        @staticmethod
        def sparse_facts(facts) -> None:
            facts[:12] = [*sizes, 16, 4, 8, 8, 8, 4, 8, 8]

    monkeypatch.setattr(library, "_open", lambda level: Old)
    library.load.cache_clear()
    with pytest.raises(UserError, match="compiled from other sources"):
        library.load("portable")


def test_the_cpu_has_a_name():
    assert len(library.cpu_name()) > 3

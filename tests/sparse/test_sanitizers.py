"""The tests of single layers again, with kernels compiled to watch their memory and arithmetic."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse_transfer.sparse import library

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("level", ["portable", "avx512", library.BF16])
def test_address_and_undefined_behaviour_sanitizers_are_silent(tmp_path: Path, level: str):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    if level not in (*library.levels(), *library.levels(torch.bfloat16)):
        pytest.skip(f"this CPU has no {level}")
    package = tmp_path / "sparse_transfer"
    shutil.copytree(CHECKOUT / "sparse_transfer", package, ignore=shutil.ignore_patterns("*.so"))
    shutil.copytree(CHECKOUT / "tests", tmp_path / "tests")
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    flags = [] if level == "portable" else ["-march=x86-64-v4", "-mprefer-vector-width=512"]
    flags += ["-mavx512bf16", "-DSPARSE_BF16"] if level == library.BF16 else []
    files = ["layer", "program", "training_regions"] if level != library.BF16 else ["bfloat16"]
    for name in dict.fromkeys(["portable", level]):
        subprocess.run(
            [
                compiler, "-std=c++17", "-O1", "-g", "-shared", "-fPIC", "-fopenmp",
                "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined",
                *(flags if name == level else []),
                package / "sparse" / "native" / "run.cpp",
                "-o", package / "sparse" / f"_kernels_{name}.so",
            ],
            check=True, timeout=600,
        )  # fmt: skip
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider",
            *(f"tests/sparse/test_{file}.py" for file in files),
            "-k", "not refused and not forked and not workers and not networks",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=1800,
        env=os.environ | {
            "PYTHONPATH": str(tmp_path), library.CHOICE: level, "LD_PRELOAD": runtime,
            "ASAN_OPTIONS": "detect_leaks=0",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "100%" in done.stdout and "runtime error" not in done.stdout + done.stderr

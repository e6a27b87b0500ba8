"""Compiles the sparse kernels, one shared library per instruction level.

Everything else is in pyproject.toml.

They are optional: without a C++ compiler everything else installs, and the sparse backend says why
it is not there. They are plain libraries, not Python modules: sparse_transfer/sparse/library.py
opens the one that fits the CPU. `SPARSE_TRANSFER_KERNELS=portable` (or avx2) compiles no level
above that one, in a fraction of the time.
"""

import os
import platform

from setuptools import Extension, setup

NATIVE = "sparse_transfer/sparse/native"
HEADERS = ("convolution", "layout", "pointwise", "products", "program", "training", "vectors")
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fvisibility=hidden"]
LEVELS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {
        "avx2": ["-march=x86-64-v3"],
        "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    }
    LEVELS["avx512bf16"] = [*LEVELS["avx512"], "-mavx512bf16", "-DSPARSE_BF16"]
names = list(LEVELS)
wanted = os.environ.get("SPARSE_TRANSFER_KERNELS", names[-1])
highest = names.index(wanted) if wanted in names else len(names) - 1

setup(
    ext_modules=[
        Extension(
            f"sparse_transfer.sparse._kernels_{level}",
            [f"{NATIVE}/run.cpp"],
            depends=[f"{NATIVE}/{name}.h" for name in HEADERS],
            extra_compile_args=FLAGS + flags,
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
        for level, flags in list(LEVELS.items())[: highest + 1]
    ]
)

"""`benchmarks/report.py` and `benchmarks/imports.py`, reduced: their data, and when they fail."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SMALL = {"report": ["--seeds", "1", "--examples", "0.02"], "imports": ["--rows", "600"]}


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_made_up_study_has_the_test_sets_of_the_study():
    report = benchmark("report")
    sizes = {name: len(report.TestSet(name, 1.0).label) for name in report.TASKS}
    # arXiv 2111.13445, with the re-packaged Birdsnap and Caltech-101 without its background
    assert list(sizes.values()) == [
        3333, 8171, 5647, 15187, 8041, 10000, 10000, 1880, 6149, 25250, 3669, 19850,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "imports"])
@pytest.mark.parametrize("exceeded", ["", "SECONDS", "BYTES"])
def test_a_benchmark_fails_on_what_exceeds_its_limits(
    name: str, exceeded: str, monkeypatch: pytest.MonkeyPatch, capsys
):
    module = benchmark(name)
    for limit in ("SECONDS", "BYTES"):
        # the others are generous: the speed of this machine is not what is tested
        monkeypatch.setattr(module, limit, 0 if limit == exceeded else 1e12)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *SMALL[name]])
    assert module.main() == bool(exceeded)
    assert capsys.readouterr().out.count("(limit 0)") == bool(exceeded)

"""`benchmarks/upstream.py`: which runs stand in which table, and its differences and slopes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "upstream.py"


@pytest.fixture(scope="module")
def upstream() -> ModuleType:
    spec = importlib.util.spec_from_file_location("upstream_tables", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run(upstream: ModuleType, arm: str, method: str, sparsity: float, seed: int, top1: float,
        macs: float = 100.0, measured: float | None = None):  # fmt: skip
    result = {
        "rows": [{"metrics": {"top1": {"value": top1 / 100}}}], "macs": macs, "macs_dense": macs,
        "measured_sparsity": sparsity if measured is None else measured, "layers": [],
        "summary": {"method": method, "layers": {"a": {"kept": 3}}},
    }  # fmt: skip
    return upstream.Upstream(arm, method, sparsity, seed, result)


def test_a_smaller_dense_net_stands_at_the_sparsity_of_its_macs(upstream: ModuleType):
    runs = [run(upstream, "a", "dense", 0.0, 0, 90, 100)]
    runs += [run(upstream, "a", "gmp", level, 0, 80, 100 * (1 - level)) for level in (0.5, 0.75)]
    runs.append(run(upstream, "a", "small", 0.0, 0, 70, 27))
    found = upstream.blocks(runs)
    assert sorted(found["a", 0.5]) == ["dense", "gmp"]
    assert sorted(found["a", 0.75]) == ["dense", "gmp", "small"]
    text = "\n".join(upstream.table(runs, "gmp", set()))
    assert "| small | 1 | 70.0 |" in text and "3.70× fewer" in text and "1.00× fewer" in text


def test_differences_are_paired_and_only_declared_ones_are_decided(upstream: ModuleType):
    runs = [run(upstream, "a", "gmp", 0.5, seed, 50 + seed) for seed in range(4)]
    runs += [run(upstream, "a", "fggp", 0.5, seed, 52 + 1.2 * seed) for seed in range(4)]
    plain = "\n".join(upstream.table(runs, "gmp", set()))
    assert "+2.3 [+1.9, +2.7] |" in plain
    declared = "\n".join(upstream.table(runs, "gmp", {frozenset(("gmp", "fggp"))}))
    assert "+2.3 [+1.9, +2.7] better |" in declared
    assert "Mean rank over 4 blocks (Friedman p = 0.046): fggp 1.00, gmp 2.00." in declared


def test_blocks_without_a_common_method_have_no_ranks(upstream: ModuleType):
    runs = [run(upstream, "a", "gmp", 0.5, 0, 50), run(upstream, "b", "fggp", 0.5, 0, 60)]
    text = "\n".join(upstream.table(runs, "gmp", set()))
    assert "| gmp | 1 | 50.0 |" in text and "| fggp | 1 | 60.0 |" in text
    assert "Mean rank" not in text


def test_a_trend_is_the_slope_per_doubling_within_one_arm(upstream: ModuleType):
    runs = []
    for seed in range(3):
        for doublings, level in ((1, 0.5), (2, 0.75), (3, 0.875)):
            runs.append(run(upstream, "main", "a", level, seed, 50 + 2 * doublings + seed))
            runs.append(run(upstream, "main", "b", level, seed, 50 + seed))
            runs.append(run(upstream, "other", "b", level, seed, 99))
    lines = list(upstream.trend(runs, "a", "b", True))
    assert lines[2].startswith("| 2× | +2.0 [+2.0, +2.0] better")
    assert lines[-1].startswith("| slope per doubling | +2.0 [+2.0, +2.0] better")


def test_learned_sparsity_is_interpolated_in_the_log_of_the_density(upstream: ModuleType):
    runs = [run(upstream, "a", "str", 0.0, 0, 60, measured=0.8)]
    half = run(upstream, "a", "str", 0.0, 0, 40, measured=0.95)
    runs.append(upstream.replace(half, method="heavier"))
    half.result["summary"]["method"] = "str"
    lines = list(upstream.learned(runs, [0.9, 0.99]))
    assert "| str | interpolated | | 90 | 50.0 |" in lines  # .1 is half-way from .2 to .05
    assert "| str | interpolated | | 99 | not reached |" in lines


def test_controls_keep_the_numbers_of_each_run(upstream: ModuleType):
    runs = [run(upstream, "a", m, 0.9, seed, 50) for m in ("gmp", "random-erk") for seed in (0, 1)]
    runs.append(run(upstream, "a", "str", 0.0, 0, 40, measured=0.87))
    made = upstream.controls("all-pruners", runs, 0.9)
    assert [arm["name"] for arm in made["arms"]] == ["seed-0", "seed-1", "str-seed-0"]
    assert made["arms"][0]["prune"]["methods"][0]["options"] == {"layers": {"a": 3}}
    assert made["arms"][2]["prune"]["sparsities"] == [0.87]
    control = [run(upstream, "seed-0", "random like gmp", 0.9, 0, 45)]
    lines = list(upstream.floor(runs, control))
    assert lines[2] == "| gmp | 1 | 50.0 | 45.0 | +5.0 (one seed) |  |"

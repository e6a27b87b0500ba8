"""The sparse benchmarks: rounds, cells that are kept, verdicts, tables, figures, agreement."""

from __future__ import annotations

import importlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from sparse_transfer import latency, store
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.sparse import library

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(library.available() is not None, reason="the kernels were not compiled"),
]
FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """Imports a script as it is when it is run: its folder comes first on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_every_run_has_its_turn_and_no_constant_predecessor(benchmark):
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = benchmark("measuring").interleaved(runs, 6, warmup=1)
    assert {name: s.shape for name, s in seconds.items()} == dict.fromkeys("abc", (6,))
    rounds = ["".join(order[i : i + 3]) for i in range(0, 21, 3)]
    assert all(sorted(r) == list("abc") for r in rounds)
    before = {r[r.index("a") - 1] if r.index("a") else "" for r in rounds}
    assert before == {"", "b", "c"}


def test_a_speedup_is_the_median_of_ratios_of_the_same_round(benchmark):
    # medians of the times alone would give 3 / 1; the ratios are 1, 3, 5, 2, 4, 9
    reference = np.array([1.0, 3.0, 5.0, 2.0, 4.0, 9.0])
    found = benchmark("measuring").ratio(reference, np.ones(6))
    assert found == {"speedup": 3.5, "interval": (1.0, 9.0)}


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ({"goal": 2.0, "speedup": 2.0}, "PASS"),
        ({"goal": 2.0, "speedup": 1.99}, "MISS"),
        ({"goal": None, "speedup": 0.1}, ""),
        ({"goal": 20.0, "value": 20.0, "at_most": True}, "PASS"),
        ({"goal": 20.0, "value": 20.1, "at_most": True}, "MISS"),
    ],
)
def test_verdicts(benchmark, cell: dict, wanted: str):
    assert benchmark("measuring").verdict(cell) == wanted


def test_a_table_goes_on_where_it_stopped(benchmark, tmp_path: Path, monkeypatch):
    measuring = benchmark("measuring")
    path, key = tmp_path / "cells.json", {"row": "a", "sparsity": 0.9}
    first = measuring.Cells(path, "mine")
    assert first.get(key, lambda: {"figure": 1}) == {**key, "figure": 1}
    kept = measuring.Cells(path, "mine").get(key, lambda: pytest.fail("measured twice"))
    assert kept == {**key, "figure": 1, "was_there": True}
    anew = measuring.Cells(path, "mine", again=True)
    assert anew.get(key, lambda: {"figure": 2})["figure"] == 2
    measuring.Cells(path, "mine").get({**key, "sparsity": 0.8}, lambda: {"figure": 3})
    assert [c["figure"] for c in store.read_json(path)["cells"]] == [2, 3]
    with pytest.raises(UserError, match="other on"):
        measuring.Cells(path, "other")
    with monkeypatch.context() as other:
        other.setattr(measuring.library, "digest", lambda: "0123456789")
        with pytest.raises(UserError, match="this is mine on .*kernels 01234567"):
            measuring.Cells(path, "mine")
    monkeypatch.setattr(measuring, "machine", lambda: "another machine")
    with pytest.raises(UserError, match="another machine"):
        measuring.Cells(path, "mine")


class Constant(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.full((len(images), 3), 7.0) + 1e-9 * images.mean((2, 3))


def test_a_network_that_ignores_its_images_is_found(benchmark):
    measuring = benchmark("measuring")
    assert latency.dependence(Constant(), 8) < 1e-6
    model, masks = measuring.network("resnet18_cifar", 0.9, "uniform")
    assert latency.dependence(model, 32) > 1e-3
    assert masks.sparsity() == pytest.approx(0.9, abs=1e-4)
    masks_of = dict(model.named_parameters())
    assert all(not masks_of[name].detach()[~mask].any() for name, mask in masks.items())


def test_bytes_of_a_step_are_those_of_parameters_gradients_and_momentum(benchmark):
    training = benchmark("sparse_training")
    linear = nn.Linear(12, 5)
    model = nn.Sequential(nn.Flatten(), linear)
    step = training.Step(model, model, None, torch.randn(2, 3, 2, 2), torch.tensor([0, 1]))
    step()
    size = 4 * (12 * 5 + 5)
    assert step.bytes() == dict.fromkeys(
        ("parameter_bytes", "gradient_bytes", "optimizer_bytes"), size
    )
    assert linear.weight.grad is not None
    assert step.gradients()["1.weight"].equal(linear.weight.grad)


def task_of(training: ModuleType):
    torch.manual_seed(0)
    convolution = nn.Conv2d(16, 16, 3, padding=1, bias=False)
    kept = torch.rand(convolution.weight.shape) < 0.1
    with torch.no_grad():
        convolution.weight.mul_(kept)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        convolution, nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    return training.Task(model, Masks({"3.weight": kept}), images, labels)


def test_training_engines_agree_with_float64_and_another_function_is_refused(
    benchmark, monkeypatch: pytest.MonkeyPatch
):
    training = benchmark("sparse_training")

    def check(*names: str) -> dict:
        task = task_of(training)
        return training.check(task, training.engines(task, names))

    errors = check("nchw", "channels-last", "sparse")
    assert set(errors) == {"nchw", "channels-last", "sparse"}
    assert max(e["gradients"] for e in errors.values()) < 1e-4
    convert = training.convert_for_training

    def wrong(model: nn.Module, masks: Masks, images: torch.Tensor):
        with torch.no_grad():
            model.get_parameter("7.weight").mul_(1.5)
        return convert(model, masks, images)

    monkeypatch.setattr(training, "convert_for_training", wrong)
    with pytest.raises(UserError, match="sparse does not train the same function"):
        check("nchw", "sparse")

    def wrong_in_one(model: nn.Module, masks: Masks, images: torch.Tensor):
        converted = convert(model, masks, images)
        smallest = min((p for p in converted.parameters() if p.dim()), key=lambda p: p.numel())
        smallest.register_hook(lambda gradient: 1.02 * gradient)
        return converted

    monkeypatch.setattr(training, "convert_for_training", wrong_in_one)
    with pytest.raises(UserError, match=r"gradient of 7.bias is off by 2.0e-02"):
        check("nchw", "sparse")


def test_every_training_engine_is_checked(benchmark, monkeypatch: pytest.MonkeyPatch):
    training = benchmark("sparse_training")
    task = task_of(training)
    steps = training.engines(task, ["nchw", "bf16", "sparse"])
    steps["bf16"].loss = float("nan")
    with pytest.raises(UserError, match="bf16 does not train the same function"):
        training.check(task, steps)


def test_a_layer_of_nan_is_refused(benchmark, monkeypatch: pytest.MonkeyPatch):
    layers = benchmark("sparse_layers")
    cell = layers.measure_cell((16, 16, 3, 1, 8, 16), 0.9, 1)
    assert set(cell["median_s"]) >= {"forward ours", "both ours", "both nhwc"}
    monkeypatch.setattr(layers, "relative", lambda *_: float("nan"))
    with pytest.raises(UserError, match="too large"):
        layers.measure_cell((16, 16, 3, 1, 8, 16), 0.9, 1)


def test_missing_rivals_and_pytorch_in_our_place_are_said(benchmark):
    measuring, tables = benchmark("measuring"), benchmark("tables")
    cell = {**SPEED, "goal": 2.0, "left_out": ["openvino"]}
    assert measuring.shown(cell).endswith("PASS (without openvino)")
    assert tables._figure(cell).endswith("PASS (without openvino)")
    assert not measuring.without({**cell, "left_out": []})
    ours = measuring.cost("growth", 0.5, 1.0, {"engine": "sparse"})
    assert ours == {"what": "growth", "goal": 1.0, "value": 0.5}
    dense = measuring.cost("growth", 0.5, 1.0, {"engine": "dense"})
    assert dense["goal"] is None and "PyTorch" in dense["what"]
    lines = list(tables.inference([{"cost": True, "figures": [ours, dense]}]))
    assert lines[-2:] == [
        "| growth | 0.5 | 1.0 | PASS |",
        f"| {dense['what']} | 0.5 |  |  |",
    ]


SPEED = {"speedup": 2.5, "interval": [2.0, 3.0]}


def test_tables_hold_the_figures_goals_and_words(benchmark, tmp_path: Path):
    cells = [
        {"row": "net", "sparsity": 0.9, "mac_density": 0.1, **SPEED, "goal": 3.0,
         "measured_sparsity": 0.9, "best_dense": "dense", "engine": "sparse",
         "precision": "float32",
         "compile_s": 4.0},
        {"row": "growth", "cost": True, "figures": [{"what": "MiB", "goal": 1.0, "value": 0.5}]},
    ]  # fmt: skip
    store.write_json(
        tmp_path / "i.json", {"benchmark": "sparse_inference", "machine": "m", "cells": cells}
    )
    tables = benchmark("tables")
    _, content = tables.opened(tmp_path / "i.json")
    lines = list(tables.document(content, tables.inference))
    assert lines[0] == "m\n"
    assert "| net | 2.50 [2.00, 3.00], 3: MISS |" in lines
    assert "| net | 90.0 | 10.0 | 2.50 [2.00, 3.00] | dense | sparse, float32 | 4.0 |" in lines
    assert "| MiB | 0.5 | 1.0 | PASS |" in lines
    found = {"parameter_bytes": 2**20, "gradient_bytes": 2**20, "optimizer_bytes": 2**21,
             "peak_bytes": 9 * 2**20}  # fmt: skip
    cells = [
        {"row": "net", "sparsity": 0.8, "float32": {**SPEED, "goal": 2.0},
         "any": {**SPEED, "interval": None, "goal": None}},
        {"row": "net", "sparsity": 0.8, "memory": True, "of": {"nchw": found, "sparse": found}},
    ]  # fmt: skip
    store.write_json(
        tmp_path / "t.json", {"benchmark": "sparse_training", "machine": "m", "cells": cells}
    )
    _, content = tables.opened(tmp_path / "t.json")
    lines = list(tables.document(content, tables.training))
    assert "| net | 2.50 [2.00, 3.00], 2: PASS |" in lines and "| net | 2.50 |" in lines
    assert "| net | 80 | 4 (9) | 4 (9) |" in lines
    store.write_json(tmp_path / "x.json", {"cells": []})
    with pytest.raises(UserError, match="holds no tables"):
        tables.opened(tmp_path / "x.json")


def test_tables_take_the_place_of_older_ones(benchmark):
    tables = benchmark("tables")
    cells = [
        {"row": row, "sparsity": 0.9, "mac_density": 0.1, "measured_sparsity": 0.9, **SPEED,
         "goal": goal, "best_dense": "dense", "engine": "sparse", "precision": "float32",
         "compile_s": 4.0}
        for row, goal in (("fast", 2.0), ("floor", 0.97), ("open", None))
    ]  # fmt: skip
    content = {"machine": "m", "cells": cells}
    for name, rows in (("", ["fast", "floor", "open"]), (" goals", ["fast"])):
        mark = f"sparse_inference{name}"
        page = f"a\n<!-- {mark} -->\nold\n<!-- /{mark} -->\nb\n"
        once = tables.filled(page, "sparse_inference", content)
        assert once == tables.filled(once, "sparse_inference", content) and "old" not in once
        assert once.startswith(f"a\n<!-- {mark} -->\nm\n") and once.endswith(
            f"<!-- /{mark} -->\nb\n"
        )
        goal_table = once.partition("### Inference against")[0]
        assert [row for row in ("fast", "floor", "open") if f"| {row} |" in goal_table] == rows
    missed = {**cells[1], "row": "slow", "goal": 9.0, "speedup": 0.5}
    assert "| slow |" in "\n".join(tables.inference_goals([{**missed, "goal": 0.97}]))
    with pytest.raises(UserError, match="without an end"):
        tables.filled("<!-- sparse_inference -->", "sparse_inference", content)
    with pytest.raises(UserError, match="no place for sparse_training"):
        tables.filled(page, "sparse_training", {"machine": "m", "cells": []})


@pytest.mark.parametrize("kind", ["sparse_inference", "sparse_training", "sparse_layers"])
def test_the_pages_for_users_have_a_place_for_every_table(benchmark, kind: str):
    page = (FOLDER.parent / "docs" / "when-zeros-pay.md").read_text(encoding="utf-8")
    assert f"<!-- {kind} -->" in page and f"<!-- /{kind} -->" in page
    if kind in benchmark("tables").SHORT:
        page = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
        assert f"<!-- {kind} goals -->" in page and f"<!-- /{kind} goals -->" in page


def test_a_figure_shows_both_engines_and_the_roofs_in_reach(benchmark):
    scaling = benchmark("sparse_scaling")
    roofs = {n: {"gflops": 100.0 * n, "l2_gbytes": 60.0 * n, "memory_gbytes": 10.0} for n in (1, 2)}
    cells = [
        {**vars(point), "gflops": {"sparse": 20.0 * point.threads, "dense": 5.0},
         "operations": 8e9, "bytes": 2e8, "engine": "sparse"}
        for point in scaling.points("batch", [1, 2])
    ]  # fmt: skip
    drawing = scaling.figure("batch", cells, roofs)
    ET.fromstring(drawing.file)
    words = re.findall(r">([^<>]+)</text>", drawing.svg)
    assert {"1 thread", "2 threads", "FMA, 1", "L2, 2", "PyTorch, 1"} <= set(words)
    # 8e9 operations for 2e8 bytes at 10 GB/s: 400, above all that is drawn
    assert set(drawing.data["memory"]) == {400.0} and not any("memory" in w for w in words)
    assert set(drawing.data["L2"]) == {30.0, 60.0}

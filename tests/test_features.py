"""Extraction (one process and two), the digests and the cache that names content.

Run by torchrun, this file is the worker of the test with two processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from sparse_transfer import devices, features, store
from sparse_transfer.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Pictures:
    """As much of `data.Images` as extraction reads: every picture is a function of its index."""

    stats = (MEAN, STD)

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.count

    def pixels(self, indices: np.ndarray) -> np.ndarray:
        self.asked += indices.tolist()
        return np.stack(
            [np.random.default_rng(i).integers(0, 256, (3, 32, 32), np.uint8) for i in indices]
        )


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5)
    for module in model.modules():  # so that the modes of batch norm can be told apart
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def run(what: Any, model: torch.nn.Module, images: Any, **changes: Any) -> np.ndarray:
    options: dict[str, Any] = {
        "accelerator": devices.accelerator(),
        "batch_size": 4,
    }
    return what(model, images, **options | changes)


def directly(model: torch.nn.Module, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and logits of one image at a time, without anything of ours in between."""
    rows, outputs = [], []
    shape = (1, 3, 1, 1)
    model.eval()
    with torch.no_grad():
        for i in range(count):
            pixels = torch.from_numpy(Pictures(count).pixels(np.array([i]))) / 255.0
            x = (pixels - torch.tensor(MEAN).view(shape)) / torch.tensor(STD).view(shape)
            rows.append(model.forward_head(model.forward_features(x), pre_logits=True))
            outputs.append(model(x))
    return torch.cat(rows).numpy(), torch.cat(outputs).numpy()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_row_i_belongs_to_example_i(batch_size: int) -> None:
    model, images = small_model(), Pictures(9)
    table = run(features.extract, model, images, batch_size=batch_size)
    outputs = run(features.logits, model, images, batch_size=batch_size)
    expected, expected_outputs = directly(model, 9)
    assert (table.dtype, outputs.dtype) == (np.float32, np.float32)
    assert table.shape == (9, model.num_features)
    np.testing.assert_allclose(table, expected, atol=1e-5)
    np.testing.assert_allclose(outputs, expected_outputs, atol=1e-5)
    assert images.asked == [*range(9), *range(9)]
    assert len(np.unique(table.round(4), axis=0)) == 9


def test_every_module_gets_its_own_mode_back() -> None:
    model = small_model().train()
    model.bn1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = features.weights_digest(model)
    run(features.extract, model, Pictures(3))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert features.weights_digest(model) == state, "running statistics must not move"
    with pytest.raises(ZeroDivisionError), features.evaluating(model):
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert {name: module.training for name, module in model.named_modules()} == before


def test_bf16_is_near_and_not_the_same() -> None:
    model, images = small_model(), Pictures(4)
    full = run(features.extract, model, images)
    half = run(features.extract, model, images, precision="bf16")
    assert half.dtype == np.float32
    assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        run(features.extract, small_model(), Pictures(0))


def test_the_digest_of_weights_sees_every_bit_and_name() -> None:
    model = small_model()
    digest = features.weights_digest(model)
    assert features.weights_digest(small_model()) == digest
    assert features.weights_digest(small_model().to(memory_format=torch.channels_last)) == digest
    seen = {digest}
    with torch.no_grad():
        model.conv1[0].weight[0, 0, 0, 0].add_(1e-6)
        seen.add(features.weights_digest(model))
        model.bn1.running_var[0] += 1e-6
        seen.add(features.weights_digest(model))
        model.bn1.num_batches_tracked.add_(1)
        seen.add(features.weights_digest(model))
    seen.add(features.weights_digest(small_model().bfloat16()))
    same_bytes = [torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)]
    for layer in same_bytes:
        torch.nn.init.ones_(layer.weight)
        seen.add(features.weights_digest(layer))
    renamed = torch.nn.ModuleDict({"other": same_bytes[0]})
    seen.add(features.weights_digest(renamed))
    assert len(seen) == 8


def key_parts(model: torch.nn.Module | None = None, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "preprocess": {"image_size": 32, "crop": "none", "interpolation": "bilinear"},
        "mean": MEAN,
        "std": STD,
        "split_hash": "abc",
        "part": "train",
        "images": 3,
        "precision": "fp32",
    }
    return features.key_parts(model or small_model(), **options | changes)


CHANGES = {
    "transform": {"preprocess": {"image_size": 32, "crop": "none", "interpolation": "bicubic"}},
    "mean": {"mean": (0.5, 0.4, 0.31)},
    "std": {"std": (0.2, 0.25, 0.31)},
    "split": {"split_hash": "abd"},
    "part": {"part": "test"},
    "count": {"images": 4},
    "precision": {"precision": "bf16"},
}


def cached(parts: dict[str, Any], folder: Path, table: np.ndarray) -> tuple[np.ndarray, bool]:
    """What `cached` returns, and whether it computed it."""
    calls = []
    found = features.cached(parts, folder, lambda: calls.append(1) or table)
    return found, bool(calls)


TABLE = np.arange(12, dtype=np.float32).reshape(3, 4) / 7


def test_a_table_is_computed_once_and_read_back_exactly(tmp_path: Path) -> None:
    assert cached(key_parts(), tmp_path, TABLE)[1]
    found, was_computed = cached(key_parts(), tmp_path, -TABLE)
    assert not was_computed
    np.testing.assert_array_equal(found, TABLE)
    assert found.dtype == np.float32
    (facts,) = tmp_path.glob("*.json")
    assert json.loads(facts.read_text())["of"]["split_hash"] == "abc"


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_defines_the_numbers_changes_the_key(tmp_path: Path, change: str) -> None:
    cached(key_parts(), tmp_path, TABLE)
    other = np.ones((4 if change == "count" else 3, 4), np.float32)
    found, was_computed = cached(key_parts(**CHANGES[change]), tmp_path, other)
    assert was_computed
    np.testing.assert_array_equal(found, other)


def test_weights_and_structure_change_the_key(tmp_path: Path) -> None:
    cached(key_parts(), tmp_path, TABLE)
    other_weights = small_model()
    with torch.no_grad():
        other_weights.bn1.weight[0] += 1e-3
    other_structure = small_model()
    other_structure.bn1.eps = 1e-3  # the state dict is the same
    assert features.weights_digest(other_structure) == features.weights_digest(small_model())
    assert cached(key_parts(other_weights), tmp_path, TABLE)[1]
    assert cached(key_parts(other_structure), tmp_path, TABLE)[1]
    assert not cached(key_parts(), tmp_path, TABLE)[1]


def _cut(table: Path, facts: Path) -> None:
    table.write_bytes(table.read_bytes()[:-5])


def _flip(table: Path, facts: Path) -> None:
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)


def _empty(table: Path, facts: Path) -> None:
    table.write_bytes(b"")


def _no_table(table: Path, facts: Path) -> None:
    table.unlink()


def _no_facts(table: Path, facts: Path) -> None:
    facts.unlink()


def _odd_facts(table: Path, facts: Path) -> None:
    facts.write_text("[]")


def _broken_facts(table: Path, facts: Path) -> None:
    facts.write_text('{"sha256": ')


@pytest.mark.parametrize(
    "damage", [_cut, _flip, _empty, _no_table, _no_facts, _odd_facts, _broken_facts]
)
def test_damaged_files_are_computed_again(tmp_path: Path, damage: Any) -> None:
    cached(key_parts(), tmp_path, TABLE)
    damage(*tmp_path.glob("*.npy"), *tmp_path.glob("*.json"))
    found, was_computed = cached(key_parts(), tmp_path, TABLE + 1)
    assert was_computed
    np.testing.assert_array_equal(found, TABLE + 1)
    assert not cached(key_parts(), tmp_path, TABLE)[1], "the damage is mended"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]


def test_a_failed_computation_stores_nothing(tmp_path: Path) -> None:
    def fail() -> np.ndarray:
        raise UserError("no")

    with pytest.raises(UserError):
        features.cached(key_parts(), tmp_path, fail)
    with pytest.raises(ValueError, match="2 rows computed for 3 images"):
        features.cached(key_parts(), tmp_path, lambda: TABLE[:2])
    assert not list(tmp_path.iterdir())


COUNTS = (7, 6, 1)


def test_two_processes_give_the_rows_of_one(tmp_path: Path) -> None:
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    done = subprocess.run(
        [*launch, __file__, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    ranks = [np.load(tmp_path / f"rank{r}.npz") for r in range(2)]
    model = small_model()
    for count in COUNTS:
        expected = run(features.extract, model, Pictures(count))
        expected_logits = run(features.logits, model, Pictures(count))
        for found in ranks:
            np.testing.assert_allclose(found[f"features{count}"], expected, atol=1e-6)
            np.testing.assert_allclose(found[f"logits{count}"], expected_logits, atol=1e-6)
    # Seven examples over two processes: four and three, none of them twice.
    assert [found["asked7"].tolist() for found in ranks] == [[0, 2, 4, 6], [1, 3, 5]]
    # One stored table: both compute, then both read; a table that one cannot see: both compute.
    assert [found["computed"].tolist() for found in ranks] == [[True, False, True]] * 2
    assert len(list((tmp_path / "shared").glob("*.npy"))) == 1


def _worker(out: Path) -> None:
    accelerator = devices.accelerator()
    assert accelerator.num_processes == devices.world_size() == 2
    rank = devices.rank()
    model = small_model()
    results: dict[str, Any] = {}
    for count in COUNTS:
        images = Pictures(count)
        results[f"features{count}"] = run(features.extract, model, images)
        results[f"asked{count}"] = images.asked
        results[f"logits{count}"] = run(features.logits, model, Pictures(count))
    table = results["features7"]
    parts = key_parts(model, images=7)
    computed = [cached(parts, out / "shared", table)[1]]
    accelerator.wait_for_everyone()
    computed.append(cached(parts, out / "shared", table)[1])
    if rank == 0:
        features._write_table(out / "own0" / f"{store.digest(parts)}.npy", table, parts)
    computed.append(cached(parts, out / f"own{rank}", table)[1])
    np.savez(out / f"rank{rank}.npz", computed=computed, **results)
    accelerator.end_training()


if __name__ == "__main__":
    _worker(Path(sys.argv[1]))

"""Packed files: sizes by hand, every bit back, and what is said of damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sparse_transfer import checkpoint, models, packed
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.store import digest
from tests.test_checkpoint import pruned, shrunk

SPECIAL = (0x00000000, 0x80000000, 0x7FC00001, 0xFF800123, 0x7F800000, 0x00000001, 0x3F800000)


def raw(words: np.ndarray) -> packed.Raw:
    return packed.Raw("F32", [len(words)], words.astype("<u4").view(np.uint8))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 70), st.floats(0, 1))
def test_every_bit_comes_back_whatever_the_value(seed, count, density):
    random = np.random.default_rng(seed)
    words = random.choice(SPECIAL[2:], count) * (random.random(count) < density)
    minus = random.random(count) < random.random()
    words = np.where((words == 0) & minus, SPECIAL[1], words)
    parts = packed.packed_tensor(raw(words))
    found = packed.unpacked_tensor(parts, 4 * count)
    assert found.data.tobytes() == words.astype("<u4").tobytes()
    assert sum(part.data.nbytes for part in parts.values()) <= 4 * count


def test_the_size_is_a_bit_per_weight_and_four_bytes_per_value():
    words = np.zeros(1000, np.uint32)
    words[::10] = 0x3F800000
    parts = packed.packed_tensor(raw(words))
    assert {name: part.data.nbytes for name, part in parts.items()} == {"kept": 125, "values": 400}
    words[1] = 0x80000000  # minus zero: now the 900 zeros have a sign
    parts = packed.packed_tensor(raw(words))
    assert parts["signs"].data.nbytes == 113 and parts["values"].data.nbytes == 400


def test_what_would_not_shrink_or_is_no_float32_stays_as_it_is():
    assert set(packed.packed_tensor(raw(np.full(64, 0x3F800000)))) == {"as_is"}
    integers = packed.Raw("I64", [4], np.zeros(32, np.uint8))
    assert packed.packed_tensor(integers)["as_is"] is integers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of which a kept weight is zero and another one is not a number."""
    loaded, masks = pruned(sparsity=0.9)
    name, mask = next(iter(masks.items()))
    weight = dict(loaded.model.named_parameters())[name].data
    kept = mask.nonzero()
    weight[tuple(kept[0])], weight[tuple(kept[1])] = 0.0, float("nan")
    weight[tuple(kept[2])] = -0.0
    checkpoint.save(tmp_path / "ckpt", loaded, loaded.model, masks, {"method": "gmp"})
    return tmp_path / "ckpt"


def test_all_files_of_the_folder_come_back_byte_for_byte(folder: Path, tmp_path: Path):
    file = tmp_path / "ckpt.packed"
    packed.write(folder, file)
    assert packed.is_packed(file) and not packed.is_packed(folder / "model.safetensors")
    packed.unpack(file, tmp_path / "back")
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == names
    for name in names:
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes(), name
    opened = checkpoint.open_checkpoint(file)
    own = checkpoint.open_checkpoint(folder)
    for name, tensor in own.model.state_dict().items():
        theirs = opened.model.state_dict()[name]
        assert theirs.dtype == tensor.dtype
        assert theirs.numpy().tobytes() == tensor.numpy().tobytes(), name
    assert opened.masks is not None and own.masks is not None
    assert opened.masks.digest() == own.masks.digest()
    assert opened.loaded.spec == own.loaded.spec and opened.facts == own.facts


def test_ends_of_lines_stay_as_they_are(folder: Path, tmp_path: Path):
    config = folder / "config.json"
    config.write_bytes(config.read_bytes().replace(b"\n", b"\r\n"))
    packed.pack(folder, tmp_path / "ckpt.packed")
    packed.unpack(tmp_path / "ckpt.packed", tmp_path / "back")
    assert b"\r\n" in config.read_bytes()
    assert (tmp_path / "back" / "config.json").read_bytes() == config.read_bytes()


def test_a_seventh_of_the_bytes_at_ninety_percent(tmp_path: Path):
    spec = ModelSpec(name="resnet20_cifar", weights="random", kwargs={"channels": [64, 64, 64]})
    loaded = models.build(spec, num_classes=10, image_size=32, seed=0)
    generator = torch.Generator().manual_seed(0)
    masks = Masks(
        {
            name: torch.rand(weight.shape, generator=generator) >= 0.9
            for name, weight in prunable(loaded.model, []).items()
        }
    )
    masks.apply(loaded.model.named_parameters())  # leaves -0 where weights were negative
    checkpoint.save(tmp_path / "ckpt", loaded, loaded.model, masks, {})
    packed.write(tmp_path / "ckpt", tmp_path / "ckpt.packed")
    dense = sum(path.stat().st_size for path in (tmp_path / "ckpt").glob("model.*"))
    assert 6.5 < dense / (tmp_path / "ckpt.packed").stat().st_size < 8


def test_a_dense_model_without_masks_comes_back(tmp_path: Path):
    loaded, _ = pruned(sparsity=0.0)
    checkpoint.save(tmp_path / "dense", loaded, loaded.model, None, {})
    packed.write(tmp_path / "dense", tmp_path / "dense.packed")
    assert checkpoint.load(tmp_path / "dense.packed").masks is None


def test_a_channel_pruned_checkpoint_comes_back(tmp_path: Path):
    loaded, plan = shrunk("resnet18_cifar")
    checkpoint.save(tmp_path / "small", loaded, loaded.model, None, {}, shrink=plan)
    packed.write(tmp_path / "small", tmp_path / "small.packed")
    assert checkpoint.load(tmp_path / "small.packed").loaded.shrink == plan


def test_damage_is_told_and_leaves_nothing(folder: Path, tmp_path: Path):
    file = tmp_path / "ckpt.packed"
    packed.write(folder, file)
    whole = file.read_bytes()

    def refused(content: bytes) -> str:
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            checkpoint.unpack(file, tmp_path / "back")
        assert not (tmp_path / "back").exists() and str(file) in error.value.what
        return str(error.value)

    assert "cut off or damaged" in refused(whole[: len(whole) // 2])
    assert "cut off or damaged" in refused(b"")
    assert "cut off or damaged" in refused(b"PK\x03\x04 something else" * 20)
    data = 8 + int.from_bytes(whole[:8], "little")
    at = (data + len(whole)) // 2
    flipped = whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :]
    assert "refused" in refused(flipped) or "do not fit" in refused(flipped)
    assert "digest of its metadata" in refused(whole.replace(b"bicubic", b"nearest"))
    assert "packed 1" in refused(whole.replace(b"transfer packed 1", b"transfer packed 9"))


def test_parts_that_do_not_fit_each_other_are_refused(folder: Path, tmp_path: Path):
    file = tmp_path / "ckpt.packed"
    packed.write(folder, file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    name = max((n for n in tensors if n.startswith("values/")), key=lambda n: len(tensors[n]))

    def written(changed: dict[str, torch.Tensor], said: dict[str, str]) -> None:
        said = {key: text for key, text in said.items() if key != "sha256"}
        save_file(changed, file, metadata=said | {"sha256": digest(said)})
        with pytest.raises(UserError, match="do not fit each other"):
            checkpoint.open_checkpoint(file)

    written(tensors | {name: tensors[name][:-1].clone()}, metadata)
    written({n: t for n, t in tensors.items() if n != name}, metadata)
    bits = name.replace("values/", "kept/")
    written(tensors | {bits: tensors[bits][:-1].clone()}, metadata)
    written(tensors, metadata | {"weights": "no JSON"})
    written(tensors, {key: text for key, text in metadata.items() if key != "files"})


def test_files_of_other_names_in_the_metadata_are_not_written(folder: Path, tmp_path: Path):
    file = tmp_path / "ckpt.packed"
    packed.write(folder, file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    files = json.loads(metadata["files"]) | {"../outside.json": "{}"}
    metadata |= {"files": json.dumps(files)}
    metadata["sha256"] = digest({k: text for k, text in metadata.items() if k != "sha256"})
    save_file(load_file(file), file, metadata=metadata)
    shutil.rmtree(folder)
    checkpoint.unpack(file, tmp_path / "back" / "ckpt")
    assert not (tmp_path / "back" / "outside.json").exists()
    assert len(list((tmp_path / "back" / "ckpt").iterdir())) == 4

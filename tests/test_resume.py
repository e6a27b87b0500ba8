"""The resume file: everything back as it was, and files that are not ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparse_transfer import resume
from sparse_transfer.errors import UserError
from sparse_transfer.resume import FILE, Position, ResumeFile, environment, facts_of

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 1e-3, 0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 0.1),
}


def training(name: str = "sgd", seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return model, OPTIMIZERS[name](model.parameters())


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.randn(8, 3, generator=generator)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_goes_on_as_if_it_had_never_stopped(tmp_path: Path, name: str):
    model, optimizer = training(name)
    steps(model, optimizer, 3, 1)
    ResumeFile(tmp_path, {"model": model}, optimizer).save(2, 17)
    other, fresh = training(name, seed=5)
    assert ResumeFile(tmp_path, {"model": other}, fresh).load() == Position(2, 17)
    steps(model, optimizer, 3, 2)
    steps(other, fresh, 3, 2)
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_facts_are_read_without_the_parts(tmp_path: Path):
    model, optimizer = training()
    assert facts_of(tmp_path) is None
    ResumeFile(tmp_path, {"model": model}, optimizer, {"engine": "sparse"}).save(1, 2)
    assert facts_of(tmp_path) == {"engine": "sparse"}
    ResumeFile(tmp_path, {"model": model}, optimizer).save(1, 2)
    assert facts_of(tmp_path) == {}
    save_file({"a": torch.zeros(1)}, tmp_path / FILE)  # as it was written before there were any
    assert facts_of(tmp_path) == {}
    (tmp_path / FILE).write_bytes(b"cut")
    with pytest.raises(UserError, match="Delete it"):
        facts_of(tmp_path)


def test_without_a_file_there_is_nothing_to_resume(tmp_path: Path):
    model, optimizer = training()
    assert ResumeFile(tmp_path, {"model": model}, optimizer).load() is None


def test_the_last_save_counts_and_leaves_one_file(tmp_path: Path):
    model, optimizer = training()
    file = ResumeFile(tmp_path, {"model": model}, optimizer)
    for epoch in (1, 2):
        file.save(epoch, 10 * epoch)
    assert file.load() == Position(2, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["resume.safetensors"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _foreign(path: Path) -> None:
    save_file({"model.0.weight": torch.zeros(1)}, path)


def _other_model(path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 4))
    ResumeFile(path.parent, {"model": model}, torch.optim.SGD(model.parameters(), 0.1)).save(1, 1)


@pytest.mark.parametrize("damage", [_cut, _empty, _foreign, _other_model])
def test_a_file_that_is_not_of_this_run_is_refused_with_its_name(tmp_path: Path, damage):
    model, optimizer = training()
    file = ResumeFile(tmp_path, {"model": model}, optimizer)
    file.save(1, 5)
    damage(file.path)
    with pytest.raises(UserError, match="resume.safetensors") as caught:
        file.load()
    assert "afresh" in caught.value.hint


def test_another_environment_is_warned_of(tmp_path: Path, monkeypatch):
    model, optimizer = training()
    began = environment()
    monkeypatch.setattr(resume, "environment", lambda: {**began, "kernels": "portable"})
    ResumeFile(tmp_path, {"model": model}, optimizer).save(1, 2)
    monkeypatch.setattr(resume, "environment", lambda: {**began, "kernels": "avx2"})
    file = ResumeFile(tmp_path, {"model": model}, optimizer)
    assert file.load() == Position(1, 2)
    [warning] = file.warnings
    assert "kernels avx2" in warning and "portable" in warning


def test_a_file_from_before_kernels_were_noted_is_usable(tmp_path: Path, monkeypatch):
    model, optimizer = training()
    old = {name: value for name, value in environment().items() if name != "kernels"}
    monkeypatch.setattr(resume, "environment", lambda: old)
    ResumeFile(tmp_path, {"model": model}, optimizer).save(1, 2)
    monkeypatch.undo()
    assert environment().keys() - old.keys() == {"kernels"}
    file = ResumeFile(tmp_path, {"model": model}, optimizer)
    assert file.load() == Position(1, 2)
    assert file.warnings == ()

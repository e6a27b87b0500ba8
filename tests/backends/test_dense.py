"""Eager or compiled: what is tried, what is chosen, what the note says."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from sparse_transfer.backends import dense
from sparse_transfer.backends.dense import Backend

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def test_it_folds_batch_norm_and_runs_channels_last(net):
    seen = []
    run = Backend().prepare(net, IMAGES)
    assert run.note == "1 of 1 batch norms folded; eager"
    net[0].register_forward_hook(lambda *_: seen.append("the original ran"))
    output = run(IMAGES)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert output.is_inference() and not seen


def test_a_quick_model_is_not_compiled(net, monkeypatch):
    monkeypatch.setattr(dense, "WORTH", 10.0)
    monkeypatch.setattr(dense, "compile_frozen", lambda model: pytest.fail("compiled"))
    assert Backend().prepare(net, IMAGES).note.endswith("; eager")


def compiled_by(monkeypatch, change) -> None:
    """Have every model "compiled" into itself followed by a change."""
    monkeypatch.setattr(dense, "WORTH", 0.0)
    monkeypatch.setattr(dense, "compile_frozen", lambda model: lambda x: change(model(x)))


def slowed(output: Tensor) -> Tensor:
    time.sleep(0.02)
    return output


def test_the_faster_one_is_used_and_both_times_are_said(net, monkeypatch):
    compiled_by(monkeypatch, slowed)
    run = Backend().prepare(net, IMAGES)
    chosen, times = run.note.removeprefix("1 of 1 batch norms folded; ").split(" ", 1)
    assert chosen == "eager" and times.startswith("(eager ") and "compiled 2" in times
    compiled_by(monkeypatch, lambda output: output)
    monkeypatch.setattr(
        dense.latency, "medians", lambda runs, example, **_: {"eager": 2.0, "compiled": 1.0}
    )
    run = Backend().prepare(net, IMAGES)
    assert run.note.endswith("; compiled (eager 2e+03 ms, compiled 1e+03 ms)")
    with torch.no_grad():
        torch.testing.assert_close(run(IMAGES), net(IMAGES))


def test_where_nothing_can_be_compiled_eager_runs_and_the_note_says_why(net, monkeypatch):
    def fail(output: Tensor) -> Tensor:
        raise RuntimeError("\n no C++ compiler here \n and more")

    compiled_by(monkeypatch, fail)
    run = Backend().prepare(net, IMAGES)
    assert run.note.endswith("; eager, as torch.compile failed: no C++ compiler here")
    assert run(IMAGES).shape == (2, 4, 6, 6)


def test_a_compiled_model_that_computes_something_else_is_not_used(net, monkeypatch):
    compiled_by(monkeypatch, lambda output: output + 1)
    run = Backend().prepare(net, IMAGES)
    assert "eager, as torch.compile failed: Its output" in run.note
    with torch.no_grad():
        torch.testing.assert_close(run(IMAGES), net(IMAGES))


@pytest.mark.slow
def test_two_models_of_one_class_are_compiled_each_for_itself(net):
    """For real: weights are frozen into the code, so nothing may be shared."""
    others = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval() for _ in "ab"]
    compiled = [dense.compile_frozen(other) for other in others]
    with torch.inference_mode():
        for _ in range(2):
            for run, other in zip(compiled, others, strict=True):
                torch.testing.assert_close(run(IMAGES), other(IMAGES), rtol=1e-5, atol=1e-5)

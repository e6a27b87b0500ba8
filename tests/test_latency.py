from __future__ import annotations

import time
from math import comb

import numpy as np
import pytest
import torch
from torch import Tensor

from sparse_transfer import latency
from sparse_transfer.errors import UserError


class FakeClock:
    """A clock that only moves when a callable says so; also records who ran when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def takes(self, name: str, seconds, offset: float = 0.0):
        def run(images: Tensor) -> Tensor:
            self.calls.append(name)
            self.now += seconds(len(self.calls)) if callable(seconds) else seconds
            return images + offset

        return run


IMAGE = torch.ones(1, 3, 2, 2)


def test_rounds_are_interleaved_and_rotate(monkeypatch):
    clock = FakeClock(monkeypatch)
    timed = {name: clock.takes(name, 1.0) for name in "abc"}
    latency.measure(timed, IMAGE, reference="a", repeats=3, warmup=1)
    after_checks = "".join(clock.calls[4:])  # the reference's own output, then one check each
    assert after_checks == "abc" + "bca" + "cab" + "abc"


def test_quantiles_and_paired_speedup_by_hand(monkeypatch):
    clock = FakeClock(monkeypatch)
    drift = iter(np.repeat([1, 2, 4, 8, 16, 32, 64], 2))  # the machine slows down by the round
    speed = {"seconds": lambda _: 0.0}
    timed = {
        "dense": clock.takes("dense", lambda n: speed["seconds"](n)),
        "fast": clock.takes("fast", lambda n: speed["seconds"](n) / 4),
    }
    speed["seconds"] = lambda n: float(next(drift)) if n > 3 else 0.0
    found = latency.measure(timed, IMAGE, reference="dense", repeats=7, warmup=0)
    fast = found["fast"].speedup
    assert fast.median == fast.low == fast.high == 4
    assert found["dense"].speedup.median == 1
    assert found["dense"].median == 8 and found["fast"].median == 2
    assert found["dense"].seconds.tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert found["dense"].p10 == pytest.approx(1.6) and found["dense"].p90 == pytest.approx(44.8)
    assert found["dense"].p99 == pytest.approx(62.08)


def test_the_interval_is_the_widest_that_is_needed():
    values = np.arange(1.0, 31.0)
    low, high = latency.median_interval(values)
    assert (low, high) == (10, 21)  # the table value for n = 30 at 95 %
    inside = sum(comb(30, k) for k in range(10, 21)) / 2**30
    assert inside >= 0.95 and inside - 2 * comb(30, 10) / 2**30 < 0.95
    assert latency.median_interval(values[::-1]) == (low, high)
    assert latency.median_interval(values[:6]) == (1, 6)
    assert latency.median_interval(values[:5]) is None


def test_the_interval_covers_the_median():
    generator = np.random.default_rng(0)
    samples = generator.lognormal(size=(2000, 15))  # median 1
    hits = [low <= 1 <= high for low, high in map(latency.median_interval, samples)]
    assert 0.95 <= np.mean(hits) <= 0.98  # exact: 0.965


def test_few_rounds_have_no_interval():
    timed = {"a": torch.neg}
    found = latency.measure(timed, IMAGE, reference="a", repeats=3, warmup=0)
    ratio = found["a"].speedup
    assert ratio.low is None and ratio.high is None and found["a"].median > 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + 1e-3,
        lambda x: x * float("nan"),
        lambda x: x[:, :1],
    ],
)
def test_a_callable_that_disagrees_is_not_timed(wrong):
    timed = {"dense": torch.clone, "broken": wrong}
    with pytest.raises(UserError, match="backend broken does not compute"):
        latency.measure(timed, IMAGE, reference="dense", repeats=3)


def test_different_weights_are_held_to_their_own_output():
    timed = {"dense": torch.clone, "sparse": torch.neg}
    found = latency.measure(timed, IMAGE, reference="dense", repeats=3, expected={"sparse": -IMAGE})
    assert found["sparse"].relative_error == 0
    with pytest.raises(UserError, match="backend sparse"):
        latency.measure(timed, IMAGE, reference="dense", repeats=3)


def test_the_relative_error_is_reported():
    found = latency.measure(
        {"dense": torch.clone, "near": lambda x: x * (1 + 5e-5)},
        IMAGE,
        reference="dense",
        repeats=3,
    )
    assert found["near"].relative_error == pytest.approx(5e-5, rel=0.01)


def test_a_tolerance_of_its_own():
    timed = {"dense": torch.clone, "rounded": lambda x: x * 1.005}
    with pytest.raises(UserError, match="rounded does not compute"):
        latency.measure(timed, IMAGE, reference="dense", repeats=3)
    found = latency.measure(
        timed, IMAGE, reference="dense", repeats=3, tolerances={"rounded": 0.01}
    )
    assert found["rounded"].relative_error == pytest.approx(5e-3, rel=0.01)
    with pytest.raises(UserError, match="5e-04 is"):
        latency.measure(timed, IMAGE, reference="dense", repeats=3, tolerances={"rounded": 5e-4})


@pytest.mark.parametrize("wrong", [lambda x: x * float("inf"), lambda x: x[:, :1]])
def test_even_an_infinite_tolerance_asks_for_finite_outputs_of_the_shape(wrong):
    timed = {"dense": torch.clone, "integers": wrong}
    with pytest.raises(UserError, match="integers does not compute"):
        latency.measure(
            timed, IMAGE, reference="dense", repeats=3, tolerances={"integers": float("inf")}
        )


def test_calls_after_idling_sleep_before_each_one(monkeypatch):
    clock = FakeClock(monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.calls.append(f"sleep {seconds:g}"))
    timed = {"a": clock.takes("a", 1.0), "b": clock.takes("b", 2.0)}
    found = latency.measure(timed, IMAGE, reference="a", repeats=3, warmup=0, idle=0.03)
    assert clock.calls[3:7] == ["sleep 0.03", "a", "sleep 0.03", "b"]
    assert found["b"].median == 2  # the pause is not in it


def test_what_is_chosen_by_is_interleaved_and_without_the_first_round(monkeypatch):
    clock = FakeClock(monkeypatch)
    timed = {
        "a": clock.takes("a", lambda n: 9.0 if n == 1 else 1.0),
        "b": clock.takes("b", 2.0),
    }
    assert latency.medians(timed, IMAGE, repeats=3, budget=100) == {"a": 1, "b": 2}
    assert "".join(clock.calls) == "abababab"
    clock.calls.clear()
    latency.medians(timed, IMAGE, repeats=50, budget=0)
    assert "".join(clock.calls) == "abababab"  # three rounds that count, whatever they take


def test_an_unknown_reference_is_an_error():
    with pytest.raises(ValueError, match="'b' is not among"):
        latency.measure({"a": torch.neg}, IMAGE, reference="b")

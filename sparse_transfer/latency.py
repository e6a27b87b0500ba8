"""How latency is measured: agreement first, then interleaved rounds, medians and paired ratios.

Every round calls everything once, in an order that rotates from round to round, so that a slow
moment of the machine (frequency, other users) falls on all alike, and nothing is always first. The
speedup is the median over rounds of reference time / own time in the *same* round; its interval is
made of order statistics of those ratios, which assumes nothing about their distribution. Rounds
within one process do not see what differs between processes or machines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sparse_transfer.errors import UserError

TOLERANCE = 1e-4  # relative error of float32 outputs that still counts as the same function
# The same of whole networks in bfloat16, which rounds every layer's output to 8 bits: ResNets are
# off by 0.3 to 0.6 %, a MobileNetV2 by 2.5 %.
BF16_TOLERANCE = 5e-2
CONFIDENCE = 0.95
CONSTANT = 1e-4  # dependence on the image below which a network has collapsed


@dataclass(frozen=True)
class Prepared:
    """A model made ready to be timed: call it with (n, 3, h, w) images, get (n, classes).

    Attributes:
        note: what the backend did or could not do, in words for the report.
    """

    run: Callable[[Tensor], Tensor]
    note: str = ""

    def __call__(self, images: Tensor) -> Tensor:
        return self.run(images)


@dataclass(frozen=True)
class Speedup:
    """A ratio of times in the same rounds.

    Attributes:
        median: over rounds, of reference seconds / own seconds.
        low, high: 95 % interval of that median; None below 6 rounds, where none exists.
    """

    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Latency:
    """The timed calls of one callable.

    Attributes:
        seconds: (repeats,) float64, one call each, in order of rounds.
        median, p10, p90, p99: of `seconds`; p99 is an interpolation below 100 repeats.
        speedup: over the reference, see `Speedup`.
        relative_error: largest deviation from the expected output, over its largest entry.
    """

    seconds: np.ndarray
    median: float
    p10: float
    p90: float
    p99: float
    speedup: Speedup
    relative_error: float


def measure(
    callables: Mapping[str, Callable[[Tensor], Tensor]],
    example: Tensor,
    *,
    reference: str,
    repeats: int = 30,
    warmup: int = 3,
    expected: Mapping[str, Tensor] | None = None,
    tolerances: Mapping[str, float] | None = None,
    idle: float = 0.0,
) -> dict[str, Latency]:
    """Time callables against each other on one input.

    Args:
        callables: what to time, by the name that is reported.
        example: (n, 3, h, w) float, the input of every call.
        reference: the callable whose time is the numerator of every speedup.
        repeats: timed rounds.
        warmup: untimed rounds before them.
        expected: the right output of each callable, (n, classes); the reference's output where a
            name is left out. Give it where different weights are timed against each other.
        tolerances: the relative error that each callable may have; `TOLERANCE` where a name is
            left out. Infinity: any finite output of the right shape, for what rounds to integers.
        idle: seconds to sleep before every call: how long the first call after a pause takes.

    Raises:
        UserError: an output differs from what is expected by more than its tolerance.
    """
    if reference not in callables:
        raise ValueError(f"reference '{reference}' is not among {list(callables)}")
    own = callables[reference](example)
    targets = {name: (expected or {}).get(name, own) for name in callables}
    allowed = {name: (tolerances or {}).get(name, TOLERANCE) for name in callables}
    errors = {
        name: agreement(name, run(example), targets[name], allowed[name])
        for name, run in callables.items()
    }
    names = list(callables)
    seconds = {name: np.empty(repeats) for name in names}
    for turn in range(warmup + repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            if idle:
                time.sleep(idle)
            elapsed = _time(callables[name], example)
            if turn >= warmup:
                seconds[name][turn - warmup] = elapsed
    return {name: _summary(seconds[name], seconds[reference], errors[name]) for name in names}


def medians(
    callables: Mapping[str, Callable[[Tensor], Tensor]],
    example: Tensor,
    *,
    repeats: int = 7,
    budget: float = 4.0,
) -> dict[str, float]:
    """Median seconds of a few interleaved calls, to choose the fastest by.

    Args:
        repeats: rounds after one that is not counted; at least three, whatever they take.
        budget: seconds after which no further round begins.
    """
    seconds: dict[str, list[float]] = {name: [] for name in callables}
    began = time.perf_counter()
    for turn in range(1 + repeats):
        if turn > 3 and time.perf_counter() - began > budget:
            break
        for name, run in callables.items():
            seconds[name].append(_time(run, example))
    return {name: float(np.median(taken[1:])) for name, taken in seconds.items()}


def speedup(reference: Latency, own: Latency) -> Speedup:
    """How much faster `own` is than a reference that was timed in the same rounds."""
    return _speedup(reference.seconds, own.seconds)


def agreement(name: str, output: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> float:
    """The largest absolute difference over the largest absolute expected value.

    Raises:
        UserError: it is above the tolerance, not a number, or the shapes differ.
    """
    error = relative_error(output, expected)
    if not (math.isfinite(error) and error <= tolerance):
        raise UserError(
            f"The backend {name} does not compute the model's function.",
            f"Its output {tuple(output.shape)} differs from the reference "
            f"{tuple(expected.shape)} by {error:.1e} of its largest value; {tolerance:.0e} is "
            "allowed.",
            "Its time would mean nothing: leave it out of `backends`.",
        )
    return error


def relative_error(output: Tensor, expected: Tensor) -> float:
    """The largest absolute difference over the largest absolute expected value, in float64.

    Infinite for outputs of another shape, NaN where an output is.
    """
    if output.shape != expected.shape:
        return math.inf
    output, expected = output.detach().cpu().double(), expected.detach().cpu().double()
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float((output - expected).abs().max() / scale)


def dependence(model: nn.Module, pixels: int) -> float:
    """How far outputs of different images are from their mean, relative to the outputs.

    About 0 where a network has collapsed under its mask: it computes a constant, its layers can
    be dropped, and its time says nothing about zeros.
    """
    generator = torch.Generator().manual_seed(2)
    like = next(model.parameters(), torch.empty(0))  # on the CPU if it has none
    images = torch.randn(4, 3, pixels, pixels, generator=generator).to(like.device)
    with torch.inference_mode():
        outputs = model(images)
    least = torch.finfo(outputs.dtype).tiny
    return float((outputs - outputs.mean(0)).norm() / outputs.norm().clamp_min(least))


def median_interval(
    values: np.ndarray, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Order statistics that enclose the median with at least the given probability.

    The k-th smallest and k-th largest value, k as large as P(Binomial(n, 1/2) < k) allows on both
    sides; None where even the extremes do not reach the confidence (n < 6 at 95 %).
    """
    n = len(values)
    tail, k = 0.0, 0
    while (tail := tail + math.comb(n, k) / 2**n) <= (1 - confidence) / 2:
        k += 1
    if k == 0:
        return None
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[n - k])


def _time(run: Callable[[Tensor], Tensor], example: Tensor) -> float:
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    start = time.perf_counter()
    run(example)
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    return time.perf_counter() - start


def _summary(seconds: np.ndarray, reference: np.ndarray, error: float) -> Latency:
    p10, median, p90, p99 = (float(q) for q in np.quantile(seconds, [0.1, 0.5, 0.9, 0.99]))
    return Latency(seconds, median, p10, p90, p99, _speedup(reference, seconds), error)


def _speedup(reference: np.ndarray, seconds: np.ndarray) -> Speedup:
    ratios = reference / seconds
    low, high = median_interval(ratios) or (None, None)
    return Speedup(float(np.median(ratios)), low, high)

"""Ways to execute a model for a latency measurement; one file per backend."""

from __future__ import annotations


def uses_zeros(value: object) -> bool:
    """Whether a backend's own words (or its yes or no) say that it skips zeros."""
    if isinstance(value, str):
        return bool(value) and not value.lower().startswith(("does not", "no"))
    return value is True


def tolerance(backend: object) -> float:
    """The relative error of outputs that a backend states as its own, else that of float32.

    Infinity is what a backend says that does not compute the model's function (8-bit integers):
    its accuracy stands beside its time.
    """
    from sparse_transfer.latency import TOLERANCE

    return getattr(backend, "tolerance", TOLERANCE)


def needs_images(backend: object) -> bool:
    """Whether `prepare` takes training images as its third argument, to calibrate on."""
    return getattr(backend, "needs_images", False)


def device(backend: object) -> str:
    """The kind of device that a backend wants model and images on: its own word, else the CPU."""
    return getattr(backend, "device", "cpu")

"""Ways to execute a model for a latency measurement; one file per backend."""

from __future__ import annotations


def uses_zeros(value: object) -> bool:
    """Whether a backend's own words (or its yes or no) say that it skips zeros."""
    if isinstance(value, str):
        return bool(value) and not value.lower().startswith(("does not", "no"))
    return value is True

"""The kernels are compiled at install; a test of them is skipped where they could not be."""

from __future__ import annotations

import pytest

from sparse_transfer.sparse import library


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what asks for kernels that are not there."""
    reason = library.available()
    if reason is not None:
        for item in items:
            if "sparse" in item.path.parts[-2] and item.get_closest_marker("kernels"):
                item.add_marker(pytest.mark.skip(reason=reason))

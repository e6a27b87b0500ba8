"""Fixtures for every test: the folder of real data, and quiet surroundings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images and weights, for tests marked `real`.

    SPARSE_TRANSFER_SHARED, else `../shared` beside the checkout. Without it the test is skipped; on
    a CI machine it fails instead, unless SPARSE_TRANSFER_ALLOW_NO_REAL is set.
    """
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SPARSE_TRANSFER_SHARED") or beside)
    if (folder / "data" / "datasets").is_dir():
        return folder
    reason = f"no real data in {folder}; set SPARSE_TRANSFER_SHARED"
    if os.environ.get("CI") and not os.environ.get("SPARSE_TRANSFER_ALLOW_NO_REAL"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the network; one that tests downloading says so itself."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("SPARSE_TRANSFER_DATA", raising=False)

"""One Accelerator per process, our own autocast, and what the environment says of processes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator

from sparse_transfer import devices
from sparse_transfer.errors import UserError


def test_there_is_one_accelerator_in_full_precision() -> None:
    made = devices.accelerator()
    assert isinstance(made, Accelerator)
    assert devices.accelerator() is made
    assert made.mixed_precision == "no"
    assert (made.num_processes, made.process_index) == (1, 0)


def test_the_users_accelerate_settings_do_not_change_the_precision() -> None:
    code = (
        "from sparse_transfer.devices import accelerator as a;"
        "print(a().mixed_precision, a().device.type, a().num_processes)"
    )
    environment = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "true"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=_environment(environment),
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["no", "cpu", "1"]


def test_counting_processes_does_not_import_torch() -> None:
    code = (
        "import sys; from sparse_transfer import devices;"
        "print(devices.rank(), devices.world_size(), 'torch' in sys.modules)"
    )
    for environment, expected in (
        ({}, ["0", "1", "False"]),
        ({"RANK": "2", "WORLD_SIZE": "4"}, ["2", "4", "False"]),
    ):
        found = subprocess.run(
            [sys.executable, "-c", code],
            env=_environment(environment),
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.split() == expected


@pytest.mark.parametrize(
    ("name", "value"), [("WORLD_SIZE", "two"), ("WORLD_SIZE", "0"), ("RANK", "-1"), ("RANK", "1")]
)
def test_an_impossible_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="RANK|WORLD_SIZE"):
        devices.rank()


def test_autocast_is_bf16_only_where_asked() -> None:
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with devices.autocast("bf16"):
        assert layer(x).dtype is torch.bfloat16
        with devices.autocast("fp32"):
            assert layer(x).dtype is torch.float32
    assert layer(x).dtype is torch.float32


def test_one_process_agrees_with_itself() -> None:
    assert devices.all_agree(True)
    assert not devices.all_agree(False)


def _environment(extra: dict[str, str]) -> dict[str, str]:
    import os

    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return kept | extra

"""The search for the learning rate: what is scored, what wins, what diverges."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sparse_transfer import config, data, plan
from sparse_transfer.devices import accelerator
from sparse_transfer.errors import TrainingDiverged
from sparse_transfer.stages import full, tune
from sparse_transfer.stages.context import Context
from sparse_transfer.store import write_json

GRID = (0.1, 0.01, 1.0)


def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hits: dict[float, Any]) -> Any:
    """The result of a search in which each learning rate gets so many of ten images right."""
    scored = []

    def fine_tune(folder, task, train, part, spec, lr, out, context):  # noqa: ANN001, ANN202
        scored.append((train.name, part.name, len(part), out))
        if isinstance(hits[lr], Exception):
            raise hits[lr]
        logits = np.zeros((10, 2))
        logits[: hits[lr] if hits[lr] >= 0 else 10, 0] = 1 if hits[lr] >= 0 else np.nan
        logits[max(hits[lr], 0) :, 1] = 1
        engine = {"name": "dense", "reason": "the model has no zeros that are held"}
        training = {"engine": engine}
        return {"logits": logits, "labels": np.zeros(10, int), "training": training}

    monkeypatch.setattr(tune, "fine_tune", fine_tune)
    profile = config.FullProfile(steps=1, lr_grid=GRID, validation=0.2)
    task = config.TaskRef(name="digits", train_images=100)
    spec = plan.FullSpec(task, config.Preprocess(), profile, 0)
    run = SimpleNamespace(spec=spec)
    context = Context(accelerator(), None, tmp_path / "cache")
    result = tune.run(run, {"checkpoint": tmp_path}, tmp_path, context)  # type: ignore[arg-type]
    assert scored == [("train", "validation", 20, None)] * 3, "the test part is not looked at"
    return result


def test_the_best_on_validation_wins(tmp_path: Path, monkeypatch):
    result = search(tmp_path, monkeypatch, {0.01: 3, 0.1: 8, 1.0: 5})
    assert result["lr"] == 0.1
    assert result["validation_top1"] == {"0.01": 0.3, "0.1": 0.8, "1": 0.5}
    assert result["validation_images"] == 20
    assert result["engine"]["name"] == "dense"


def test_a_tie_goes_to_the_smaller_one(tmp_path: Path, monkeypatch):
    assert search(tmp_path, monkeypatch, {0.01: 5, 0.1: 5, 1.0: 4})["lr"] == 0.01


def test_one_that_diverges_scores_nothing(tmp_path: Path, monkeypatch):
    diverged = TrainingDiverged("no")
    result = search(tmp_path, monkeypatch, {0.01: 1, 0.1: diverged, 1.0: diverged})
    assert result["lr"] == 0.01 and result["validation_top1"]["1"] == 0


def test_outputs_that_are_no_numbers_score_nothing(tmp_path: Path, monkeypatch):
    """NaN everywhere has class 0 as its argmax, which is the label of every image here."""
    result = search(tmp_path, monkeypatch, {0.01: 1, 0.1: 2, 1.0: -1})
    assert result["lr"] == 0.1 and result["validation_top1"]["1"] == 0


@pytest.mark.parametrize(
    ("card_lr", "is_tuned", "expected"), [(False, False, 0.5), (True, False, 0.07), (True, True, 9)]
)
def test_the_learning_rate_of_full_fine_tuning(tmp_path: Path, card_lr, is_tuned, expected):
    """A tuned one goes before the card's, the card's before the profile's."""
    task = data.open_task(config.TaskRef(name="digits"), data_root=None, cache=tmp_path)
    card = task.card.model_copy(update={"paper": SimpleNamespace(full_lr=0.07)})
    profile = config.FullProfile(steps=1, card_lr=card_lr, optimizer=config.Optimizer(lr=0.5))
    write_json(tmp_path / "tune" / "result.json", {"lr": 9.0})
    parents = {"tune": tmp_path / "tune"} if is_tuned else {}
    found = full._learning_rate(profile, SimpleNamespace(card=card), parents)  # type: ignore[arg-type]
    assert found == expected

"""Images of stored predictions are found by id, in data that is here, and never fetched."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sparse_transfer import data
from sparse_transfer.config import TaskRef
from sparse_transfer.errors import UserError
from sparse_transfer.originals import Originals


@pytest.fixture
def card(tmp_path):
    for part in ("train", "test"):
        for name, value in (("cats", 50), ("dogs", 200)):
            folder = tmp_path / "pets" / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = np.full((10, 12, 3), value + number, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    path = tmp_path / "my-pets.yaml"
    path.write_text("name: my-pets\nfolder: pets\nmetric: top1\n")
    return path


def test_images_come_back_by_id_with_the_names_of_their_classes(card, tmp_path):
    task = data.open_task(TaskRef(name=str(card)), data_root=None, cache=tmp_path / "cache")
    ids = [str(name) for name in task.test.ids]
    found = Originals({"my-pets": str(card)}, None, tmp_path / "cache")("my-pets", ids)
    assert found.classes == ("cats", "dogs") and set(found.images) == set(ids)
    for name, label in zip(ids, task.test.labels, strict=True):
        assert np.asarray(found.images[name])[0, 0, 0] // 100 == (0, 2)[label]


def test_ids_that_are_unknown_or_damaged_since_are_absent(card, tmp_path):
    lookup = Originals({"my-pets": str(card)}, None, tmp_path / "cache")
    task = data.open_task(TaskRef(name=str(card)), data_root=None, cache=tmp_path / "cache")
    ids = [str(name) for name in task.test.ids]
    (tmp_path / "pets/test/cats/0.png").write_bytes(b"cut")
    found = lookup("my-pets", [*ids, "never/there.png"])
    assert len(found.images) == len(ids) - 1


def test_data_that_is_not_here_is_said_and_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "open_task", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UserError, match="data of task `dtd` is not here"):
        Originals({}, tmp_path / "empty", tmp_path / "cache")("dtd", ["a"])

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparse_transfer import checkpoint, inspection, models, plugins
from sparse_transfer.config import ModelSpec
from sparse_transfer.errors import UserError
from sparse_transfer.latency import Prepared
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.report import inspection_tables
from tests.imports import foreign_files as foreign


def narrow(classes: int = 5) -> models.LoadedModel:
    spec = ModelSpec(name="resnet18", weights="random", kwargs=foreign.NARROW)
    return models.build(spec, num_classes=classes, image_size=32, seed=0)


def test_the_rows_add_up_to_the_network():
    loaded = narrow()
    masks = Masks({n: m for n, m in foreign.prune(loaded.model, 0.75, skip=("fc",)).items()})
    found = inspection.inspect_model(loaded, masks, image_size=32, batch_size=2)
    rows = {row.layer: row for row in found.rows}
    convolutions = [m for m in loaded.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(rows) == len(convolutions) and list(rows)[-1] == "fc"
    # conv1 by hand: 64 filters of 3×7×7 on 16×16 positions
    assert rows["conv1"].macs == 64 * 3 * 7 * 7 * 16 * 16 and rows["conv1"].inputs == 3
    assert rows["conv1"].shape == (64, 3, 7, 7) and rows["conv1"].density == pytest.approx(0.25)
    assert sum(row.macs_share for row in found.rows) == pytest.approx(1.0)
    totals = found.totals()
    assert totals["weights"] == sum(m.weight.numel() for m in convolutions)
    assert totals["macs_zeros_skipped"] < 0.3 * totals["macs"]
    assert all(row.seconds is not None and row.seconds > 0 for row in found.rows)
    assert totals["layer_seconds"] == pytest.approx(sum(row.seconds for row in found.rows))
    assert not loaded.model.conv1._forward_pre_hooks
    json.dumps(found.to_json())


def test_a_backend_that_uses_zeros_gets_a_column_and_the_others_do_not(monkeypatch, capsys):
    class Sparse:
        name, uses_zeros = "skipping", "skips zeros"

        def available(self) -> str | None:
            return None

        def prepare(self, model: nn.Module, example: torch.Tensor) -> Prepared:
            return Prepared(model)

    load = plugins.load
    monkeypatch.setattr(plugins, "names", lambda kind: ["dense"])
    assert inspection.sparse_backends() == []
    monkeypatch.setattr(plugins, "names", lambda kind: ["dense", "skipping"])
    monkeypatch.setattr(
        plugins, "load", lambda kind, n: Sparse if n == "skipping" else load(kind, n)
    )
    found = inspection.inspect_model(narrow(), None, image_size=32)
    *convolutions, head = found.rows
    assert all(set(row.sparse_seconds) == {"skipping"} for row in convolutions)
    assert head.sparse_seconds == {}
    inspection_tables.print_inspection(found.to_json()["rows"], timed=True)
    printed = capsys.readouterr().out
    assert "ms skipping" in printed and "layer4.1.conv2" in printed


def test_a_checkpoint_is_opened_with_its_mask_and_a_name_without(tmp_path):
    loaded = narrow()
    masks = Masks(foreign.prune(loaded.model, 0.5))
    checkpoint.save(tmp_path / "ckpt", loaded, loaded.model, masks, {})
    for name in (str(tmp_path / "ckpt"), f"local-dir:{tmp_path / 'ckpt'}"):
        _, opened = inspection.open_any(name)
        assert opened is not None and opened.digest() == masks.digest()
    with pytest.raises(UserError, match="has its own weights"):
        inspection.open_any(str(tmp_path / "ckpt"), "random")
    named, none = inspection.open_any("resnet18", "random", foreign.NARROW)
    assert none is None and models.model_classes(named.model) == 1000
    with pytest.raises(UserError, match="no model named 'resnet81'"):
        inspection.open_any("resnet81")


def test_images_of_an_impossible_size_are_refused():
    spec = ModelSpec(name="torchvision:vit_b_32", weights="random", kwargs={"num_layers": 1})
    with pytest.raises(UserError):
        models.build(spec, num_classes=5, image_size=64, seed=0)
    spec = ModelSpec(name="torchvision:squeezenet1_1", weights="random")
    loaded = models.build(spec, num_classes=5, image_size=64, seed=0)
    for size in (8, 0, -5):  # 0 is no way to say the model's own size
        with pytest.raises(UserError, match=f"images of {size} pixels"):
            inspection.inspect_model(loaded, None, image_size=size)

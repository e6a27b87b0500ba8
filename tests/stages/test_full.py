"""Full fine-tuning of real checkpoints: the new head is dense, whatever the old one was."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from sparse_transfer import checkpoint, config, data, models, plan
from sparse_transfer.devices import accelerator
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.stages import full
from sparse_transfer.stages.context import Context

SIZE = config.Preprocess(image_size=16, crop="none")


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A checkpoint of ten classes whose classifier was pruned too."""
    spec = config.ModelSpec(name="test_resnet", weights="random")
    loaded = models.build(spec, num_classes=10, image_size=16, seed=0)
    named = dict(loaded.model.named_parameters())
    masks = Masks({n: torch.rand_like(p) > 0.6 for n, p in named.items() if p.ndim in (2, 4)})
    masks.apply(named.items())
    assert "fc.weight" in masks
    facts = {"summary": {"measured_sparsity": masks.sparsity(), "digest": masks.digest()}}
    checkpoint.save(tmp_path / "checkpoint", loaded, loaded.model, masks, facts)
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(("name", "classes"), [("textures", 10), ("shapes", 15)])
@pytest.mark.parametrize("bn", ["train", "frozen", "recalibrated"])
def test_a_new_head_is_dense_and_the_backbone_keeps_its_zeros(
    tmp_path: Path, pruned: Path, monkeypatch, name: str, classes: int, bn: str
):
    profile = config.FullProfile(steps=3, batch_size=16, bn=bn)  # type: ignore[arg-type]
    ref = config.TaskRef(name=name, train_images=60)
    task = data.open_task(ref, data_root=None, cache=tmp_path / "cache")
    assert len(task.classes) == classes
    seen = []
    original = models.new_head
    monkeypatch.setattr(
        models, "new_head", lambda model, *rest: (seen.append(model), original(model, *rest))
    )
    spec = plan.FullSpec(ref, SIZE, profile, 0)
    context = Context(accelerator(), None, tmp_path / "cache")
    result = full.fine_tune(pruned, task, task.train, task.test, spec, 0.01, None, context)
    assert result["logits"].shape == (len(task.test), classes)
    model = seen[-1]
    assert torch.count_nonzero(model.fc.weight) == model.fc.weight.numel()
    masks = checkpoint.open_checkpoint(pruned).masks
    assert masks is not None
    before = timm.create_model("local-dir:" + str(pruned), pretrained=True).state_dict()
    for layer, mask in masks.items():
        if layer != "fc.weight":
            weight = model.get_parameter(layer)
            assert torch.count_nonzero(weight[~mask]) == 0
            assert not torch.equal(weight, before[layer])


def test_the_same_seed_gives_the_same_head_to_every_checkpoint(pruned: Path):
    heads = []
    for _ in range(2):
        model = checkpoint.open_checkpoint(pruned).model
        models.new_head(model, 7, 5)
        heads.append(model.get_parameter("fc.weight"))
    assert torch.equal(*heads)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_temperature_comes_from_images_that_the_task_holds_out(
    tmp_path: Path, half_pruned: Path, share: float
):
    ref = config.TaskRef(name="textures", train_images=80, validation=share)
    profile = config.FullProfile(steps=3, batch_size=16)
    spec = plan.FullSpec(ref, SIZE, profile, 0, calibrate=True)
    run = plan.Run("full", plan.Subject("net", "gmp", 0.5, 0), spec, {})
    context = Context(accelerator(), None, tmp_path / "cache")
    row = full.run(run, {"checkpoint": half_pruned}, tmp_path, context)["rows"][0]
    if share:
        assert row["temperature_images"] == 20
        task = data.open_task(ref, data_root=None, cache=tmp_path / "cache")
        assert not set(task.validation.ids) & set(task.train.ids)
    else:
        assert "`validation`" in row["not_calibrated"] and "temperature" not in row

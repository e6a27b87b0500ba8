"""A small checkpoint for the stages that train on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_transfer import checkpoint, config, models
from sparse_transfer.pruning.masks import Masks


@pytest.fixture(scope="session")
def half_pruned(tmp_path_factory) -> Path:
    """The folder of a run with a checkpoint of a small ResNet, about half of it zero."""
    spec = config.ModelSpec(name="resnet20_cifar", weights="random", kwargs={"channels": [4, 8, 8]})
    loaded = models.build(spec, num_classes=10, image_size=16, seed=0)
    named = dict(loaded.model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    masks = Masks(
        {n: torch.rand(p.shape, generator=generator) > 0.5 for n, p in named.items() if p.ndim == 4}
    )
    masks.apply(named.items())
    facts = {"summary": {"measured_sparsity": masks.sparsity(), "digest": masks.digest()}}
    folder = tmp_path_factory.mktemp("pruned")
    checkpoint.save(folder / "checkpoint", loaded, loaded.model, masks, facts)
    return folder

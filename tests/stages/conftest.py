"""A small checkpoint for the stages that train on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparse_transfer import checkpoint, config, models
from sparse_transfer.pruning.masks import Masks


def pruned(folder: Path, kept: float) -> Path:
    """The folder of a run with a checkpoint of a small ResNet with that share of its weights."""
    spec = config.ModelSpec(name="resnet20_cifar", weights="random", kwargs={"channels": [4, 8, 8]})
    loaded = models.build(spec, num_classes=10, image_size=16, seed=0)
    named = dict(loaded.model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    masks = Masks(
        {
            name: torch.rand(p.shape, generator=generator) > 1 - kept
            for name, p in named.items()
            if p.ndim == 4
        }
    )
    masks.apply(named.items())
    facts = {"summary": {"measured_sparsity": masks.sparsity(), "digest": masks.digest()}}
    checkpoint.save(folder / "checkpoint", loaded, loaded.model, masks, facts)
    return folder


@pytest.fixture(scope="session")
def half_pruned(tmp_path_factory) -> Path:
    """About half of it is zero."""
    return pruned(tmp_path_factory.mktemp("pruned"), 0.5)


@pytest.fixture(scope="session")
def thin(tmp_path_factory) -> Path:
    """About nine tenths of it are zero."""
    return pruned(tmp_path_factory.mktemp("thin"), 0.1)

"""SNIP: before training, remove the weights whose absence would change the loss least, |g w|.

The connection sensitivity of a weight is |dL/dm| at m = 1 for a mask m, which is |g w|. Signed
gradients are averaged over `batches` batches of `batch_size` training images, then taken in
absolute value, and all layers are ranked together. With `iterations` above 1 the removal is spread
over rounds of equal shares, each of which scores the network that the last one left, on new images.

Family: pruning at initialisation, from data.
Schedule: one event before training.
Cost: `iterations` x `batches` gradients of `batch_size` images, once.
Source: Lee et al. 2019, arXiv 1810.02340; rounds: de Jorge et al. 2021 (Iterative SNIP), arXiv
2006.09081. The default 128 images are the source's batch, in four parts to save memory.
Deviations: the network's own weights are scored, without a new initialisation, so that pretrained
networks can be pruned; the loss is plain cross-entropy whatever the recipe adds to it; dropout is
off; at least one weight stays in each layer, which hides a collapse at extreme sparsity.
"""

from __future__ import annotations

from typing import final

import torch
from pydantic import Field

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.allocation import Allocation, check_allocation
from sparse_transfer.pruning.criteria import Scores
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target
from sparse_transfer.pruning.sensitivity import (
    Statistics,
    gradients_of,
    leaves,
    loss_of,
    remove_in_rounds,
)


class SnipOptions(Frozen):
    """`statistics`: batch norm normalises by the `batch` as in training, or by `running` ones."""

    allocation: Allocation = "global"
    batches: int = Field(4, ge=1)
    batch_size: int = Field(32, ge=2, description="images")
    iterations: int = Field(1, ge=1, description="rounds of removal")
    statistics: Statistics = "batch"


@final
class Method(AbstractMethod[SnipOptions]):
    """One event at step 0."""

    name = "snip"
    version = 1
    Options = SnipOptions
    needs_images = True

    def schedule(self, target: Target) -> dict[int, Event]:
        """The whole target at once."""
        options = self.options
        check_allocation(options.allocation, target)

        def choose(scene: Scene) -> Masks:
            def score(masks: Masks, round_: int) -> Scores:
                return self.sensitivity(scene, masks, round_)

            return remove_in_rounds(
                scene.masks, target.sparsity, options.iterations, options.allocation, score
            )

        return {0: Event("prune", target.sparsity, choose, needs=frozenset({"model"}))}

    def sensitivity(self, scene: Scene, masks: Masks, round_: int) -> Scores:
        """|g w| of the network under the masks, float32 by name; each round has its own images."""
        options = self.options
        weights = leaves({name: w * masks.factor(name, w) for name, w in scene.weights.items()})
        total = {name: torch.zeros_like(w) for name, w in weights.items()}
        for part in range(options.batches):
            images, labels = scene.examples(round_ * options.batches + part, options.batch_size)
            loss = loss_of(scene.model, weights, images, labels, statistics=options.statistics)
            for name, gradient in gradients_of(loss / options.batches, weights).items():
                total[name] += gradient
        return {name: (total[name] * w.detach()).abs().float() for name, w in weights.items()}

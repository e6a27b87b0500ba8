"""GraSP: before training, remove the weights whose absence preserves or raises the gradient flow.

To first order, removing weight q changes the squared gradient norm g'g by -2 w_q (H g)_q, with H
the Hessian of the loss. The score is S = -w (H g), signed, and the largest S go first: weights
whose removal reduces the flow least, or raises it. H g comes from a second backward pass through
g'stop(g), with g the mean gradient over all the images.

Family: pruning at initialisation, from data, second order.
Schedule: one event before training.
Cost: two gradients and a Hessian product for each of `batches` batches of `batch_size`, once.
Source: Wang, Zhang & Grosse 2020, arXiv 2002.07376, with its temperature of 200 on the logits.
Deviations: images are drawn at random instead of equally by class (512 by default; the source takes
10 or 25 a class); the network's own weights are scored, without a new initialisation of linear
layers; H is over the prunable weights that are still active; dropout is off; at least one weight
stays in each layer.
"""

from __future__ import annotations

from typing import final

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparse_transfer.config import Frozen
from sparse_transfer.pruning.allocation import Allocation, check_allocation
from sparse_transfer.pruning.criteria import Scores
from sparse_transfer.pruning.masks import Masks
from sparse_transfer.pruning.method import AbstractMethod, Event, Scene, Target
from sparse_transfer.pruning.sensitivity import (
    Statistics,
    gradients_of,
    hessian_product,
    leaves,
    loss_of,
    remove_in_rounds,
)


class GraspOptions(Frozen):
    """`statistics`: batch norm normalises by the `batch` as in training, or by `running` ones."""

    allocation: Allocation = "global"
    batches: int = Field(16, ge=1)
    batch_size: int = Field(32, ge=2, description="images")
    temperature: float = Field(200.0, gt=0, description="divides the logits")
    statistics: Statistics = "batch"

    @model_validator(mode="after")
    def _signed(self) -> GraspOptions:
        if self.allocation == "lamp":
            raise ValueError("`allocation: lamp` squares scores, and those of grasp have a sign")
        return self


@final
class Method(AbstractMethod[GraspOptions]):
    """One event at step 0."""

    name = "grasp"
    version = 1
    Options = GraspOptions
    needs_images = True

    def schedule(self, target: Target) -> dict[int, Event]:
        """The whole target at once."""
        check_allocation(self.options.allocation, target)

        def choose(scene: Scene) -> Masks:
            def score(masks: Masks, round_: int) -> Scores:
                return self.flow(scene, masks)

            return remove_in_rounds(scene.masks, target.sparsity, 1, self.options.allocation, score)

        return {0: Event("prune", target.sparsity, choose, needs=frozenset({"model"}))}

    def flow(self, scene: Scene, masks: Masks) -> Scores:
        """w (H g), float32 by name: half of what the flow loses with the weight, higher = keep."""
        weights = leaves(scene.weights)
        mean = {name: torch.zeros_like(w) for name, w in weights.items()}
        product = {name: torch.zeros_like(w) for name, w in weights.items()}
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            for part in range(self.options.batches):
                gradients = gradients_of(self._loss(scene, weights, part), weights)
                for name, gradient in gradients.items():
                    mean[name] += gradient * masks.factor(name, gradient)
            for part in range(self.options.batches):
                loss = self._loss(scene, weights, part)
                for name, gradient in hessian_product(loss, weights, mean).items():
                    product[name] += gradient
        return {name: (w.detach() * product[name]).float() for name, w in weights.items()}

    def _loss(self, scene: Scene, weights: dict[str, Tensor], part: int) -> Tensor:
        options = self.options
        images, labels = scene.examples(part, options.batch_size)
        loss = loss_of(
            scene.model,
            weights,
            images,
            labels,
            statistics=options.statistics,
            temperature=options.temperature,
        )
        return loss / options.batches

"""WoodFisher: remove by second-order cost w^2 / (2 [F^-1]_qq), and let the other weights make up.

The Hessian is approximated by the empirical Fisher matrix of `gradients` gradients, each of
`gradient_batch` training images, in blocks of `block` active weights of a layer. All layers are
ranked together by the cost of removing each weight alone; the weights that stay in a block receive
the sum of the compensations of those that go. With a large damping the ranking is that of
magnitudes and nothing is compensated.

Family: gradual or one-shot, second order, from data, with compensation, no regrowth.
Schedule: a cubic one with few updates, or `one_shot` before training.
Cost: at each update `gradients` backward passes, and matrices of 8 x `block` + 128 bytes for each
active weight; beyond 3 GiB of these the layers are done in k groups, and there are 2k - 1 times as
many passes (one group for MobileNetV2, five for ResNet-50 when dense).
Source: Singh & Alistarh 2020, arXiv 2004.14340; the window is gmp's, the size of the
blocks that of Kurtic et al. 2022 (oBERT), arXiv 2203.07259.
Deviations: smaller blocks (50; the source has 2000 for ResNet-50) and fewer, smaller gradients (256
of one image; 400 of 400 images); only active weights form blocks, so that updates get cheaper as
they go on; dropout is off and batch norm uses its running statistics, as in the source;
`compensation: joint` is the least-cost update instead of the sum; at least one weight stays in each
layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal, final

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sparse_transfer.config import Fraction, Frozen
from sparse_transfer.pruning import fisher
from sparse_transfer.pruning.allocation import Allocation, check_allocation
from sparse_transfer.pruning.criteria import Stage, remove
from sparse_transfer.pruning.method import AbstractMethod, Change, Event, Scene, Target
from sparse_transfer.pruning.schedule import gradual
from sparse_transfer.pruning.sensitivity import check_finite, gradients_of, leaves, loss_of

MEMORY = 3 * 2**30  # bytes of matrices and gradients held at once; it changes no result


class WoodfisherOptions(Frozen):
    """`start` and `end` are fractions of training; `one_shot` ignores them and `updates`."""

    allocation: Allocation = "global"
    one_shot: bool = False
    start: Fraction = 0.1
    end: float = Field(0.75, gt=0, le=1)
    updates: int = Field(5, ge=1)
    gradients: int = Field(256, ge=1)
    gradient_batch: int = Field(1, ge=1, description="images averaged in one gradient")
    block: int = Field(50, ge=1, description="weights")
    damping: float = Field(1e-5, gt=0, description="added to the diagonal")
    compensation: Literal["sum", "joint", "none"] = "sum"

    @model_validator(mode="after")
    def _window(self) -> WoodfisherOptions:
        if self.start >= self.end:
            raise ValueError("`start` must lie before `end`")
        return self


@final
class Method(AbstractMethod[WoodfisherOptions]):
    """gmp's schedule with a second-order criterion and new values for the kept weights."""

    name = "woodfisher"
    version = 1
    Options = WoodfisherOptions
    needs_images = True

    def schedule(self, target: Target) -> dict[int, Event]:
        """`updates` events, or one at step 0."""
        options = self.options
        check_allocation(options.allocation, target)
        if options.one_shot:
            points = {0: target.sparsity}
        else:
            points = gradual(
                start=options.start,
                end=options.end,
                updates=options.updates,
                total_steps=target.total_steps,
                initial=target.sparsity_now,
                final=target.sparsity,
            )
        return {
            step: Event(
                "prune", level, partial(self._choose, sparsity=level), needs=frozenset({"model"})
            )
            for step, level in points.items()
        }

    def _choose(self, scene: Scene, *, sparsity: float) -> Change:
        block = self.options.block
        groups = fisher.partition(scene.masks, block, MEMORY)
        scores = {
            name: torch.zeros_like(w, dtype=torch.float32, memory_format=torch.contiguous_format)
            for name, w in scene.weights.items()
        }
        inverse = torch.empty(0)
        for group in groups:
            del inverse  # before the next one is made
            inverse = self._inverse(scene, group)
            weights = fisher.gather(group, scene.weights, block)
            fisher.scatter(group, fisher.saliency(inverse, weights), scores)
        check_finite(scores)
        masks = remove(scene.masks, [Stage(scores)], sparsity, self.options.allocation)
        if self.options.compensation == "none":
            return Change(masks)
        values = {
            name: w.detach().clone(memory_format=torch.contiguous_format)
            for name, w in scene.weights.items()
        }
        gone = {name: scene.masks[name] & ~mask for name, mask in masks.items()}
        for group in reversed(groups):
            if group is not groups[-1]:  # the last inverse is still there
                del inverse
                inverse = self._inverse(scene, group)
            weights = fisher.gather(group, scene.weights, block)
            change = fisher.compensation(
                inverse,
                weights,
                fisher.gather(group, gone, block),
                jointly=self.options.compensation == "joint",
            )
            fisher.scatter(group, weights + change, values)
        return Change(masks, {name: w * masks.factor(name, w) for name, w in values.items()})

    def _inverse(self, scene: Scene, group: list[fisher.Part]) -> Tensor:
        return fisher.inverse_fisher(self._gradients(scene, group), self.options.damping)

    def _gradients(self, scene: Scene, group: list[fisher.Part]) -> Iterator[Tensor]:
        """Sampled gradients at the weights of a group; the same images for every group."""
        options = self.options
        weights = leaves({part.name: scene.weights[part.name] for part in group})
        for number in range(options.gradients):
            images, labels = scene.examples(number, options.gradient_batch)
            loss = loss_of(scene.model, weights, images, labels)
            yield fisher.gather(group, gradients_of(loss, weights), options.block)

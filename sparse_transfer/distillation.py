"""Knowledge distillation: a frozen dense teacher beside the labels.

Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531: the softened cross-entropy is weighted by the
squared temperature. Deviation: it is written as a KL divergence, which has the same gradient.
"""

from __future__ import annotations

import copy
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_transfer import config


@final
class Distillation:
    """A copy of the model as it is now, and the loss of learning from it.

    Args:
        model: the teacher; copied, frozen and put into eval mode.
        settings: hardness and temperature.
    """

    def __init__(self, model: nn.Module, settings: config.Distillation) -> None:
        self._teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self._hardness, self._temperature = settings.hardness, settings.temperature

    def loss(self, images: Tensor, logits: Tensor, plain: Tensor) -> Tensor:
        """The summed loss of a batch.

        Args:
            images: (b, 3, h, w), as the student saw them.
            logits: (b, classes) of the student.
            plain: summed loss against the labels.
        """
        with torch.no_grad():
            told = self._teacher(images).float() / self._temperature
        said = F.log_softmax(logits.float() / self._temperature, dim=1)
        softened = F.kl_div(said, told.log_softmax(dim=1), reduction="sum", log_target=True)
        return (1 - self._hardness) * plain + self._hardness * self._temperature**2 * softened

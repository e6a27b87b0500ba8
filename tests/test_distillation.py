"""Distillation: the loss by hand, a teacher that never changes, and training with it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparse_transfer import config
from sparse_transfer.distillation import Distillation
from tests.test_loop import net, same, settings, train


def linear(weight: list[list[float]]) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(weight))
    return model


def test_the_loss_by_hand() -> None:
    teacher = linear([[2.0, 0.0], [0.0, 2.0]])
    distillation = Distillation(teacher, config.Distillation(hardness=0.25, temperature=2.0))
    images = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    logits = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    # softened: teacher (1, 0) and (0, 3); student (0, 0) and (.5, -.5)
    told = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).softmax(1)
    said = torch.tensor([[0.0, 0.0], [0.5, -0.5]]).softmax(1)
    kl = (told * (told / said).log()).sum()
    found = distillation.loss(images, logits, torch.tensor(10.0))
    assert found.item() == pytest.approx(0.75 * 10 + 0.25 * 4 * kl.item(), rel=1e-5)


def test_a_student_that_agrees_loses_nothing() -> None:
    teacher = linear([[1.0, 2.0], [-1.0, 0.5]])
    distillation = Distillation(teacher, config.Distillation(hardness=1.0, temperature=3.0))
    images = torch.randn(4, 2)
    assert distillation.loss(images, teacher(images), torch.tensor(7.0)).item() == pytest.approx(
        0.0, abs=1e-5
    )


def test_the_gradient_is_that_of_the_softened_cross_entropy() -> None:
    teacher, logits = linear([[1.0, 2.0], [-1.0, 0.5]]), torch.randn(3, 2, requires_grad=True)
    images, temperature = torch.randn(3, 2), 4.0
    settings_ = config.Distillation(hardness=1.0, temperature=temperature)
    Distillation(teacher, settings_).loss(images, logits, torch.tensor(0.0)).backward()
    found, logits.grad = logits.grad, None
    told = (teacher(images) / temperature).softmax(1).detach()
    cross_entropy = F.cross_entropy(logits / temperature, told, reduction="sum")
    (temperature**2 * cross_entropy).backward()
    assert found is not None and logits.grad is not None
    assert torch.allclose(found, logits.grad, atol=1e-5)


def test_training_changes_the_student_and_never_the_teacher() -> None:
    plain, taught = net(), net()
    distillation = Distillation(taught, config.Distillation())
    before = copy.deepcopy(distillation._teacher)
    train(plain, settings())
    train(taught, settings(), distillation=distillation)
    assert not same(plain, taught)
    assert same(distillation._teacher, before) and not distillation._teacher.training
    assert same(distillation._teacher, net())

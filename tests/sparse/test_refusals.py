"""What the engine refuses by type: what is no network, other types, copies of what is compiled."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from sparse_transfer.errors import UserError
from sparse_transfer.sparse import training
from sparse_transfer.sparse.engine import compile

pytestmark = pytest.mark.kernels


def test_what_is_no_network_is_refused():
    wrong: Any = torch.relu
    with pytest.raises(UserError, match="torch.nn.Module"):
        compile(wrong, torch.randn(1, 3, 8, 8))
    none: Any = None
    with pytest.raises(UserError, match="NoneType"):
        training.convert_for_training(nn.Conv2d(3, 4, 3), none)


def test_the_type_of_the_model_is_named_before_that_of_the_images():
    with pytest.raises(UserError, match="parameters are torch.float16"):
        compile(nn.Conv2d(3, 4, 3).half(), torch.randn(1, 3, 8, 8).half())


def test_what_is_compiled_has_no_gradient_and_no_copies():
    compiled = compile(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8), tune=False)
    assert not compiled(torch.randn(2, 3, 8, 8, requires_grad=True)).requires_grad
    with pytest.raises(UserError, match="compile it again in the other process"):
        copy.deepcopy(compiled)
    with pytest.raises(UserError, match="compile it again in the other process"):
        pickle.dumps(compiled)

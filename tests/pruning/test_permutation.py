"""Channel permutation: where it is allowed, that it changes no output, and that it finds more."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from sparse_transfer.errors import UserError
from sparse_transfer.pruning.layers import prunable
from sparse_transfer.pruning.permutation import (
    Chain,
    chains,
    kept_magnitude,
    reordered,
    search,
)
from tests.pruning.training import CLASSES, small_cnn, tiny_mobilenet


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def best_of_all(weight: Tensor, n: int, m: int) -> float:
    """Two groups: every way to share the channels."""
    channels = range(2 * m)
    orders = (
        [*left, *(c for c in channels if c not in left)]
        for left in itertools.combinations(channels, m)
    )
    return max(kept_magnitude(weight[:, order], (n, m)) for order in orders)


def test_kept_magnitude_by_hand() -> None:
    weight = torch.tensor([[1.0, -2.0, 3.0, 4.0], [5.0, 0.0, -6.0, 1.0]])
    assert kept_magnitude(weight, (2, 4)) == 7 + 11
    assert kept_magnitude(weight, (1, 2)) == 2 + 4 + 5 + 6
    assert kept_magnitude(weight, (4, 4)) == 22


def test_four_strong_channels_in_one_group_are_shared_out() -> None:
    weight = torch.tensor([[4.0, 5.0, 6.0, 7.0, 0.4, 0.5, 0.6, 0.7]])
    order = search(weight, (2, 4), generator())
    assert kept_magnitude(weight, (2, 4)) == pytest.approx(13 + 1.3)
    assert kept_magnitude(weight[:, order], (2, 4)) == pytest.approx(22)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (1, 2)])
def test_with_two_groups_it_comes_within_a_percent_of_the_best_of_all(
    pattern: tuple[int, int],
) -> None:
    for seed in range(5):
        weight = torch.randn(6, 2 * pattern[1], generator=generator(seed))
        best = best_of_all(weight, *pattern)
        found = kept_magnitude(weight[:, search(weight, pattern, generator())], pattern)
        assert 0.99 * best <= found <= best * (1 + 1e-6)


@pytest.mark.parametrize("shape", [(3, 20), (4, 24, 3), (8, 40, 3, 3)])
@pytest.mark.parametrize("pattern", [(2, 4), (4, 8), (1, 2)])
def test_the_order_is_a_permutation_that_keeps_more(
    shape: tuple[int, ...], pattern: tuple[int, int]
) -> None:
    if shape[1] % pattern[1]:
        shape = (shape[0], 24, *shape[2:])
    weight = torch.randn(shape, generator=generator(1))
    order = search(weight, pattern, generator())
    assert order.sort().values.tolist() == list(range(shape[1]))
    assert kept_magnitude(weight[:, order], pattern) > kept_magnitude(weight, pattern)
    assert torch.equal(order, search(weight, pattern, generator()))


def test_an_order_that_cannot_be_improved_stays() -> None:
    assert search(torch.ones(3, 8), (2, 4), generator()).tolist() == list(range(8))
    assert search(torch.randn(3, 4), (2, 4), generator()).tolist() == list(range(4))
    assert search(torch.randn(3, 8), (4, 4), generator()).tolist() == list(range(8))


def timm_model(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=CLASSES)


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 16), nn.GELU(), nn.Dropout(), nn.Linear(16, 8), nn.Linear(8, 5)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "small_cnn": (small_cnn, 8, 1),
    "mobilenet": (tiny_mobilenet, 16, 4),
    "perceptron": (perceptron, 8, 2),
    "test_resnet": (lambda: timm_model("test_resnet"), 32, 7),
    "test_convnext": (lambda: timm_model("test_convnext"), 32, 9),
    "test_efficientnet": (lambda: timm_model("test_efficientnet"), 32, 10),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_computes_the_same_and_the_pattern_keeps_more(name: str) -> None:
    make, size, expected = MODELS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: every channel its own
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert isinstance(tensor, Tensor)
                nn.init.uniform_(tensor, 0.5, 1.5)
    found = chains(model)
    assert len(found) == expected
    layers = [n for n, w in prunable(model).items() if w.shape[1] % 4 == 0]
    values = reordered(model, layers, (2, 4), generator())
    images = torch.randn(2, 3, size, size, generator=generator(), dtype=torch.double)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.no_grad():
        outputs = model(images)
        model.load_state_dict({**model.state_dict(), **values})
        torch.testing.assert_close(model(images), outputs)
    kept = [
        (kept_magnitude(before[n], (2, 4)), kept_magnitude(model.get_parameter(n), (2, 4)))
        for n in (f"{chain.consumer}.weight" for chain in found)
        if n in layers
    ]
    assert kept and all(after >= earlier for earlier, after in kept)
    assert sum(after for _, after in kept) > 1.003 * sum(earlier for earlier, _ in kept)


def test_a_training_step_is_the_same_too() -> None:
    """In training mode batch norm takes the statistics of the batch, channel by channel."""
    model = small_cnn().double().train()
    values = reordered(model, ["3.weight"], (2, 4), generator())
    assert set(values) == {"3.weight", "0.weight", "0.bias"} | {
        f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var")
    }
    images = torch.randn(4, 3, 8, 8, generator=generator(), dtype=torch.double)
    outputs = model(images)
    model.load_state_dict({**model.state_dict(), **values})
    torch.testing.assert_close(model(images), outputs)


class Graph(nn.Module):
    """Layers and what connects them, for one question each."""

    def __init__(self, connect: Callable[[Graph, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 1)
        self.second = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 4)
        self.bn = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.connect = connect

    def forward(self, x: Tensor) -> Tensor:
        return self.connect(self, x)


def residual(g: Graph, x: Tensor) -> Tensor:
    x = g.first(x)
    return x + g.second(x)


def gated(g: Graph, x: Tensor) -> Tensor:
    x = g.first(x)
    return g.second(x * x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    ("connect", "between"),
    [
        (lambda g, x: g.second(torch.relu(g.bn(g.first(x)))), ("bn",)),
        (lambda g, x: g.second(g.pool(nn.functional.gelu(g.first(x)))), ()),
        (residual, None),
        (gated, None),
        (lambda g, x: g.second(g.second(g.first(x))), None),  # a layer that is used twice
        (lambda g, x: g.second(g.bn(g.bn(g.first(x)))), None),
        (lambda g, x: g.second(torch.cat([g.first(x), x], 1)[:, :4]), None),
        (lambda g, x: g.second(g.grouped(g.first(x))), None),
        (lambda g, x: g.linear(g.first(x)), None),  # another dimension
        (lambda g, x: g.linear(g.first(x).flatten(1)), None),
        (lambda g, x: g.second(torch.softmax(g.first(x), 1)), None),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_where_a_chain_begins_and_ends(
    connect: Callable[[Graph, Tensor], Tensor], between: tuple[str, ...] | None
) -> None:
    expected = [] if between is None else [Chain("first", between, "second")]
    assert chains(Graph(connect)) == expected


def test_a_norm_between_linear_layers_ends_a_chain() -> None:
    """Over a sequence its channels are another dimension than theirs."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    assert chains(model) == []


class NormWith(nn.BatchNorm2d):
    """A batch norm with a function after it, as timm has them."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__(4)
        self.after = after

    def forward(self, input: Tensor) -> Tensor:
        return self.after(super().forward(input))


def test_a_norm_is_followed_by_nothing_that_mixes_channels() -> None:
    for after, expected in ((nn.ReLU(), 1), (nn.GroupNorm(2, 4), 0)):
        model = nn.Sequential(nn.Conv2d(4, 4, 1), NormWith(after), nn.Conv2d(4, 4, 1))
        assert len(chains(model)) == expected


def test_a_weight_that_two_layers_share_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert len(chains(model)) == 1
    model[2].weight = model[0].weight
    assert chains(model) == []


def test_a_model_without_chains_or_without_a_graph_is_refused() -> None:
    with pytest.raises(UserError, match="no channels that can be reordered"):
        reordered(Graph(residual), ["first.weight", "second.weight"], (2, 4), generator())
    with pytest.raises(UserError, match="no channels that can be reordered"):
        reordered(small_cnn(), ["7.weight"], (2, 4), generator())
    branching = Graph(lambda g, x: g.first(x) if x.sum() > 0 else g.second(x))
    with pytest.raises(UserError, match="cannot be reordered") as refusal:
        reordered(branching, ["first.weight"], (2, 4), generator())
    assert "control flow" in refusal.value.why

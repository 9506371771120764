"""Compressed layers compute, and learn, what the wide ones do; exactly where the theory says so."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix.control import WeightedMLP, compress_width
from gaugefix.errors import ControlError


def network(width: int, activation: nn.Module, inputs: int = 2, seed: int = 0, *, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(inputs, width, bias=bias), activation, nn.Linear(width, 1, bias=bias)
        ).double()  # fmt: skip


def descend(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, **options: float) -> np.ndarray:
    """Test predictions after every step of minibatch SGD; the order of the batches is always the same."""
    sgd = torch.optim.SGD(model.parameters(), **options)
    generator = torch.Generator().manual_seed(5)
    outputs = []
    for _ in range(steps):
        batch = torch.randint(len(x), (16,), generator=generator)
        sgd.zero_grad()
        (model(x[batch]).squeeze(-1) - y[batch]).square().mean().backward()
        sgd.step()
        outputs.append(model(x[:50]).detach().squeeze(-1).numpy())
    return np.array(outputs)


def data(inputs: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    x = 2 * torch.rand(200, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    return x, torch.sin(3 * x[:, 0]) + x[:, 1]


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_network_of_width_1000_trains_exactly_like_28_of_its_units(bias):
    wide = network(1000, nn.Identity(), inputs=5, bias=bias)
    narrow = compress_width(wide[0], wide[2], k=2, activation=wide[1])
    assert narrow.first.out_features == (36 if bias else 28)
    options = {"lr": 0.002, "momentum": 0.9, "weight_decay": 0.01}
    x, y = data(5)
    full, few = descend(wide, x, y, 200, **options), descend(narrow, x, y, 200, **options)
    assert np.abs(full[-1] - full[0]).max() > 0.2  # it learned
    assert np.abs(full - few).max() < 1e-10


def test_without_the_compressed_dynamics_it_does_not():
    """Fold first, then train: the same function, another learning rate for every unit."""
    wide = network(1000, nn.Identity(), inputs=5)
    folded = compress_width(wide[0], wide[2], k=2, activation=wide[1]).fold()
    x, y = data(5)
    assert torch.allclose(folded(x), wide(x), rtol=0, atol=1e-12)
    full, few = descend(wide, x, y, 100, lr=0.005), descend(folded, x, y, 100, lr=0.005)
    assert np.abs(full - few).max() > 0.1


def test_a_tanh_network_is_followed_closely_and_a_random_part_is_not():
    """Width 2000 to 200 at default initial values, k = 3."""
    wide = network(2000, nn.Tanh(), seed=3)
    narrow = compress_width(wide[0], wide[2], k=3, target=200, activation=wide[1])
    kept = torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:200]
    random = copy.deepcopy(narrow)
    with torch.no_grad():
        random.first.weight.copy_(wide[0].weight[kept])
        random.first.bias.copy_(wide[0].bias[kept])
        random.second.weight.copy_(wide[2].weight[:, kept])
        random.weights.fill_(10.0)
    x, y = data(2)
    full = descend(wide, x, y, 300, lr=0.6 / 2000)
    few, other = descend(narrow, x, y, 300, lr=0.6 / 2000), descend(random, x, y, 300, lr=0.6 / 2000)
    assert np.abs(full[-1] - full[0]).max() > 0.2
    assert np.abs(full - few).max() < 0.05 * np.abs(full - other).max()


def test_fold_keeps_the_function_and_is_plain():
    wide = network(300, nn.GELU())
    narrow = compress_width(wide[0], wide[2], k=2, target=0.2, activation=wide[1])
    x, _ = data(2)
    plain = narrow.fold()
    assert torch.allclose(plain(x), narrow(x), rtol=0, atol=1e-12)
    assert [type(m) for m in plain] == [nn.Linear, nn.GELU, nn.Linear]
    assert plain[0].out_features == plain[2].in_features == narrow.first.out_features == 60
    with torch.no_grad():
        plain[0].weight.zero_()
    assert float(narrow.first.weight.detach().abs().max()) > 0  # a copy


def test_units_are_those_of_the_wide_network_which_stays():
    wide = network(100, nn.Tanh())
    before = copy.deepcopy(wide.state_dict())
    narrow = compress_width(wide[0], wide[2], k=1, activation=wide[1])
    rows = {tuple(r) for r in wide[0].weight.tolist()}
    assert {tuple(r) for r in narrow.first.weight.tolist()} <= rows
    assert float(narrow.weights.sum()) == pytest.approx(100)
    assert torch.equal(narrow.second.bias, wide[2].bias)
    with torch.no_grad():
        narrow.second.bias.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in wide.state_dict().items())


def test_gradients_are_those_of_the_units_they_stand_for_and_copies_keep_them():
    """Three equal units and one that counts for three have the same gradient, unit by unit."""
    one = network(2, nn.Tanh())
    weighted = WeightedMLP(one[0], one[1], one[2], torch.tensor([3.0, 1.0]))
    wide = network(4, nn.Tanh())
    with torch.no_grad():
        for i, j in enumerate([0, 0, 0, 1]):
            wide[0].weight[i], wide[0].bias[i], wide[2].weight[:, i] = (
                one[0].weight[j], one[0].bias[j], one[2].weight[:, j],
            )  # fmt: skip
        wide[2].bias.copy_(one[2].bias)
    x, y = data(2)
    for net in (weighted, copy.deepcopy(weighted)):
        for model in (net, wide):
            model.zero_grad()
            (model(x).squeeze(-1) - y).square().mean().backward()
        assert torch.allclose(net.first.weight.grad, wide[0].weight.grad[[0, 3]], atol=1e-14)
        assert torch.allclose(net.first.bias.grad, wide[0].bias.grad[[0, 3]], atol=1e-14)
        assert torch.allclose(net.second.weight.grad, wide[2].weight.grad[:, [0, 3]], atol=1e-14)


def test_state_goes_through_a_dictionary():
    wide = network(50, nn.Tanh())
    one = compress_width(wide[0], wide[2], k=1, target=20, activation=wide[1])
    other = compress_width(network(50, nn.Tanh(), seed=7)[0], wide[2], k=1, target=20, activation=wide[1])
    other.load_state_dict(one.state_dict())
    x, _ = data(2)
    assert torch.equal(other(x), one(x))
    assert "20 units that count for 50" in repr(one)


def test_bad_input_is_refused():
    wide = network(30, nn.Tanh())
    with pytest.raises(ControlError, match="30 units and the output layer reads 7"):
        compress_width(wide[0], nn.Linear(7, 1), activation=nn.Tanh())
    with pytest.raises(ControlError, match="there are 4 weights"):
        WeightedMLP(wide[0], wide[1], wide[2], torch.ones(4))
    with pytest.raises(ControlError, match="positive"):
        WeightedMLP(wide[0], wide[1], wide[2], torch.zeros(30))
    with torch.no_grad():
        wide[0].weight[0, 0] = float("nan")
    with pytest.raises(ControlError, match="nan"):
        compress_width(wide[0], wide[2], activation=wide[1])

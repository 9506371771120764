"""Small models, their unit classes written down by hand, and real data, for tests of measurements."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gaugefix import Task
from gaugefix.symmetry import Slice, Units

ACTIVATIONS = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
}


def _mlp(widths: tuple[int, ...], activation: str, *, seed: int = 0, bias: bool = True) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for k, (a, b) in enumerate(pairwise(widths)):
            layers += [nn.Linear(a, b, bias=bias or k == len(widths) - 2), ACTIVATIONS[activation]()]
        return nn.Sequential(*layers[:-1]).double()


def _mlp_units(model: nn.Sequential, activation: str) -> list[Units]:
    """The hidden classes of an MLP, without the search."""
    linears = [(name, m) for name, m in model.named_children() if isinstance(m, nn.Linear)]
    classes = []
    for (name, layer), (after, _) in pairwise(linears):
        index = np.arange(layer.out_features).reshape(1, -1, 1)
        slices = [Slice(f"{name}.weight", 0, index, "write"), Slice(f"{after}.weight", 1, index, "read")]
        if layer.bias is not None:
            slices.insert(1, Slice(f"{name}.bias", 0, index, "write"))
        classes.append(Units(name, layer.out_features, 1, tuple(slices), activation))
    return classes


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().sum(1)


@pytest.fixture(scope="session")
def mlp() -> Callable[..., nn.Sequential]:
    """``mlp(widths, activation, seed=, bias=)``: float64, the output layer always has a bias."""
    return _mlp


@pytest.fixture(scope="session")
def mlp_units() -> Callable[..., list[Units]]:
    """``mlp_units(model, activation)``: the hidden classes, written down by hand."""
    return _mlp_units


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """``make_task(model, data, batch_size=, **settings)``: cross-entropy for integer targets, else squared error."""

    def make(model: nn.Module, data: tuple[Tensor, Tensor], batch_size: int | None = None, **settings: object) -> Task:
        x, y = data
        size = batch_size or len(x)
        options = {"lr": 0.1, "weight_decay": 0.01, **settings}
        loss = _squared if y.is_floating_point() else _cross_entropy
        return Task(model, loss, lambda: zip(x.split(size), y.split(size), strict=True), batch_size=size, **options)

    return make


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The first 800 digits, in [0, 1], centred: ``(800, 64)`` and labels."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    inputs = torch.tensor(x[:800] / 16.0)
    return inputs - inputs.mean(0), torch.tensor(y[:800])


@pytest.fixture(scope="session")
def blobs() -> tuple[Tensor, Tensor]:
    """A small classification problem: ``(48, 5)`` float64 and labels of 3 classes."""
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(48) % 3
    centres = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return centres[y] + torch.randn(48, 5, generator=generator, dtype=torch.float64), y

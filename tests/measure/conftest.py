"""Small problems that several measurements share: a regression, a product at its origin, a network with twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries


@pytest.fixture
def regression(make_task, mlp):
    """A tanh network 6-5-3 with weights ~ N(0, 0.6²) on 64 Gaussian samples in batches of 16."""

    def make(activation="tanh", *, lr=0.005, weight_decay=0.0, batch_size=16):
        rng = np.random.default_rng(0)
        x, y = torch.from_numpy(rng.standard_normal((64, 6))), torch.from_numpy(rng.standard_normal((64, 3)))
        model = mlp((6, 5, 3), activation)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.from_numpy(0.6 * rng.standard_normal(p.shape)))
        return make_task(model, (x, y), batch_size=batch_size, lr=lr, weight_decay=weight_decay)

    return make


class Product(nn.Module):
    """f = u·w at its origin."""

    def __init__(self, u=0.0, w=0.0):
        super().__init__()
        self.uw = nn.Parameter(torch.tensor([u, w], dtype=torch.float64))


def _product_task(lr, *, targets=(2.0, -1.0), repeats=40, batch_size=1, weight_decay=0.0, model=None):
    """½(uw − y)², every target equally often, shuffled anew in every pass."""
    y = torch.tensor(np.tile(targets, repeats))

    def batches(seed=0):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        return y[order].split(batch_size)

    loss = lambda m, b: (m.uw.prod() - b).square() / 2  # noqa: E731
    return Task(model or Product(), loss, batches, lr=lr, weight_decay=weight_decay, batch_size=batch_size)


@pytest.fixture
def product_task():
    """``product_task(lr, targets=, repeats=, batch_size=, weight_decay=)``: ½(uw − y)² at u = w = 0."""
    return _product_task


@pytest.fixture
def tied(mlp, make_task, blobs):
    """A tanh network beside a swap mirror, with minibatches of 12."""
    task = make_task(mlp((5, 4, 3), "tanh"), blobs, batch_size=12, lr=0.2, weight_decay=0.02)
    mirror = next(m for m in find_symmetries(task).mirrors() if m.kind == "swap")
    return task, mirror

"""A network of copies becomes the one it is, with the same function, and near copies within the error that is said."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gaugefix.control import reduce_model

X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def copies(noise=0.0):
    g = torch.Generator().manual_seed(1)
    w, u = torch.randn(3, 4, generator=g, dtype=torch.float64), torch.randn(2, 3, generator=g, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(4, 12, bias=False), nn.Tanh(), nn.Linear(12, 2, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(w.repeat(4, 1))
        net[2].weight.copy_(u.repeat(1, 4) / 4)
        net[0].weight += noise * torch.randn(12, 4, generator=g, dtype=torch.float64)
    return net


def test_four_copies_of_three_units_become_three():
    net = copies()
    small = reduce_model(net, example_inputs=X)
    assert small.model[0].out_features == 3
    assert torch.allclose(small.model(X), net(X), atol=1e-12)
    assert net[0].out_features == 12


def test_near_copies_need_a_tolerance_and_cost_an_error():
    net = copies(noise=1e-3)
    assert reduce_model(net, example_inputs=X).model[0].out_features == 12
    small = reduce_model(net, tolerance=0.02, example_inputs=X)
    assert small.model[0].out_features == 3
    with torch.no_grad():
        measured = float((small.model(X) - net(X)).norm() / net(X).norm())
    assert 0 < measured <= small.error + 1e-12
    assert small.error < 0.02


def test_low_rank_is_left_to_fold():
    """Units only: a linear layer of low rank stays one layer."""
    net = nn.Sequential(nn.Linear(4, 4, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.outer(torch.ones(4), torch.arange(4.0)))
    assert reduce_model(net, example_inputs=X).factored == ()


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_nothing_to_merge_is_fine(tolerance):
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3, 4))
    assert reduce_model(net, tolerance=tolerance, example_inputs=X).model[0].out_features == 3

"""Collapse to a fraction: the largest of all tensors stay, units are counted once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gaugefix import find_symmetries
from gaugefix.control import impose
from gaugefix.errors import ControlError


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10)).double()


def test_a_fraction_of_the_entries_of_all_tensors_stays(net):
    before = torch.cat([net[i].weight.detach().flatten() for i in (0, 2)])
    for i in (0, 2):
        impose.sparse(net[i], "weight", strength=1e-3)
    done = impose.collapse_(net, keep=0.1)
    after = torch.cat([net[i].weight.detach().flatten() for i in (0, 2)])
    largest = before.abs().topk(90).indices
    assert set(after.nonzero().flatten().tolist()) == set(largest.tolist())
    assert torch.allclose(after[largest], before[largest])
    assert sum(c.total - c.dead for c in done) == 90
    assert all(c.clear for c in done)


def test_a_fraction_of_the_units_stays_and_each_is_counted_once(net):
    symmetries = find_symmetries(net, (torch.randn(4, 20, dtype=torch.float64),))
    impose.prune_units(net, symmetries, strength=1e-3)
    done = impose.collapse_(net, keep=0.2)
    alive = net[0].weight.norm(dim=1) > 0
    assert int(alive.sum()) == 6
    assert torch.equal(alive, net[0].bias != 0)
    assert {(c.dead, c.total) for c in done} == {(24, 30)}


def test_a_fraction_of_the_singular_values_stays(net):
    for i in (0, 2):
        impose.low_rank(net[i], "weight", strength=1e-3)
    values = torch.cat([torch.linalg.svdvals(net[i].weight.detach()) for i in (0, 2)])
    impose.collapse_(net, keep=0.5)
    ranks = [int(torch.linalg.matrix_rank(net[i].weight)) for i in (0, 2)]
    bar = values.sort(descending=True).values[15]
    assert ranks == [int((values[:20] > bar).sum()), int((values[20:] > bar).sum())]


def test_all_of_it_stays_at_one(net):
    before = net[0].weight.detach().clone()
    impose.sparse(net, "0.weight", strength=1e-3)
    impose.collapse_(net, keep=1.0)
    assert torch.allclose(net[0].weight, before)


@pytest.mark.parametrize("options", [{"keep": 0.0}, {"keep": 1.1}, {"keep": 0.5, "threshold": 0.1}])
def test_bad_fractions_are_refused_and_the_constraint_stays(options, net):
    impose.sparse(net, "0.weight", strength=1e-3)
    with pytest.raises(ControlError, match=r"keep must be in \(0, 1\], without a threshold"):
        impose.collapse_(net, **options)
    assert len(impose.factors(net)) == 2

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.measure import distinct_units, mirror_distances, order_parameters


@pytest.fixture(scope="module", params=["relu", "tanh"])
def net(request):
    act = {"relu": nn.ReLU, "tanh": nn.Tanh}[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 3)).double()
    return model, find_symmetries(model, (torch.randn(2, 4).double(),)), request.param


def _params(model):
    return {k: p.detach().clone() for k, p in model.named_parameters()}


def test_fresh_units_are_all_different(net):
    model, symmetries, _ = net
    found = distinct_units(_params(model), symmetries)[0]
    assert found.distinct == found.live == 6
    order = order_parameters(_params(model), symmetries)[0]
    assert order.broken
    assert order.stabiliser == "1"
    assert 0.05 < order.swap < 1


def test_copies_in_another_gauge(net):
    model, symmetries, activation = net
    params = _params(model)
    c = 5.0 if activation == "relu" else -1.0
    for unit in (1, 4):
        params["0.weight"][unit], params["0.bias"][unit] = c * params["0.weight"][0], c * params["0.bias"][0]
        params["2.weight"][:, unit] = params["2.weight"][:, 0] / c
    found = distinct_units(params, symmetries)[0]
    assert found.clusters[0] == (0, 1, 4)
    assert found.distinct == 4
    assert found.distances[0, 0, 1] < 1e-7
    order = order_parameters(params, symmetries)[0]
    assert order.stabiliser == "S_3"
    assert not order.broken
    assert order.swap < 1e-7


def test_another_outgoing_side_is_another_unit(net):
    """They merge for the function, but no permutation is restored."""
    model, symmetries, _ = net
    params = _params(model)
    params["0.weight"][1], params["0.bias"][1] = params["0.weight"][0], params["0.bias"][0]
    assert distinct_units(params, symmetries)[0].distinct == 6


def test_dead_units_and_empty_results(net):
    model, symmetries, _ = net
    params = _params(model)
    for k in ("0.weight", "0.bias"):
        params[k][2:4] = 0
    params["2.weight"][:, 2:4] = 0
    order = order_parameters(params, symmetries)[0]
    assert (order.dead, order.distinct, order.sign, order.stabiliser) == (2, 4, 0.0, "S_2")
    assert not order.broken
    assert order_parameters(params, []) == ()
    zeros = {k: torch.zeros_like(p) for k, p in params.items()}
    nothing = order_parameters(zeros, symmetries)[0]
    assert (nothing.distinct, nothing.dead, nothing.rank) == (0, 6, 0)
    assert np.isnan(nothing.swap)


def test_distances_to_mirrors(net):
    model, symmetries, _ = net
    params = _params(model)
    for s in symmetries:
        mirrors, distances = mirror_distances(params, s)
        assert len(mirrors) == len(distances)
        assert (np.diff(distances) >= 0).all()
        if mirrors:
            moved = mirrors[0].project(params)
            assert mirror_distances(moved, s)[1][0] < 1e-12
    swaps = next(s for s in symmetries if s.group == "S_6")
    assert len(mirror_distances(params, swaps)[0]) == 15
    assert len(mirror_distances(params, swaps, limit=4)[0]) == 4


@pytest.mark.parametrize("tolerance", [0.0, 1.0, float("nan")])
def test_bad_tolerance(net, tolerance):
    with pytest.raises(MeasurementError, match=r"\(0, 1\)"):
        distinct_units(_params(net[0]), net[1], tolerance=tolerance)

"""Invariant sets named by layers, against the search and against exponents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.measure import TiedNeurons, ZeroNeuron, ZeroRank, lyapunov_exponent, saddle_type


@pytest.fixture
def network(mlp):
    """Two layers of tanh on 24 samples; units 0 and 1 are equal, unit 2 is zero."""
    model = mlp((3, 4, 2), "tanh")
    with torch.no_grad():
        for p, dim in ((model[0].weight, 0), (model[0].bias, 0), (model[2].weight, 1)):
            p.select(dim, 1).copy_(p.select(dim, 0))
            p.select(dim, 2).zero_()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 3, generator=generator).double(), torch.randn(24, 2, generator=generator).double()
    return Task(
        model, lambda m, b: (m(b[0]) - b[1]).square().sum(1), lambda: zip(x.split(6), y.split(6), strict=True),
        lr=0.02, weight_decay=0.01, batch_size=6,
    )  # fmt: skip


@pytest.mark.parametrize("plane", [ZeroNeuron("0", "2", 2), TiedNeurons("0", "2", 0, 1)])
def test_a_named_set_is_a_mirror_of_the_function(network, plane):
    params = dict(network.model.named_parameters())
    mirror = plane.mirror(network.model)
    assert mirror.distance(params) == pytest.approx(0.0, abs=1e-12)
    found = [m for s in find_symmetries(network) for m in s.mirrors()]
    same = [m for m in found if m.kind == mirror.kind and np.allclose(np.abs(m.v), np.abs(mirror.v))]
    assert same
    other = {k: torch.randn_like(p) for k, p in params.items()}
    assert torch.allclose(same[0].coordinates(other).abs().sort()[0], mirror.coordinates(other).abs().sort()[0])


def test_the_gradient_of_every_batch_vanishes_off_a_named_set(network):
    found = saddle_type(network, ZeroNeuron("0", "2", 2), tolerance=np.inf)
    assert found.type2_residual < 1e-12
    assert found.distance == pytest.approx(0.0, abs=1e-12)
    assert found.kind in {"minimum", "type II"}
    assert (found.lambda_min < 0) == (found.kind == "type II")
    assert saddle_type(network, ZeroNeuron("0", "2", 2), tolerance=1e-6).kind == "not critical"
    frozen = lyapunov_exponent(network, TiedNeurons("0", "2", 0, 1), steps=60, burn_in=10)
    assert frozen.valid


def test_a_lost_rank_is_a_plane_of_linear_layers():
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)).double()
    v = np.array([3.0, 4.0]) / 5
    params = dict(model.named_parameters())
    params = ZeroRank("0", "1", (3.0, 4.0)).mirror(model).project(params)
    assert torch.linalg.matrix_rank(params["1.weight"] @ params["0.weight"]) == 1
    assert (v @ params["0.weight"].detach().numpy()) == pytest.approx(np.zeros(3), abs=1e-12)


@pytest.mark.parametrize(
    ("plane", "match"),
    [
        (ZeroNeuron("0", "2", 9), "unit 9"),
        (TiedNeurons("0", "2", 1, 1), "different"),
        (ZeroNeuron("5", "2", 0), r"5\.weight"),
        (ZeroNeuron("2", "0", 0), "second dimension"),
        (ZeroRank("0", "2", (1.0,)), "entries"),
    ],
)
def test_sets_that_do_not_fit_are_refused(mlp, plane, match):
    with pytest.raises(MeasurementError, match=match):
        plane.mirror(mlp((3, 4, 2), "tanh"))

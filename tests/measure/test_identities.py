from dataclasses import replace

import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.errors import MeasurementError, ValidityWarning
from gaugefix.measure import (
    HessianOperator,
    check_first_order,
    check_second_order,
    flat_directions,
    hessian_extremes,
    homogeneity_degree,
    sharpness_lower_bound,
)


class _Block(nn.Module):
    """Attention, a norm and a gated layer: rescalings, general linear groups, shifts and rotations of the stream."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 4), nn.LayerNorm(4, eps=0.0)
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        h = self.embed(x)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        return self.head(self.norm(h)).mean(1)


_MODELS = {
    "relu": (lambda: nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2)), (4,)),
    "linear": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), (4,)),
    "block": (_Block, (5, 3)),
}
_FOUND = {}


@pytest.fixture(params=list(_MODELS))
def made(request):
    make, shape = _MODELS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().double()
    x = torch.randn(20, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    task = Task(model, lambda m, b: (m(b) - 1).square().sum(1), lambda: [x], lr=0.1, weight_decay=0.0, batch_size=20)
    if request.param not in _FOUND:
        _FOUND[request.param] = find_symmetries(model, (x[:2],))
    return task, _FOUND[request.param]


def test_both_identities_hold_to_rounding(made):
    task, symmetries = made
    operator = HessianOperator(task)
    first, second = check_first_order(operator, symmetries), check_second_order(operator, symmetries)
    assert len(first) == sum(s.n_generators > 0 for s in symmetries) >= len(second) > 0
    for check in (*first, *second):
        assert check.residual < 1e-10, check
        assert check.passed
        assert check.n_samples == 20
    assert max(c.size for c in second) > 1e-4  # there was something to compare


def test_a_false_symmetry_is_caught(made):
    """A tanh network does not have the rescalings of a ReLU network."""
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    relu, tanh = (nn.Sequential(nn.Linear(4, 7), act, nn.Linear(7, 2)).double() for act in (nn.ReLU(), nn.Tanh()))
    task = Task(tanh, lambda m, b: m(b).square().sum(1), lambda: [x], lr=0.1, weight_decay=0.0, batch_size=9)
    symmetries = find_symmetries(relu, (x[:2],))
    assert not any(c.passed for c in check_first_order(task, symmetries))
    assert not any(c.passed for c in check_second_order(task, symmetries))


def test_the_bound_is_below_the_sharpness_and_not_empty(made):
    task, symmetries = made
    bound, sharpness = sharpness_lower_bound(task, symmetries), hessian_extremes(task, which="LM")
    assert 0 < bound.value <= abs(sharpness.eigenvalues[0]) * (1 + 1e-9)
    assert bound.symmetry in {s.name for s in symmetries}
    none = replace(symmetries, symmetries=())
    assert sharpness_lower_bound(task, none).value == 0


def test_flat_directions_is_orthonormal_and_flat(made):
    task, symmetries = made
    params = {k: p.detach() for k, p in task.model.named_parameters()}
    basis, names = flat_directions(params, symmetries)
    assert basis.shape == (sum(p.numel() for p in params.values()), symmetries.flat_dim)
    assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-10)
    gradient = HessianOperator(task).gradient()
    flat = torch.cat([gradient[n].reshape(-1) for n in names])
    assert float((basis.T @ flat).abs().max()) < 1e-10


def test_no_symmetry_no_direction(made):
    task, symmetries = made
    params = {k: p.detach() for k, p in task.model.named_parameters()}
    assert flat_directions(params, replace(symmetries, symmetries=()))[0].shape[1] == 0


def _task(*layers):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Sequential(*layers).double()
    return Task(model, lambda m, b: m(b).square().sum(1), lambda: [x], lr=0.1, weight_decay=0.0, batch_size=6)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_degree_of_a_network_without_biases_is_its_depth(depth):
    layers = [m for _ in range(depth) for m in (nn.Linear(4, 4, bias=False), nn.ReLU())]
    found = homogeneity_degree(_task(*layers[:-1]))
    assert found.degree == depth
    assert found.homogeneous
    assert found.residual < 1e-12


def test_inhomogeneous_models_are_called_that():
    with pytest.warns(ValidityWarning, match="not homogeneous"):
        found = homogeneity_degree(_task(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    assert not found.homogeneous
    with pytest.raises(MeasurementError, match="positive"):
        homogeneity_degree(_task(nn.Linear(4, 4)), scales=(1.0,))

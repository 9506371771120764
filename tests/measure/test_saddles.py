"""Types of critical points of solvable models, and of a network on the plane of one of its symmetries."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.measure import saddle_type


class Valley(nn.Module):
    """Two weights at the origin."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=torch.float64))


def _valley(noise, curvature, slope=0.0):
    """Curvature and gradient noise along the first weight, a slope along the second."""
    batches = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    loss = lambda m, b: curvature / 2 * m.w[0] ** 2 + noise * b * m.w[0] + slope * m.w[1]  # noqa: E731
    return Task(Valley(), loss, lambda: batches, lr=0.1, weight_decay=0.0, batch_size=1)


FIRST = torch.tensor([[1.0], [0.0]])


@pytest.mark.parametrize(("noise", "curvature", "slope", "kind"), [
    (0.5, -1.0, 0.0, "type I"), (0.0, -1.0, 0.0, "type II"), (0.0, 2.0, 0.0, "minimum"), (0.5, 2.0, 0.0, "minimum"),
    (0.0, -1.0, 0.3, "not critical"),
])  # fmt: skip
def test_the_four_kinds(noise, curvature, slope, kind):
    found = saddle_type(_valley(noise, curvature, slope), FIRST)
    assert found.kind == kind
    assert found.lambda_min == pytest.approx(curvature)
    if slope == 0:
        assert found.type2_residual == pytest.approx(float(noise > 0))


@pytest.mark.parametrize(("weight_decay", "kind"), [(0.0, "type II"), (0.4, "type II"), (0.6, "minimum")])
def test_weight_decay_lifts_the_block(product_task, weight_decay, kind):
    """At the origin of ½(uw − y)² the block has the eigenvalues ±E y = ±½."""
    found = saddle_type(product_task(0.1, weight_decay=weight_decay), torch.eye(2))
    assert found.lambda_min == pytest.approx(weight_decay - 0.5)
    assert found.kind == kind


def test_the_plane_of_a_symmetry_holds_every_gradient(tied):
    task, mirror = tied
    before = {k: p.detach().clone() for k, p in task.model.named_parameters()}
    found = saddle_type(task, mirror, tolerance=10.0)
    assert found.type2_residual < 1e-12
    assert found.distance == pytest.approx(mirror.distance(before))
    assert all(torch.equal(p, before[k]) for k, p in task.model.named_parameters())
    assert saddle_type(dataclasses.replace(task, weight_decay=100.0), mirror, tolerance=10.0).kind == "minimum"

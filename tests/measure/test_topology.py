"""Distances of units against the exact identity, the bound by curvature, and neurons on a line."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.measure import distinct_rows, neuron_topology, order_breaking_lr, topology_step, unit_pairs
from gaugefix.symmetry import Slice, Units


class Line(nn.Module):
    """The mean of sin over scalar neurons, each step of size lr·n: θ' = θ − lr·r·cos θ."""

    def __init__(self, theta):
        super().__init__()
        self.theta = nn.Parameter(theta)

    def forward(self, x):
        return self.theta.sin().mean() + 0 * x


def line_task(n, lr, seed=0):
    theta = torch.from_numpy(np.random.default_rng(seed).uniform(-3, 3, n))
    y = torch.tensor([2.0 + seed], dtype=torch.float64)
    loss = lambda m, b: (m(b) - b).square() / 2  # noqa: E731
    task = Task(Line(theta), loss, lambda: [y], lr=lr * n, weight_decay=0.0, batch_size=1)
    units = Units("theta", n, 1, (Slice("theta", 0, np.arange(n).reshape(1, n, 1), "write"),))
    return task, units, float((theta.sin().mean() - y)[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_neurons_on_a_line_keep_their_order_up_to_the_critical_rate(seed):
    """r φ''(θ) = −r sin θ: the order of all neurons is kept below 1/max(r φ''), and broken just above."""
    task, units, r = line_task(140, 1.0, seed)
    (found,) = order_breaking_lr(task, [units])
    assert found.n_pairs == 140 * 139 // 2
    assert found.pairwise_lr / 140 == pytest.approx(1 / (-r * 1.0 if r < 0 else r), rel=0.01)
    for factor, reversals in ((1 - 1e-6, 0), (1 + 1e-6, 1)):
        one = dataclasses.replace(task, lr=found.pairwise_lr * factor)
        (step,) = neuron_topology(one, [units], steps=1)
        assert step.reversals == step.order_breaking == reversals
    assert found.critical_lr <= found.pairwise_lr * (1 + 1e-4)  # the bound takes a supremum, this is one point


@pytest.fixture
def net(mlp, make_task, blobs):
    task = make_task(mlp((5, 12, 3), "tanh"), blobs, lr=0.1, weight_decay=0.01)
    return task, find_symmetries(task)


@pytest.mark.parametrize("lr", [0.1, 1.0, 20.0])
def test_all_reversals_are_among_the_order_breaking_pairs(net, lr):
    task, symmetries = net
    (found,) = neuron_topology(dataclasses.replace(task, lr=lr), symmetries, steps=1)
    assert found.reversals == found.order_breaking
    assert (found.reversals > 0) == (lr == 20)
    if lr == 0.1:
        assert found.violations == 0
        assert 1 - found.bound <= found.min_ratio < 1 < found.max_ratio <= 1 + found.bound


def test_the_bound_is_the_largest_curvature(net, blobs):
    task, symmetries = net
    (found,) = order_breaking_lr(task, symmetries)
    params = {k: p.detach() for k, p in task.model.named_parameters()}
    sizes = [p.numel() for p in params.values()]

    def loss(flat):
        parts = {k: f.reshape(p.shape) for (k, p), f in zip(params.items(), flat.split(sizes), strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(task.model, parts, (blobs[0],)), blobs[1])

    flat = torch.cat([p.reshape(-1) for p in params.values()])
    hessian = torch.func.hessian(loss)(flat) + 0.01 * torch.eye(len(flat))
    exact = float(torch.linalg.eigvalsh(hessian).abs().max())
    assert found.curvature == pytest.approx(exact, rel=1e-6)
    assert found.critical_lr == pytest.approx(1 / exact, rel=1e-6)
    assert found.converged
    (step,) = neuron_topology(task, symmetries, steps=1)  # full batch
    assert step.bound == pytest.approx(0.1 * exact, rel=1e-6)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad"])
def test_equal_units_stay_equal_under_every_optimiser(net, name):
    task, symmetries = net
    swap = next(m for m in symmetries.mirrors() if m.kind == "swap")
    with torch.no_grad():
        for k, p in task.model.named_parameters():
            p.copy_(swap.project(dict(task.model.named_parameters()))[k])
    before = {k: p.detach().clone() for k, p in task.model.named_parameters()}
    optimizer = getattr(torch.optim, name)(task.model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        task.loss(task.model, task.first_batch()).mean().backward()
        optimizer.step()
    step = topology_step(before, dict(task.model.named_parameters()), symmetries.units[0])
    assert step.distinct == 11
    assert math.isfinite(step.max_ratio)  # the equal pair is left out
    assert step.order_breaking == -1
    assert math.isnan(step.bound)


def test_merges_are_counted_once():
    units = Units("w", 4, 1, (Slice("w", 0, np.arange(4).reshape(1, 4, 1), "write"),))
    before, after = ({"w": torch.tensor(v, dtype=torch.float64)[:, None]} for v in ([0, 1, 2, 2.0], [0, 1.5, 1.5, 1.5]))
    step = topology_step(before, after, units)
    assert step.merges == 2
    assert step.distinct == 2
    assert step.min_ratio == 0
    assert topology_step(after, after, units).merges == 0


def test_pairs_stay_within_a_fiber_and_within_the_limit():
    units = Units("h", 5, 3, ())
    pairs = unit_pairs(units)
    assert len(pairs) == 30
    assert (pairs[:, 0] // 5 == pairs[:, 1] // 5).all()
    assert (pairs[:, 0] < pairs[:, 1]).all()
    some = unit_pairs(Units("h", 300, 2, ()), max_pairs=500, seed=1)
    assert some.shape == (500, 2)
    assert (some[:, 0] // 300 == some[:, 1] // 300).all()
    assert (some[:, 0] < some[:, 1]).all()


def test_units_of_different_fibers_are_never_one():
    assert distinct_rows(np.zeros((6, 2)), Units("h", 3, 2, ()), 0.1) == 2


def test_bad_input_is_named(net):
    task, symmetries = net
    with pytest.raises(MeasurementError, match="at least 1"):
        neuron_topology(task, symmetries, steps=0)
    with pytest.raises(MeasurementError, match="momentum=0"):
        neuron_topology(dataclasses.replace(task, momentum=0.9), symmetries)

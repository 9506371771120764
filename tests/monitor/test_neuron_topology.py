"""The monitor of neurons sees what single steps show, and only looks."""

from __future__ import annotations

import math

import pytest
import torch
from tests.monitor.models import mlp, seeded
from torch import nn

from gaugefix import find_symmetries
from gaugefix.errors import MeasurementError
from gaugefix.monitor import NeuronTopologyMonitor

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
Y = torch.sin(X[:, :3])


def run(lr, steps=6, *, every=1, curvature=None, make=torch.optim.SGD, watch=True):
    model = seeded(lambda: mlp((5, 8, 3), nn.Tanh))
    monitor = NeuronTopologyMonitor(model, find_symmetries(model, (X,)), lr, every=every, curvature=curvature)
    optimizer = make(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X) - Y).square().mean().backward()
        if watch:
            monitor.step()
        optimizer.step()
    monitor.finish()
    return model, monitor


def test_small_steps_keep_the_units_apart_and_huge_ones_do_not():
    calm, wild = run(0.01)[1], run(40.0)[1]
    assert calm.safe
    assert not wild.safe
    for monitor in (calm, wild):
        assert [n for n, _ in monitor.history] == list(range(6))
        for _, (step,) in monitor.history:
            assert step.reversals == step.order_breaking
            assert step.n_pairs == 28


def test_the_bound_is_that_of_the_curvature_given():
    steps = [s for _, (s,) in run(0.1, curvature=lambda: 1e-9)[1].history]
    assert all(s.bound == pytest.approx(1e-10) and s.violations > 0 for s in steps)
    assert all(math.isnan(s.bound) and not s.violations for _, (s,) in run(0.1)[1].history)


def test_it_looks_at_every_kth_step_over_one_step_each():
    every = dict(run(0.1)[1].history)
    third = dict(run(0.1, every=3)[1].history)
    assert list(third) == [0, 3]
    assert repr(third[3]) == repr(every[3])  # nan is not equal to itself


def test_training_is_not_changed():
    left, right = (run(0.1, watch=w, make=torch.optim.Adam)[0] for w in (True, False))
    assert all(torch.equal(p, q) for p, q in zip(left.parameters(), right.parameters(), strict=True))


def test_bad_input_is_named():
    model = mlp((5, 8, 3))
    found = find_symmetries(model, (X,))
    with pytest.raises(MeasurementError, match="every must be at least 1"):
        NeuronTopologyMonitor(model, found, 0.1, every=0)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(MeasurementError, match="no class"):
        NeuronTopologyMonitor(model, found, 0.1)

"""Points that hold SGD, on toys with known exponents and on a network; AMSGrad's frozen rates."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import amsgrad_effective_lr, directional_curvature, hessian_extremes, trapped_point_test


class _Pair(nn.Module):
    def __init__(self, *values):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values).double())


def _maximum(lr, batch_size=1, push=0.0):
    """½xw₀² + ½w₁² with x = 0.9 or −1, and a gradient ±push along w₀."""
    x = torch.tensor([0.9, -1.0]).double()

    def loss(m, b):
        return b * m.w[0] ** 2 / 2 + m.w[1] ** 2 / 2 + push * b.sign() * m.w[0]

    return Task(_Pair(0.0, 0.0), loss, lambda: [x], lr=lr, weight_decay=0.0, batch_size=batch_size)


@pytest.mark.parametrize(("lr", "batch_size", "trapped"), [(0.05, 1, False), (0.5, 1, True), (0.5, 64, False)])
def test_learning_rate_and_batch_size_decide_whether_a_maximum_holds(lr, batch_size, trapped):
    found = trapped_point_test(_maximum(lr, batch_size), batches=20_000)
    assert found.valid
    assert found.curvature == pytest.approx(-0.05)
    assert found.trapped is trapped
    assert found.verdict == ("collapses" if trapped else "escapes")
    if batch_size == 1:
        assert found.value == pytest.approx(0.5 * math.log(abs((1 - 0.9 * lr) * (1 + lr))), abs=4 * found.stderr)


def test_a_minimum_is_not_a_trap_and_noise_expels():
    along = {"w": torch.tensor([0.0, 2.0]).double()}
    minimum = trapped_point_test(_maximum(0.5), along)
    assert (minimum.curvature, minimum.trapped) == (1.0, False)
    assert minimum.value == pytest.approx(math.log(0.5))  # the direction is normalised
    noisy = trapped_point_test(_maximum(0.5, push=0.1))
    assert (noisy.valid, noisy.trapped, noisy.verdict) == (False, False, "undecided")
    with pytest.raises(MeasurementError, match="zero"):
        trapped_point_test(_maximum(0.5), {"w": torch.zeros(2)})
    with pytest.raises(MeasurementError, match="sgd"):
        trapped_point_test(dataclasses.replace(_maximum(0.5), optimizer="adam"))


def test_curvatures_of_samples_average_to_the_hessian():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, generator=generator).double(), torch.randn(40, generator=generator).double()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    task = Task(
        model, lambda m, b: (m(b[0])[:, 0] - b[1]) ** 2, lambda: [(x[:25], y[:25]), (x[25:], y[25:])],
        lr=0.1, weight_decay=0.0, batch_size=4,
    )  # fmt: skip
    top = hessian_extremes(task, which="LA")
    found = directional_curvature(task, top.tangents()[0])
    assert found.shape == (40,)
    assert found.mean() == pytest.approx(top.eigenvalues[0], rel=1e-6)


def test_amsgrad_freezes_its_rates():
    w = nn.Parameter(torch.tensor([1.0, 1.0]))
    adam = torch.optim.Adam([w], lr=0.1, betas=(0.9, 0.99), eps=0.0, amsgrad=True)
    with pytest.raises(MeasurementError, match="updated"):
        amsgrad_effective_lr(adam)
    gradients = [torch.tensor([3.0, 1.0])] + [torch.tensor([0.0, 1.0])] * 60
    moment, largest = np.zeros(2), np.zeros(2)
    for g in gradients:
        w.grad = g
        adam.step()
        moment = 0.99 * moment + 0.01 * g.numpy() ** 2
        largest = np.maximum(largest, moment)
    expected = 0.1 * np.sqrt(1 - 0.99 ** len(gradients)) / np.sqrt(largest)
    assert amsgrad_effective_lr(adam)[0].numpy() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(MeasurementError, match="amsgrad=True"):
        amsgrad_effective_lr(torch.optim.Adam([w]))

"""Scatter, balance and escape of live runs against exact laws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import decoupling_ratio, escape_along_path, fdr_check, sgd_noise_report
from gaugefix.theory import linear_sgd_stationary, passage_steps


@pytest.fixture
def regression():
    """Squared error of a linear model on 300 samples, batches drawn anew at every pass."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator).double() * torch.tensor([1.0, 0.7, 0.5])
    y = x.sum(1) + torch.randn(300, generator=generator).double()

    def batches(seed=0):
        drawn = torch.randint(300, (400, 4), generator=torch.Generator().manual_seed(seed))
        return ((x[i], y[i]) for i in drawn)

    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    task = Task(
        model, lambda m, b: (m(b[0])[:, 0] - b[1]).square() / 2, batches, lr=0.05, weight_decay=0.0, batch_size=4
    )
    whole = dataclasses.replace(task, batches=lambda: [(x, y)])
    return task, whole, x.numpy(), y.numpy()


def test_the_report_is_the_exact_law_up_to_the_noise_of_the_curvature(regression):
    _, whole, x, y = regression
    found = sgd_noise_report(whole, k=3, settle_steps=3000)
    exact = linear_sgd_stationary(x, y, 0.05, 4)
    assert found.valid, found.reason
    along = np.diag(found.eigenvectors.T @ exact.covariance @ found.eigenvectors)
    assert found.variances == pytest.approx(along, rel=0.1)  # the report leaves out that batches differ in curvature
    assert found.excess_loss == pytest.approx(exact.excess_loss, rel=0.1)
    assert "eigenvectors" not in found.to_dict()
    assert torch.equal(whole.model.weight, torch.zeros(1, 3).double())  # the user's model is as it was


def test_a_point_that_moves_and_a_rate_that_diverges_are_said(regression):
    _, whole, *_ = regression
    assert "stationary" in sgd_noise_report(whole, k=2, settle_steps=0).reason
    beyond = sgd_noise_report(dataclasses.replace(whole, lr=2.5), k=2, settle_steps=100)
    assert not beyond.stable
    assert np.isnan(beyond.variances).all()
    with pytest.raises(MeasurementError, match="sgd"):
        sgd_noise_report(dataclasses.replace(whole, optimizer="adam"))


def test_the_identity_holds_at_rest_and_not_before(regression):
    task, *_ = regression
    early = fdr_check(task, steps=60)
    late = fdr_check(task, steps=6000, burn_in=500)
    assert not early.at_rest
    assert late.at_rest
    assert late.ratio == pytest.approx([1.0], abs=0.05)
    with pytest.raises(MeasurementError, match="diverges"):
        fdr_check(dataclasses.replace(task, lr=50.0), steps=400)


def test_decoupling_sees_how_losses_and_gradients_go_together():
    x = torch.tensor([[1.0], [2.0]]).double()
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()

    def ratio(y):
        target = torch.tensor(y).double()
        task = Task(
            model, lambda m, b: (m(b[0])[:, 0] - b[1]).square(), lambda: [(x, target)],
            lr=0.1, weight_decay=0.0, batch_size=1,
        )  # fmt: skip
        return decoupling_ratio(task)

    assert ratio([1.0, 1.0]) == pytest.approx(1.0)
    assert ratio([1e-6, 1.0]) == pytest.approx(1.6)  # all of the loss is at the large input: h = 4 instead of 2.5
    assert ratio([1.0, 2.0]) == pytest.approx((1 + 16) / 2 / (2.5 * 2.5))
    assert np.isnan(ratio([0.0, 1.0]))


class _Well(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1).double())


def _well(decay=0.0):
    noise = torch.tensor([-1.0, 1.0]).double()
    return Task(
        _Well(), lambda m, b: (m.w**2 - 1) ** 2 / 4 + b * m.w, lambda: [noise], lr=0.1, weight_decay=decay, batch_size=2
    )


def test_the_path_of_a_double_well_is_known():
    task = _well()
    found = escape_along_path(task, {"w": -torch.ones(1)}, n_points=81, behind=0.5)
    w = 1 - found.s
    assert found.loss == pytest.approx((w**2 - 1) ** 2 / 4, abs=1e-12)
    assert found.slope == pytest.approx(-w * (w**2 - 1), abs=1e-12)
    assert found.noise == pytest.approx(np.full(len(w), 0.5))
    line = np.linspace(-2, 1, 4001)
    exact = passage_steps(line, line * (line**2 - 1), np.full(4001, 0.5), 0.1, -1.0, 1.0)
    assert found.valid
    assert found.expected_steps == pytest.approx(exact, rel=1e-3)
    assert task.model.w.item() == 1.0


def test_decay_enters_the_slope_and_not_the_noise():
    plain, decayed = (escape_along_path(_well(decay), {"w": -torch.ones(1)}) for decay in (0.0, 0.2))
    assert decayed.noise == pytest.approx(plain.noise)
    assert decayed.slope == pytest.approx(plain.slope - 0.2 * (1 - plain.s))
    assert decayed.data_loss == pytest.approx(plain.data_loss)


def test_a_line_without_a_barrier_has_no_time():
    found = escape_along_path(_well(), {"w": torch.zeros(1)})
    assert not found.valid
    assert np.isnan(found.expected_steps)
    with pytest.raises(MeasurementError, match="equals"):
        escape_along_path(_well(), {"w": torch.ones(1)})
    with pytest.raises(MeasurementError, match="'w'"):
        escape_along_path(_well(), {})

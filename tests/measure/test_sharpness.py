"""Trace of the Hessian and fluctuation of the gradients, against closed forms and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gaugefix import Task
from gaugefix.errors import MeasurementError
from gaugefix.measure import gradient_fluctuation, hessian_trace
from gaugefix.theory import DeepLinearSharpness


@pytest.fixture
def at_the_minimum():
    """A linear network 3-4-2 at the minimum of least fluctuation, data with the exact moments of the theory."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(3, 2, generator=generator, dtype=torch.float64) + torch.randn(
        4000, 2, generator=generator, dtype=torch.float64
    ) * torch.tensor([1.0, 0.3])
    x, y = x - x.mean(0), y - y.mean(0)
    theory = DeepLinearSharpness.from_data(x.numpy(), y.numpy(), 2)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double()
    with torch.no_grad():
        for p, w in zip(model.parameters(), theory.weights(4), strict=True):
            p.copy_(torch.from_numpy(w))
    task = Task(model, lambda m, b: (m(b[0]) - b[1]).square().sum(1) / 2, lambda: [(x, y)], lr=0.1, weight_decay=0.0,
                batch_size=10)  # fmt: skip
    return task, theory


def test_both_are_those_of_the_closed_form(at_the_minimum):
    task, theory = at_the_minimum
    exact = hessian_trace(task, n_probes=20, max_samples=4000)
    assert exact.exact
    assert exact.value == pytest.approx(theory.trace, rel=1e-9)
    found = gradient_fluctuation(task, max_samples=4000)
    assert found.value == pytest.approx(theory.fluctuation, rel=0.05)  # x and the residual are independent on average
    assert found.mean_sq < 1e-20
    assert found.value == pytest.approx(found.noise + found.mean_sq)


def test_the_estimate_is_within_its_error_bar(at_the_minimum):
    task, theory = at_the_minimum
    found = hessian_trace(task, n_probes=16, max_samples=4000)
    assert not found.exact
    assert found.stderr > 0
    assert abs(found.value - theory.trace) < 5 * found.stderr
    again = hessian_trace(task, n_probes=16, max_samples=4000)
    assert again == found


def test_the_fluctuation_is_bounded_by_the_sharpness(regression):
    """λ_min(Σ_ε)·T ≤ 𝒮 ≤ λ_max(Σ_ε)·T for the outer-product part T = E‖∇f‖², with fresh noise on the targets."""
    model = regression().model
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2000, 6, generator=generator, dtype=torch.float64)
    noise = torch.randn(2000, 3, generator=generator, dtype=torch.float64) * torch.tensor([0.5, 1.0, 2.0])
    noise = noise - noise.mean(0)
    with torch.no_grad():
        y = model(x)

    def task(targets):
        return Task(model, lambda m, b: (m(b[0]) - b[1]).square().sum(1) / 2, lambda: [(x, targets)], lr=0.1,
                    weight_decay=0.0, batch_size=10)  # fmt: skip

    trace = hessian_trace(task(y), n_probes=200).value  # no residual: the outer-product part alone
    found = gradient_fluctuation(task(y + noise)).value
    low, high = torch.linalg.eigvalsh(noise.T @ noise / len(noise))[[0, -1]].tolist()
    assert low * trace < found < high * trace


def test_no_probe_is_refused(at_the_minimum):
    with pytest.raises(MeasurementError, match="n_probes"):
        hessian_trace(at_the_minimum[0], n_probes=0)

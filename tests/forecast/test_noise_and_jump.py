"""Critical learning rate and batch size of a ghost, and the weight decay at which a deep network dies."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from gaugefix import Task, find_symmetries
from gaugefix.forecast import forecast, noise_limits, whole_network_threshold
from gaugefix.theory import critical_batch, lyapunov_exponent
from gaugefix.theory.multiplicative_noise import exponent_root


def _scalar_task(x, y, **settings) -> Task:
    """E (uwx − y)²/2 with u = w = 0: the ghost's curvature in a sample is −xy exactly."""
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Tanh(), nn.Linear(2, 1, bias=False)).double()
    for p in model.parameters():
        nn.init.zeros_(p)
    options = {"lr": 0.1, "weight_decay": 0.0, "batch_size": 1, **settings}
    return Task(model, lambda m, b: (m(b[0]) - b[1]).square().sum(1) / 2, lambda: [(x, y)], **options)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    return x, 0.12 * x + torch.randn(4000, 1, generator=generator, dtype=torch.float64)


def test_the_curvature_of_a_sample_is_known_in_closed_form(data) -> None:
    x, y = data
    task = _scalar_task(x, y)
    found = forecast(task, find_symmetries(task, verify=False), settle_steps=0).classes[0]
    product = (x * y).numpy()
    assert found.kappa == pytest.approx(product.mean())
    assert found.noise.spread == pytest.approx(product.std(ddof=1))
    assert found.noise.critical_lr == pytest.approx(2 * product.mean() / (product**2).mean(), rel=1e-3)
    assert found.noise.critical_batch_size == pytest.approx(critical_batch(-product[:, 0], 0.1))


def test_the_estimate_is_near_the_root_of_the_exponent(data) -> None:
    """One mode u = w of a scalar unit: the exact critical learning rate is the root of E log|1 + lr·xy|."""
    product = (data[0] * data[1]).numpy()[:, 0]
    task = _scalar_task(*data)
    exact = exponent_root(lambda lr: lyapunov_exponent(-product, lr), 0.05, 0.6)
    found = noise_limits(task, -product, 0.0)
    assert found.critical_lr == pytest.approx(exact, rel=0.15)


def test_larger_batches_allow_larger_learning_rates(data) -> None:
    product = (data[0] * data[1]).numpy()[:, 0]
    rates = [noise_limits(_scalar_task(*data, batch_size=b), -product, 0.01).critical_lr for b in (1, 4, 16, 4000)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(2 / (product.mean() - 0.01))  # no noise at all in the full batch
    assert noise_limits(_scalar_task(*data), -product, 1.0).critical_lr == 0.0
    assert "adam" in noise_limits(_scalar_task(*data, optimizer="adam"), -product, 0.0).reason
    assert np.isnan(noise_limits(_scalar_task(*data), np.zeros(0), 0.0).critical_lr)


def _deep_linear(depth: int, seed: int = 0, scale: float = 2.0) -> Task:
    """E xxᵀ = 0.7, E xy = c: the spinodal is known (arXiv 2202.04777); PyTorch's λ is twice its γ."""
    c = torch.tensor([1.0, 0.5, -0.2], dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(3, 4, bias=False), *(nn.Linear(4, 4, bias=False) for _ in range(depth - 1))]
        model = nn.Sequential(*layers, nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        for p in model.parameters():
            p *= scale
    x = torch.cat([torch.eye(3), -torch.eye(3)]).double() * 2.1**0.5
    y = (x @ c / 0.7)[:, None]
    return Task(
        model, lambda m, b: (m(b[0]) - b[1]).square().sum(1), lambda: [(x, y)],
        lr=0.03, weight_decay=0.05, batch_size=6,
    )  # fmt: skip


def _spinodal(depth: int) -> float:
    """Closed form for E xxᵀ = a, ‖E xy‖² = 1.29, in PyTorch's convention."""
    share = depth / (depth + 1)
    binodal = (1.29 / (depth**2 * (0.7 / (depth - 1)) ** ((depth - 1) / depth))) ** share
    return 2 * binodal * (depth + 1) / 4**share


@pytest.mark.parametrize("depth", [2, 3])
def test_a_deep_linear_network_dies_at_its_spinodal(depth) -> None:
    task = _deep_linear(depth)
    state = {k: v.clone() for k, v in task.model.state_dict().items()}
    found = whole_network_threshold(task, find_symmetries(task, verify=False), tolerance=0.02, max_steps=3000)
    assert found.converged
    assert found.lambda_c == pytest.approx(_spinodal(depth), rel=0.02)
    assert found.alive_at < found.lambda_c < found.dead_at
    assert all(torch.equal(v, state[k]) for k, v in task.model.state_dict().items())


def test_from_a_small_start_it_dies_earlier() -> None:
    task = _deep_linear(2, scale=0.8)
    symmetries = find_symmetries(task, verify=False)
    fresh = whole_network_threshold(task, symmetries, fresh=True, max_steps=3000)
    assert fresh.lambda_c < _spinodal(2) * 0.9


def test_the_forecast_of_a_deep_network_has_it() -> None:
    task = _deep_linear(2)
    symmetries = find_symmetries(task, verify=False)
    without = forecast(task, symmetries, settle_steps=0).collapse
    assert np.isnan(without.lambda_c)
    found = forecast(task, symmetries, settle_steps=0, jump_steps=3000).collapse
    assert (found.order, found.homogeneous) == (1, False)
    assert found.lambda_c == pytest.approx(_spinodal(2), rel=0.05)
    assert 0 < found.uncertainty < 0.06 * found.lambda_c


def test_where_there_is_no_such_threshold_the_reason_is_said() -> None:
    task = _deep_linear(2)
    symmetries = find_symmetries(task, verify=False)
    assert "adam" in whole_network_threshold(dataclasses.replace(task, optimizer="adam"), symmetries).reason
    assert "no class" in whole_network_threshold(task, []).reason
    dead = dataclasses.replace(task, weight_decay=5.0)
    for p in dead.model.parameters():
        nn.init.zeros_(p)
    assert "no live state" in whole_network_threshold(dead, symmetries).reason


def test_a_loss_that_needs_double_precision_gets_it() -> None:
    task = _deep_linear(2)
    (x, y), constant = task.first_batch(), torch.eye(1, dtype=torch.float64)

    def loss(model, batch):
        return ((model(batch[0]) - batch[1]) @ constant).square().sum(1)

    exact = dataclasses.replace(task, loss=loss, batches=lambda: [(x, y)])
    found = whole_network_threshold(exact, find_symmetries(task, verify=False), tolerance=0.2, max_steps=500)
    assert found.alive_at < _spinodal(2) < found.dead_at * 1.1

"""The claims of the studies of noise can fail: each is given a wrong theory or a wrong method."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gaugefix.control import AttentionPair
from gaugefix.studies import (
    Setting,
    entropic_forces,
    flatness_or_sharpness,
    irreversibility,
    linear_networks,
    noise_equilibrium,
    thermodynamic_uncertainty,
)
from gaugefix.studies.registry import find_study
from gaugefix.studies.runner import run_claim

ONE = Setting((0,))


def held(paper, name):
    result = run_claim(next(c for c in find_study(paper).claims if c.name == name), ONE)
    assert result.error is None
    return result.passed


def test_the_charge_of_a_head_needs_the_square_of_the_learning_rate(monkeypatch):
    monkeypatch.setattr(noise_equilibrium, "HEAD_STEPS", 3)
    assert held("2402.07193", "matrix-law")
    right = AttentionPair.drift
    monkeypatch.setattr(AttentionPair, "drift", lambda *a, lr: right(*a, lr=lr) / lr)
    assert not held("2402.07193", "matrix-law")


def test_half_a_jump_is_no_jump(monkeypatch):
    right = noise_equilibrium.MatrixPair.equilibrium
    assert held("2402.07193", "teleport")
    monkeypatch.setattr(
        noise_equilibrium.MatrixPair, "equilibrium", lambda *a: (right(*a) + torch.eye(3, dtype=torch.float64)) / 2
    )
    assert not held("2402.07193", "teleport")


def test_the_drift_of_fresh_batches_is_not_that_of_the_entropic_loss(monkeypatch):
    monkeypatch.setattr(entropic_forces, "_noise_force", entropic_forces._entropic_force)
    assert not held("2505.12387", "validity")


def test_a_wrong_exponent_of_the_equilibrium_is_found_out(monkeypatch):
    assert held("2505.12387", "orbit")
    right = entropic_forces.rescaling_equilibrium
    monkeypatch.setattr(entropic_forces, "rescaling_equilibrium", lambda noise: 2 * right(noise))
    assert not held("2505.12387", "orbit")


def test_a_slightly_wrong_largest_eigenvalue_is_found_out(monkeypatch):
    """An error in the sixth digit is seen."""
    right = flatness_or_sharpness.DeepLinearSharpness.lambda_max
    monkeypatch.setattr(
        flatness_or_sharpness.DeepLinearSharpness, "lambda_max", property(lambda m: right.fget(m) * (1 + 1e-6))
    )
    assert not held("2602.05065", "largest")


def test_the_sharpness_of_another_noise_is_not_the_least_fluctuation(monkeypatch):
    monkeypatch.setattr(flatness_or_sharpness, "DEPTHS", (2,))
    flatness_or_sharpness._random_models.cache_clear()
    right = flatness_or_sharpness._minimise
    monkeypatch.setattr(flatness_or_sharpness, "_minimise", lambda model, seed: right(model.flattest(), seed))
    assert not held("2602.05065", "closed-form")
    flatness_or_sharpness._random_models.cache_clear()


def test_noise_moves_the_sharpness_that_full_batches_leave(monkeypatch):
    monkeypatch.setattr(flatness_or_sharpness, "STEPS", 200)
    right = linear_networks.train_linear
    monkeypatch.setattr(flatness_or_sharpness, "train_linear", lambda *a, **k: right(*a, **{**k, "batch": 10}))
    flatness_or_sharpness._runs.cache_clear()
    assert not held("2602.05065", "full-batch")
    flatness_or_sharpness._runs.cache_clear()


def test_an_echo_of_another_order_is_found_out(monkeypatch):
    monkeypatch.setattr(irreversibility, "ECHO_LRS", (0.0005,))
    monkeypatch.setattr(irreversibility, "ECHO_STEPS", 5)
    assert held("2605.21933", "echo")
    right = irreversibility.echo_test

    def doubled(*args, **kwargs):
        found = right(*args, **kwargs)
        return dataclasses.replace(found, predicted_norm=2 * found.predicted_norm)

    monkeypatch.setattr(irreversibility, "echo_test", doubled)
    assert not held("2605.21933", "echo")


def test_the_potential_sees_more_than_rotations(monkeypatch):
    assert held("2605.21933", "preserved")
    monkeypatch.setattr(
        irreversibility.torch.linalg, "qr", lambda a: (a, a)
    )  # any matrix in the place of a rotation: not even the function is kept
    assert not held("2605.21933", "preserved")


def test_without_the_divergence_the_identity_fails(monkeypatch):
    monkeypatch.setattr(thermodynamic_uncertainty, "CHAINS", 40)
    thermodynamic_uncertainty._chains.cache_clear()
    assert held("2207.14497", "identity")
    right = thermodynamic_uncertainty._each
    monkeypatch.setattr(
        thermodynamic_uncertainty, "_each", lambda s, n: right(s, n) * (0.99 if n == "divergence" else 1)
    )
    assert not held("2207.14497", "identity")
    thermodynamic_uncertainty._chains.cache_clear()


def test_a_stock_cannot_beat_its_market(monkeypatch):
    assert held("2207.14497", "finance")
    right = thermodynamic_uncertainty._largest_sharpe
    monkeypatch.setattr(thermodynamic_uncertainty, "_largest_sharpe", lambda t: 0.9 * right(t))
    assert not held("2207.14497", "finance")


def test_the_network_of_the_ensemble_steps_as_torch_sgd_does():
    """One member against autograd on the expected loss."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(1, 1, 1, *s, generator=generator, dtype=torch.float64) for s in ((4, 3), (4, 4), (2, 4))]
    signal = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    root = torch.diag(torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64))
    ends, _ = linear_networks.train_linear(
        weights, signal, root, torch.eye(2, dtype=torch.float64), lr=0.02, batch=0, steps=5, seeds=(0,)
    )
    mine = [w[0, 0, 0].clone().requires_grad_() for w in weights]
    optimizer = torch.optim.SGD(mine, lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        error = (mine[2] @ mine[1] @ mine[0] - signal) @ root
        (error.square().sum() / 2).backward()
        optimizer.step()
    for end, own in zip(ends, mine, strict=True):
        assert end[0, 0, 0].numpy() == pytest.approx(own.detach().numpy(), abs=1e-13)


def test_the_noise_of_the_ensemble_has_the_size_of_a_batch():
    """At the minimum the variance of a gradient is that of Σ_ε ⊗ Σ_x over the batch."""
    weights = [torch.eye(2, dtype=torch.float64).expand(1, 1, 4000, 2, 2) for _ in range(2)]
    std = torch.diag(torch.tensor([1.0, 0.3], dtype=torch.float64))
    eye = torch.eye(2, dtype=torch.float64)
    ends, _ = linear_networks.train_linear(weights, eye, eye, std, lr=1.0, batch=8, steps=1, seeds=(0,))
    spread = (ends[1] - weights[1]).square().mean((0, 1, 2)).numpy()
    assert spread == pytest.approx(np.array([[1.0, 1.0], [0.09, 0.09]]) / 8, rel=0.1)

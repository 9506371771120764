"""SGD on a quadratic loss: covariance, circulation, entropy; the drift along a valley."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_continuous_lyapunov, solve_discrete_lyapunov

from gaugefix.theory import LinearSGD, valley_covariance, valley_drift


def covariance(seed: int, d: int) -> np.ndarray:
    a = np.random.default_rng(seed).standard_normal((d, d + 3))
    return a @ a.T / d


@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0.01, 0.99), st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_the_covariance_solves_its_equation_and_entropy_is_never_negative(seed, d, share, batch):
    hessian, noise = covariance(seed, d), covariance(seed + 1, d)
    lr = share * 2 / np.linalg.eigvalsh(hessian)[-1]
    sgd = LinearSGD(hessian, noise, lr, batch)
    expected = solve_discrete_lyapunov(sgd.transition, lr**2 * noise / batch)
    assert sgd.covariance == pytest.approx(expected, rel=1e-6, abs=1e-9 * np.abs(expected).max())
    assert np.linalg.eigvalsh(sgd.covariance)[0] > 0
    assert sgd.entropy_production >= 0
    assert np.abs(sgd.circulation + sgd.circulation.T).max() < 1e-12 * max(1, np.abs(expected).max())
    louder = LinearSGD(hessian, 7 * noise, lr, batch)
    assert louder.entropy_production == pytest.approx(sgd.entropy_production, rel=1e-6, abs=1e-9)
    reversible = LinearSGD(hessian, hessian @ hessian + hessian, lr, batch)
    assert reversible.entropy_production == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    ("lr", "entropy", "area"), [(0.05, 0.0860, 6.47e-4), (0.2, 0.3566, 0.010726), (0.5, 0.9614, 0.0723)]
)
def test_known_values(lr, entropy, area):
    noise = np.array([[0.525, 0.475], [0.475, 0.525]])
    sgd = LinearSGD(np.diag([1.0, 0.3]), noise, lr)
    assert sgd.entropy_production == pytest.approx(entropy, abs=6e-5)
    assert sgd.circulation[0, 1] == pytest.approx(area, rel=1e-3)


def test_samples_have_the_moments():
    sgd = LinearSGD(covariance(0, 3), covariance(1, 3), 0.1)
    before, after = sgd.sample(200_000)
    assert np.cov(before.T) == pytest.approx(sgd.covariance, abs=0.02 * np.trace(sgd.covariance))
    assert np.cov(after.T) == pytest.approx(sgd.covariance, abs=0.02 * np.trace(sgd.covariance))
    cross = before.T @ after / len(before)
    assert cross == pytest.approx(sgd.covariance @ sgd.transition.T, abs=0.02 * np.trace(sgd.covariance))


def test_what_is_not_stationary_says_so():
    sgd = LinearSGD(np.diag([4.0, 1.0]), np.eye(2), 0.6)
    assert not sgd.stable
    assert sgd.lr_max == pytest.approx(0.5)
    for name in ("covariance", "circulation", "entropy_production"):
        with pytest.raises(ValueError, match="is not below"):
            getattr(sgd, name)
    for bad in (np.diag([1.0, 0.0]), np.diag([1.0, -1.0])):
        with pytest.raises(ValueError, match="positive"):
            LinearSGD(bad, np.eye(2), 0.1)
        with pytest.raises(ValueError, match="positive"):
            LinearSGD(np.eye(2), bad, 0.1)
    with pytest.raises(ValueError, match="lr must be"):
        LinearSGD(np.eye(2), np.eye(2), 0.0)


@given(st.integers(0, 1000), st.integers(1, 3), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_the_valley_covariance_solves_its_equation(seed, d, temperature):
    hessian, noise = np.zeros((d + 1, d + 1)), np.zeros((d + 1, d + 1))
    hessian[:d, :d], noise[:d, :d] = covariance(seed, d), covariance(seed + 1, d)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((d + 1, d + 1)))[0]
    found = turn.T @ valley_covariance(turn @ hessian @ turn.T, turn @ noise @ turn.T, temperature) @ turn
    expected = solve_continuous_lyapunov(hessian[:d, :d], temperature * noise[:d, :d])
    assert found[:d, :d] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert np.abs(found[d]).max() < 1e-9
    assert np.linalg.eigvalsh(found)[0] > -1e-9


def test_noise_proportional_to_the_hessian_flattens():
    """Label noise: the drift is −(T/4)∇Tr Σ, that of the entropic loss, along the valley of (uw − 1)²/2."""
    u = 2.0
    w = 1 / u
    g = np.array([w, u])
    third = np.zeros((2, 2, 2))  # of (uw − 1)²/2 where uw = 1
    third[0, 0, 1] = third[0, 1, 0] = third[1, 0, 0] = 2 * w
    third[1, 1, 0] = third[1, 0, 1] = third[0, 1, 1] = 2 * u
    along = np.array([u, -w]) / np.hypot(u, w)
    found = valley_drift(np.outer(g, g), third, 0.3 * np.outer(g, g), 0.1)
    entropic = -0.1 / 4 * 0.3 * 2 * np.array([u, w])  # Tr Σ = 0.3(u² + w²)
    assert found @ along == pytest.approx(entropic @ along, rel=1e-10)


def test_noise_that_nothing_holds_is_refused():
    with pytest.raises(ValueError, match="along the valley"):
        valley_covariance(np.diag([1.0, 0.0]), np.eye(2), 0.1)
    with pytest.raises(ValueError, match="temperature"):
        valley_covariance(np.eye(2), np.eye(2), -0.1)
    with pytest.raises(ValueError, match="third must be"):
        valley_drift(np.eye(2), np.zeros((2, 2)), np.eye(2), 0.1)

"""Moments and bounds of Adam's updates against simulation, closed forms and worst cases."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaugefix.theory import (
    adam_noise_mean_square,
    adam_noise_rms,
    adam_stability,
    gaussian_update_moments,
    gradient_snr,
    update_bound,
)


def _updates(gradients, beta1, beta2):
    """u_t of Adam without ε for gradients ``(t, …)``."""
    m = v = np.zeros(gradients.shape[1:])
    for t, g in enumerate(gradients, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        with np.errstate(invalid="ignore", divide="ignore"):
            u = m / (1 - beta1**t) / np.sqrt(v / (1 - beta2**t))
        yield np.nan_to_num(u)


@pytest.mark.parametrize("t", [2, 3, 5, 10, 100])
def test_uniform_weights_have_a_closed_form(t):
    """u²/t ~ Beta(½, (t − 1)/2)."""
    mean = math.sqrt(t / math.pi) * math.exp(math.lgamma(t / 2) - math.lgamma((t + 1) / 2))
    found = gaussian_update_moments(t, 1.0)
    assert found.mean_square == pytest.approx(1.0, abs=1e-6)
    assert found.mean_abs == pytest.approx(mean, abs=1e-6)
    assert found.variance_abs == pytest.approx(1 - mean**2, abs=2e-6)


def test_any_weights_will_do_and_only_their_ratios_count():
    t, beta2 = 7, 0.9
    weights = beta2 ** np.arange(t - 1, -1, -1.0)
    given, own = gaussian_update_moments(t, weights=5 * weights), gaussian_update_moments(t, beta2)
    assert given.mean_square == pytest.approx(own.mean_square)
    assert given.mean_abs == pytest.approx(own.mean_abs)
    with pytest.raises(ValueError, match="3 positive"):
        gaussian_update_moments(3, weights=np.array([1.0, 0.0, 1.0]))


def test_moments_of_rmsprop_are_those_of_samples():
    samples = np.random.default_rng(0).standard_normal((30, 200_000))
    for t, u in enumerate(_updates(samples, 0.0, 0.99), 1):
        if t in {2, 5, 30}:
            found = gaussian_update_moments(t, 0.99)
            assert found.mean_abs == pytest.approx(np.abs(u).mean(), abs=0.004)
            assert found.mean_square == pytest.approx((u**2).mean(), abs=0.006)


@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999, 1.0])
def test_the_variance_grows_and_stays_bounded(beta2):
    variances = [gaussian_update_moments(t, beta2).variance_abs for t in (1, 2, 3, 5, 10, 30, 100, 400)]
    assert all(b >= a - 1e-7 for a, b in pairwise(variances))
    assert variances[-1] <= 1 - 2 / math.pi + 1e-6


def test_momentum_makes_the_first_updates_large():
    samples = np.random.default_rng(1).standard_normal((50, 20_000))
    for t, u in enumerate(_updates(samples, 0.9, 0.9999), 1):
        if t in {1, 2, 10, 50}:
            assert (u**2).mean() == pytest.approx(adam_noise_mean_square(t, 0.9), rel=0.04)
            assert math.sqrt((u**2).mean()) == pytest.approx(adam_noise_rms(t, 0.9), rel=0.02)


@given(
    st.lists(st.integers(-1000, 1000) | st.sampled_from([0.0, 1e6, -1e-6]), min_size=1, max_size=30),
    st.sampled_from([(0.0, 0.9), (0.9, 0.999), (0.9, 0.7), (0.5, 0.25), (0.9, 0.81)]),
)
def test_no_gradients_exceed_the_bound(gradients, betas):
    for t, u in enumerate(_updates(np.array(gradients, dtype=float), *betas), 1):
        assert abs(float(u)) <= update_bound(t, *betas) * (1 + 1e-6)


def test_the_bound_is_reached():
    t, beta1, beta2 = 12, 0.9, 0.95
    i = np.arange(t)[::-1]
    gradients = (beta1 / beta2) ** i  # proportional to a_i/w_i
    *_, last = _updates(gradients, beta1, beta2)
    assert float(last) == pytest.approx(update_bound(t, beta1, beta2), rel=1e-12)


def test_the_bound_settles_if_and_only_if_the_betas_are_stable():
    good, edge, bad = (0.9, 0.999), (0.9, 0.81), (0.9, 0.7)
    assert update_bound(200_000, *good) == pytest.approx(adam_stability(good).max_update, rel=1e-9)
    assert not adam_stability(edge).stable
    assert update_bound(4000, *edge) > 1.9 * update_bound(1000, *edge)
    assert update_bound(100_000, *bad) == math.inf
    assert adam_stability((0.0, 0.0)).max_update == 1.0
    assert not adam_stability((0.5, 0.0)).stable


@pytest.mark.parametrize("snr", [0.0, 0.1, 1.0, 5.0])
def test_the_ratio_comes_out_of_the_state(snr):
    """Gradients N(μ, 1) in 20 000 coordinates with μ² = snr."""
    rng = np.random.default_rng(2)
    m = v = np.zeros(20_000)
    steps, beta1, beta2 = 3000, 0.9, 0.99
    for _ in range(steps):
        g = math.sqrt(snr) + rng.standard_normal(20_000)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
    assert gradient_snr((m**2).sum(), v.sum(), beta1, steps) == pytest.approx(snr, rel=0.05, abs=0.01)


def test_a_ratio_without_noise_or_state():
    assert gradient_snr(1.0, 1.0, 0.9, 10) == math.inf
    assert math.isnan(gradient_snr(0.0, 0.0, 0.9, 10))
    assert math.isnan(gradient_snr(1.0, 1.0, 0.9, 1))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: gaussian_update_moments(0, 0.9), "from 1"),
        (lambda: gaussian_update_moments(2, 1.1), "beta2"),
        (lambda: update_bound(3, 1.0, 0.9), "beta1"),
        (lambda: adam_stability((0.9, 1.0)), "beta2"),
    ],
)
def test_ranges_are_checked(call, match):
    with pytest.raises(ValueError, match=match):
        call()

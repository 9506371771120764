"""Closed forms against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from gaugefix.theory.matrix_factorization import gram_rank, gram_spectrum
from gaugefix.theory.multiplicative_noise import (
    critical_lr_estimate,
    exponent_root,
    gaussian_regression_exponent,
    lyapunov_exponent,
)
from gaugefix.theory.product_regression import product_growth, product_minimum, relearning_slope


@given(st.floats(0.2, 3), st.floats(-2, 2), st.floats(0, 3))
def test_the_product_minimises_the_loss(a, b, decay):
    """At fixed product p the penalty is least at |u| = |w|, where it is λ|p|."""
    objective = lambda p: a * p * p - 2 * b * p + decay * abs(p)  # noqa: E731
    best = minimize_scalar(objective, bounds=(-12, 12), method="bounded", options={"xatol": 1e-10})
    assert objective(float(product_minimum(a, b, decay))) <= best.fun + 1e-12


@pytest.mark.parametrize("bad", [{"a": 0.0}, {"weight_decay": -0.1}])
def test_the_product_needs_data_and_a_decay(bad):
    with pytest.raises(ValueError, match=next(iter(bad)).split("_")[0]):
        product_minimum(**{"a": 1.0, "b": 1.0, "weight_decay": 0.0} | bad)


@given(st.floats(0.1, 2), st.floats(0.001, 0.1), st.floats(0, 4))
def test_the_growth_factor_is_one_step_of_descent(b, lr, decay):
    small = 1e-9
    step = small - lr * (2 * (small * small - b) * small + decay * small)
    assert step / small == pytest.approx(float(product_growth(b, lr, decay)), rel=1e-9)


@pytest.mark.parametrize(("decay", "growth"), [(1.0, 1.1), (0.0, 1.1), (0.9, 1.0)])
def test_a_mode_must_shrink_and_then_grow(decay, growth):
    with pytest.raises(ValueError, match="decay must be in"):
        relearning_slope(decay, growth)


def test_the_gram_spectrum_is_stationary_and_counts_its_rank():
    m, decay = np.array([3.0, 1.0, 0.3, 0.2]), 0.3
    spectrum = gram_spectrum(m, decay)
    assert np.sqrt(spectrum) * (spectrum - m + decay) == pytest.approx(0)  # dL/dσ
    assert gram_rank(m, decay) == np.count_nonzero(spectrum) == 2


@pytest.mark.parametrize("lr", [0.03, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("noise", [1.0, 0.3])
def test_the_gaussian_exponent_is_the_mean_over_samples(lr, noise):
    x, xi = np.random.default_rng(0).standard_normal((2, 2_000_000))
    h = -2 * x * (0.12 * x + noise * xi)
    logs = np.log(np.abs(1 - lr * h))
    exact = gaussian_regression_exponent(0.12, lr, noise)
    assert lyapunov_exponent(h, lr) == pytest.approx(exact, abs=4 * logs.std() / np.sqrt(len(logs)))


def test_the_estimate_of_the_critical_learning_rate_is_right_for_small_rates():
    slope = 0.01
    exact = exponent_root(lambda lr: gaussian_regression_exponent(slope, lr), 1e-3, 0.1)
    assert critical_lr_estimate(-2 * slope, 4 * (1 + 3 * slope**2)) == pytest.approx(exact, rel=2e-3)
    assert critical_lr_estimate(0.5, 1.0) == 0.0


def test_a_bracket_without_a_root_is_refused():
    with pytest.raises(ValueError, match="same sign"):
        exponent_root(lambda lr: 1.0, 0.1, 1.0)

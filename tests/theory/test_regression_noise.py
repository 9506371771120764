"""Stationary laws of SGD on quadratics and regressions against augmented equations, simulation and limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaugefix.theory import (
    MeanSquare,
    equivalent_lr,
    label_noise_sgd,
    linear_sgd_stationary,
    lyapunov_exponent,
    mean_square_growth,
    mean_square_limit,
    product_exponent,
    ridge_sgd,
    second_moment_radius,
    stationary_covariance,
)

positive = st.floats(0.05, 3.0)


def _matrices(seed, size):
    rng = np.random.default_rng(seed)
    return [a @ a.T + 0.1 * np.eye(size) for a in rng.standard_normal((3, size, size))]


@settings(deadline=None)  # the first example imports scipy
@given(st.integers(0, 200), st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.9]), st.floats(0.05, 0.95), st.booleans())
def test_the_covariance_solves_the_augmented_equation(seed, size, momentum, share, preconditioned):
    """(w, m) is a linear process; its discrete Lyapunov equation knows nothing of eigenbases."""
    from scipy.linalg import solve_discrete_lyapunov

    h, c, p = _matrices(seed, size)
    p = p if preconditioned else np.eye(size)
    limit = 2 * (1 + momentum) / np.linalg.eigvals(p @ h).real.max()
    lr = share * limit
    found = stationary_covariance(h, c, lr, momentum, p if preconditioned else None)
    a = np.block([[np.eye(size) - lr * p @ h, -lr * momentum * p], [h, momentum * np.eye(size)]])
    b = np.concatenate([-lr * p, np.eye(size)])
    whole = solve_discrete_lyapunov(a, b @ c @ b.T, method="bilinear")
    assert found.lr_limit == pytest.approx(limit)
    assert found.covariance == pytest.approx(whole[:size, :size], rel=1e-6, abs=1e-6 * np.abs(whole).max())
    assert np.linalg.eigvalsh(found.covariance).min() > 0
    assert found.excess_loss == pytest.approx(np.trace(h @ found.covariance) / 2)


@settings(deadline=None)  # the first example imports scipy
@given(positive, st.floats(0.0, 2.0), st.floats(0.01, 4.0), st.floats(0, 0.99))
def test_no_variance_is_negative_and_beyond_the_limit_there_is_none(h, c, lr, momentum):
    found = stationary_covariance(np.array([h]), np.array([c]), lr, momentum)
    assert found.stable == (lr < 2 * (1 + momentum) / h)
    assert found.covariance[0] >= 0 if found.stable else np.isnan(found.covariance[0])


def test_momentum_goes_to_zero_continuously_and_small_steps_to_continuous_time():
    h, c, _ = _matrices(1, 3)
    plain = stationary_covariance(h, c, 0.05).covariance
    assert stationary_covariance(h, c, 0.05, 1e-9).covariance == pytest.approx(plain, rel=1e-6)
    tiny = stationary_covariance(h, c, 1e-7).covariance
    assert h @ tiny + tiny @ h == pytest.approx(1e-7 * c, rel=1e-4)


def test_flat_directions_are_undefined_not_zero():
    found = stationary_covariance(np.array([1.0, 0.0]), np.array([1.0, 1.0]), 0.1)
    assert np.isnan(found.covariance).tolist() == [False, True]
    assert (found.undetermined, found.stable) == (1, True)
    with pytest.raises(ValueError, match="without curvature"):
        stationary_covariance(np.diag([1.0, 0.0]), np.eye(2), 0.1)
    assert stationary_covariance(np.array([-1.0, 1.0]), np.ones(2), 0.1).lr_limit == 0.0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((np.eye(2), np.ones(2), 0.1), "one shape"),
        ((np.array([[1.0, 2.0], [0.0, 1.0]]), np.eye(2), 0.1), "hessian must be symmetric"),
        ((np.eye(2), np.eye(2), 0.0), "lr > 0"),
        ((np.eye(2), np.eye(2), 0.1, 1.0), "momentum"),
        ((np.eye(2), np.eye(2), 0.1, 0.0, -np.eye(2)), "positive definite"),
        ((np.ones(2), np.ones(2), 0.1, 0.0, np.zeros(2)), "positive definite"),
    ],
)
def test_what_has_no_covariance_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        stationary_covariance(*arguments)


# Gaussian regression


@settings(deadline=None)  # the first example imports scipy
@given(
    st.lists(positive, min_size=1, max_size=5),
    st.integers(1, 50),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.floats(0.02, 0.97),
)
def test_label_noise_is_the_fixed_point_of_its_own_noise(a, batch, momentum, share):
    """C = (AΣA + Tr[AΣ]A + σ²A)/S put into the law of a quadratic gives Σ back."""
    a = np.array(a)
    lr = share * label_noise_sgd(a, 1.0, 1e-3, batch, momentum).lr_limit
    found = label_noise_sgd(a, 2.0, lr, batch, momentum)
    noise = (a * found.variances * a + (a @ found.variances) * a + 2.0 * a) / batch
    again = stationary_covariance(a, noise, lr, momentum)
    assert found.variances == pytest.approx(again.covariance, rel=1e-6)
    assert found.excess_loss == pytest.approx(again.excess_loss, rel=1e-6)
    assert found.train_loss == pytest.approx(1.0 + found.excess_loss)


@settings(deadline=None)  # the first example imports scipy
@given(positive, st.integers(1, 30), st.integers(1, 40))
def test_the_limit_of_equal_curvatures_is_closed(a, size, batch):
    limit = label_noise_sgd(np.full(size, a), 1.0, 1e-3, batch).lr_limit
    assert limit == pytest.approx(2 * batch / (a * (batch + 1 + size)), rel=1e-9)
    beyond = label_noise_sgd(np.full(size, a), 1.0, 1.01 * limit, batch)
    assert not beyond.stable
    assert math.isinf(beyond.train_loss)
    assert np.isnan(beyond.variances).all()


@settings(deadline=None)  # the first example imports scipy
@given(st.lists(positive, min_size=1, max_size=4), st.floats(0.01, 0.9), st.integers(1, 20))
def test_ridge_without_decay_is_label_noise(a, share, batch):
    a = np.array(a)
    lr = share * label_noise_sgd(a, 1.0, 1e-3, batch).lr_limit
    plain, ridge = label_noise_sgd(a, 1.0, lr, batch), ridge_sgd(a, np.ones(len(a)), lr, batch, 0.0, sigma2=1.0)
    assert ridge.variances == pytest.approx(plain.variances)
    assert ridge.test_loss == pytest.approx(plain.test_loss)


def test_ridge_is_the_limit_of_much_data():
    """Without label noise all noise comes from the bias; the exact solution for Gaussian data tends to it."""
    rng = np.random.default_rng(0)
    a, u = np.array([1.0, 0.4]), np.array([1.0, -2.0])
    x = rng.standard_normal((60_000, 2)) * np.sqrt(a)
    exact = linear_sgd_stationary(x, x @ u, 0.5, 2, 0.3)
    law = ridge_sgd(a, u, 0.5, 2, 0.3)
    assert np.diag(exact.covariance) == pytest.approx(law.variances, rel=0.05)
    assert ridge_sgd(np.ones(1), np.ones(1), 3.0, 100, 0.0).lr_limit == pytest.approx(2 * 100 / 102)


@pytest.mark.parametrize("replacement", [True, False])
def test_the_exact_law_of_a_data_set_is_that_of_all_its_batches(replacement):
    """Three samples, batches of two: iterate the second moment over every batch."""
    rng = np.random.default_rng(3)
    x, y, lr, decay = rng.standard_normal((3, 2)), rng.standard_normal(3), 0.2, 0.1
    pairs = [(i, j) for i in range(3) for j in range(3) if replacement or i != j]
    found = linear_sgd_stationary(x, y, lr, 2, decay, replacement=replacement)
    sigma = np.zeros((2, 2))
    for _ in range(600):
        total = np.zeros((2, 2))
        for pair in pairs:
            rows, error = x[list(pair)], x[list(pair)] @ found.solution - y[list(pair)]
            step = np.eye(2) - lr * (rows.T @ rows / 2 + decay * np.eye(2))
            push = lr * (rows.T @ error / 2 + decay * found.solution)
            total += step @ sigma @ step + np.outer(push, push)
        sigma = total / len(pairs)
    assert found.covariance == pytest.approx(sigma, rel=1e-8)
    assert found.residual < 1e-10


def test_no_noise_at_an_interpolating_minimum_and_none_where_no_input_is():
    rng = np.random.default_rng(4)
    x = rng.standard_normal((6, 10))
    found = linear_sgd_stationary(x, rng.standard_normal(6), 0.01, 2)
    assert found.rank == 6
    assert found.covariance == pytest.approx(np.zeros((10, 10)), abs=1e-15)
    beyond = linear_sgd_stationary(x, np.ones(6), 2 * found.lr_limit, 2)
    assert (beyond.stable, beyond.excess_loss) == (False, math.inf)
    assert beyond.radius > 1


# Changing the batch size


@settings(deadline=None)  # the first example imports scipy
@given(st.lists(positive, min_size=1, max_size=5), st.integers(1, 64), st.integers(1, 64), st.floats(0.02, 0.9))
def test_the_equivalent_rate_keeps_the_noise_and_comes_back(a, old, new, share):
    a = np.array(a)
    lr = share * label_noise_sgd(a, 1.0, 1e-3, old).lr_limit
    moved = equivalent_lr(a, lr, old, new)
    before, after = label_noise_sgd(a, 1.0, lr, old), label_noise_sgd(a, 1.0, moved, new)
    assert after.excess_loss == pytest.approx(before.excess_loss, rel=1e-6)
    assert equivalent_lr(a, moved, new, old) == pytest.approx(lr, rel=1e-6)
    assert (moved >= lr * (1 - 1e-9)) == (new >= old)


def test_the_rule_is_linear_for_small_rates_and_large_batches_and_saturates():
    a = np.array([1.0, 0.5])
    assert equivalent_lr(a, 1e-4, 100, 300) == pytest.approx(3e-4, rel=1e-3)
    assert equivalent_lr(a, 0.5, 4, 10**7) == pytest.approx(2.0, rel=1e-4)
    isotropic, ratio, batch = np.ones(7), 0.3, 16
    start = 2 * ratio / (7 * (1 + ratio) + ratio * 2)  # 2RS/(a[D(1 + R) + R(S + 1)]) at S = 1
    expected = 2 * ratio * batch / (7 * (1 + ratio) + ratio * (batch + 1))
    assert equivalent_lr(isotropic, start, 1, batch) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="unstable"):
        equivalent_lr(a, 3.0, 4, 8)
    with pytest.raises(ValueError, match="positive numbers"):
        equivalent_lr(np.array([1.0, 0.0]), 0.1, 4, 8)


# Second moments


@settings(deadline=None)  # the first example imports scipy
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=6), st.floats(0.05, 1.5), st.floats(0, 0.5))
def test_in_one_dimension_the_radius_is_the_growth_of_the_square(h, lr, decay):
    h = np.array(h)
    found = second_moment_radius(h.reshape(-1, 1, 1), lr, 1, decay)
    assert found == pytest.approx(mean_square_growth(h, lr, decay), rel=1e-9)
    if h.mean() + decay > 0.01:
        limit = mean_square_limit(h.reshape(-1, 1, 1), 1, decay)
        assert second_moment_radius(h.reshape(-1, 1, 1), limit, 1, decay) == pytest.approx(1.0, abs=1e-8)


def test_inputs_and_their_matrices_are_the_same_and_batches_divide_the_noise():
    x = np.random.default_rng(5).standard_normal((9, 3))
    blocks = np.einsum("ni,nj->nij", x, x)
    assert second_moment_radius(x, 0.1, 3) == pytest.approx(second_moment_radius(blocks, 0.1, 3))
    mean = blocks.mean(0)
    alone = np.abs(1 - 0.1 * np.linalg.eigvalsh(mean)).max() ** 2
    assert second_moment_radius(x, 0.1, 10**9) == pytest.approx(alone, rel=1e-6)
    whole = MeanSquare(x, 9, replacement=False)
    assert whole.radius(0.1) == pytest.approx(alone, rel=1e-9)


def test_mean_square_stability_is_lost_before_convergence_in_probability():
    """Interpolating regression: between both thresholds every run contracts and the second moment grows."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((12, 30)) * rng.uniform(0.3, 2.0, (12, 1))
    limit = mean_square_limit(x, 4)
    lr = 1.05 * limit
    basis = MeanSquare(x, 4).basis
    batches = x[rng.integers(0, 12, (6000, 4))] @ basis
    exponent = product_exponent(np.einsum("tbi,tbj->tij", batches, batches) / 4, lr, burn_in=200)
    assert second_moment_radius(x, lr, 4) > 1
    assert exponent.value + 3 * exponent.stderr < 0


def test_at_a_saddle_no_rate_holds_the_second_moment():
    h = np.array([-1.1, 1.0])
    assert mean_square_limit(h.reshape(2, 1, 1)) == 0.0
    assert second_moment_radius(h.reshape(2, 1, 1), 0.5) > 1
    assert lyapunov_exponent(h, 0.5) < 0
    with pytest.raises(ValueError, match="batch_size"):
        MeanSquare(np.ones((3, 1)), 4, replacement=False)
    with pytest.raises(ValueError, match="lr must be"):
        second_moment_radius(np.ones((3, 1)), -1.0)

"""Exponents, windows and phases against brute force and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gaugefix.theory import (
    LyapunovAccumulator,
    batch_means,
    critical_batch,
    critical_lr,
    decay_shift,
    decoupled_decay_threshold,
    expected_escape_steps,
    lyapunov_exponent,
    mean_square_growth,
    origin_exponents,
    origin_phase,
    product_exponent,
    stability_window,
    verdict,
)

SIGNALS = np.array([2.0, -1.0])


@pytest.mark.parametrize("a", [-0.1, -0.3, -0.7])
def test_the_window_of_a_two_valued_curvature(a):
    """x = 1 + a or −1: log|(1 − lr(1 + a))(1 + lr)| changes sign at two closed forms."""
    low, high = stability_window(np.array([1 + a, -1.0]))
    assert low == pytest.approx(-a / (1 + a), rel=1e-9)
    assert high == pytest.approx((-a + math.sqrt(a * a + 8 * (1 + a))) / (2 * (1 + a)), rel=1e-9)


def test_the_window_of_a_gaussian_curvature():
    """N(−0.1, 1): 0.19374 and 1.40209 by quadrature; the quantiles of the normal law are the sample."""
    from scipy.special import ndtri

    h = -0.1 + ndtri((np.arange(4000) + 0.5) / 4000)
    assert stability_window(h, resolution=1e-4) == pytest.approx((0.19374, 1.40209), rel=4e-3)


@given(arrays(float, st.integers(2, 8), elements=st.integers(-3000, 3000).map(lambda n: n / 1000)), st.floats(0, 1))
def test_the_exponent_changes_sign_at_the_critical_rate(h, decay):
    k = h + decay
    low = critical_lr(h, decay)
    if k.max() <= 0:
        assert low == math.inf
    elif k.mean() >= 0:
        assert low == 0
    elif math.isfinite(low):
        pole = 1 / k.max()
        assert low <= pole * (1 + 1e-9)
        if low < pole * (1 - 1e-6):  # not one of the windows that are narrower than the resolution
            assert lyapunov_exponent(h, low * (1 - 1e-4), decay) > -1e-9
            middle = (low + pole) / 2
            assert lyapunov_exponent(h, middle, decay) < 1e-9


def test_a_minimum_is_held_from_zero_on_up_to_its_threshold():
    assert stability_window(np.array([0.5, 0.5])) == pytest.approx((0, 4))  # gradient descent: 2/h
    low, high = stability_window(np.array([4.0] + [0.0] * 9))  # 0.1·log|1 − 4 lr|
    assert (low, high) == pytest.approx((0, 0.5))


def test_narrow_windows_of_a_finite_sample_are_passed_over():
    h = np.append(np.full(200, -1.0), 1.0)  # one sample in 201 pulls back
    assert stability_window(h) == (math.inf, math.inf)
    low, high = stability_window(h, resolution=1e-70)  # it is there: (1 + lr)^200·|1 − lr| < 1
    assert low == pytest.approx(1.0, abs=1e-9)
    assert high == pytest.approx(1.0, abs=1e-9)


def test_the_second_order_is_the_limit_of_small_rates():
    rng = np.random.default_rng(0)
    h = rng.normal(-0.01, 1.0, 2000)
    h += -0.01 - h.mean()
    assert critical_lr(h) == pytest.approx(critical_lr(h, exact=False), rel=0.02)
    assert critical_lr(-h, exact=False) == 0.0


@pytest.mark.parametrize("bad", [np.array([]), np.array([np.nan, 1.0])])
def test_a_window_needs_numbers(bad):
    with pytest.raises(ValueError, match="finite"):
        stability_window(bad)


@pytest.mark.parametrize(("lr", "held"), [(0.6, 1), (0.9, 2)])
def test_the_critical_batch_agrees_with_all_batches_listed(lr, held):
    assert held < critical_batch(-SIGNALS, lr) < held + 1
    assert (
        lyapunov_exponent(-batch_means(SIGNALS, held), lr) < 0 < lyapunov_exponent(-batch_means(SIGNALS, held + 1), lr)
    )


def test_the_critical_batch_at_its_limits():
    assert critical_batch(np.array([1.0, 2.0]), 0.1) == math.inf
    assert math.isnan(critical_batch(np.array([-1.0, -1.0]), 2.5))
    assert critical_batch(-SIGNALS, 0.1, weight_decay=0.6) == math.inf


@pytest.mark.parametrize(
    ("boundary", "below", "above"),
    [
        (2 / 5, "Ib", "Ia"),
        (1 / 2, "Ia", "III"),
        ((math.sqrt(17) - 1) / 4, "III", "II"),
        ((math.sqrt(17) + 1) / 4, "II", "IV"),
    ],
)
def test_the_five_phases_of_the_origin(boundary, below, above):
    assert origin_phase(SIGNALS, boundary - 1e-9) == below
    assert origin_phase(SIGNALS, boundary + 1e-9) == above


@pytest.mark.parametrize(
    ("batch_size", "lr", "decay", "phase"),
    [(2, 0.6, 0.0, "Ib"), (2, 0.9, 0.0, "III"), (3, 0.9, 0.0, "Ib"), (1, 0.3, 0.3, "III"), (1, 0.3, 0.1, "Ib")],
)
def test_batches_and_decay_move_the_phases(batch_size, lr, decay, phase):
    assert origin_phase(batch_means(SIGNALS, batch_size), lr, decay) == phase


@pytest.mark.parametrize("lr", [0.1, 0.45, 0.6, 0.9, 1.1, 1.5])
def test_runs_beside_the_origin_grow_at_the_larger_exponent(lr):
    rng = np.random.default_rng(0)
    u, w = 1e-3 * rng.standard_normal((2, 400))
    total = LyapunovAccumulator(burn_in=200)
    for _ in range(3000):
        chi = rng.choice(SIGNALS, 400)
        u, w = u + lr * chi * w, w + lr * chi * u
        norm = np.hypot(u, w)
        total.add(np.log(norm))
        u, w = u / norm, w / norm
    found = total.result()
    error = found.value.std() / 20
    assert found.value.mean() == pytest.approx(max(origin_exponents(SIGNALS, lr)), abs=4 * error)
    assert error < 0.004


def test_a_phase_needs_a_positive_signal():
    with pytest.raises(ValueError, match="positive mean"):
        origin_phase(-SIGNALS, 0.1)
    with pytest.raises(ValueError, match="too many"):
        batch_means(SIGNALS, 30)


def test_moments_and_probability_disagree_at_a_saddle():
    h = np.array([-1.1, 1.0])
    assert mean_square_growth(h, 0.5) > 1
    assert lyapunov_exponent(h, 0.5) < 0


def test_escape_takes_the_drift_time():
    h, lr = np.array([0.8, -1.0]), 0.125  # half of the critical rate
    exponent = lyapunov_exponent(h, lr)
    rng = np.random.default_rng(0)
    steps = np.log(np.abs(1 - lr * h))[rng.integers(0, 2, (300, 12_000))].cumsum(1)
    times = (steps > math.log(1e4)).argmax(1)
    assert times.min() > 0
    assert times.mean() == pytest.approx(
        expected_escape_steps(exponent, 1e-6, 1e-2), abs=4 * times.std() / math.sqrt(300)
    )
    assert expected_escape_steps(-0.1, 1e-6, 1.0) == math.inf
    with pytest.raises(ValueError, match="start < end"):
        expected_escape_steps(0.1, 1.0, 1.0)


@given(st.integers(1, 300), st.integers(0, 30))
def test_blocks_add_up_to_the_mean_whatever_the_number_of_steps(steps, burn_in):
    values = np.random.default_rng(steps).standard_normal((steps + burn_in, 2))
    total = LyapunovAccumulator(burn_in=burn_in, blocks=4)
    for row in values:
        total.add(row)
    found = total.result()
    assert found.steps == steps
    assert found.value == pytest.approx(values[burn_in:].mean(0), abs=1e-12)


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_block_errors_cover_the_truth_also_for_correlated_steps(memory):
    """The scatter of 400 runs is the truth that the error bar of each estimates."""
    rng = np.random.default_rng(0)
    x, total = np.zeros(400), LyapunovAccumulator(burn_in=100)
    for _ in range(4100):
        x = memory * x + rng.standard_normal(400)
        total.add(x)
    found = total.result()
    assert found.stderr.mean() == pytest.approx(found.value.std(), rel=0.15)
    assert (np.abs(found.value) < 2 * found.stderr).mean() > 0.9


def test_a_factor_of_zero_is_a_collapse():
    total = LyapunovAccumulator()
    for growth in [0.1, -np.inf, 0.1] * 20:
        total.add(np.array([growth, 0.1]))
    found = total.result()
    assert found.value.tolist() == [-np.inf, pytest.approx(0.1)]
    assert math.isnan(found.stderr[0])
    assert verdict(found.value[0], found.stderr[0]) == "collapses"
    assert verdict(0.1, math.nan) == "undecided"


def test_nothing_counted_is_an_error():
    total = LyapunovAccumulator(burn_in=3)
    total.add(1.0)
    with pytest.raises(ValueError, match="burn_in"):
        total.result()
    with pytest.raises(ValueError, match="blocks"):
        LyapunovAccumulator(blocks=1)


def test_products_of_one_dimension_are_means_of_logs():
    h = np.random.default_rng(0).standard_normal(500)
    rates, decays = np.array([[0.1], [0.7]]), np.array([0.0, 0.3])
    found = product_exponent(h.reshape(-1, 1, 1), rates, decays)
    expected = [[lyapunov_exponent(h, lr, wd) for wd in decays] for lr in rates.ravel()]
    assert found.value == pytest.approx(np.array(expected), abs=1e-12)


def test_products_of_commuting_matrices_take_the_largest_mode():
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    h = rng.normal([-0.5, 0.2, 1.0], 0.3, (4000, 3))
    blocks = np.einsum("ij,tj,kj->tik", q, h, q)
    exact = max(lyapunov_exponent(h[100:, i], 0.2) for i in range(3))
    assert product_exponent(blocks, 0.2, burn_in=100).value == pytest.approx(exact, abs=1e-6)


def test_decay_is_a_change_of_rate_and_a_shift():
    """Also for matrices that do not commute."""
    rng = np.random.default_rng(2)
    blocks = rng.standard_normal((300, 3, 3))
    blocks = blocks + blocks.transpose(0, 2, 1)
    rate, shift = decay_shift(0.2, 0.6)
    with_decay = product_exponent(blocks, 0.2, 0.6).value
    assert with_decay == pytest.approx(shift + product_exponent(blocks, rate).value, abs=1e-12)
    with pytest.raises(ValueError, match="< 1"):
        decay_shift(0.5, 2.0)


def test_decoupled_decay_shifts_the_exponent_to_zero():
    growth = lyapunov_exponent(-SIGNALS, 0.3)
    decay = decoupled_decay_threshold(growth, 0.3)
    assert np.log(np.abs((1 + 0.3 * SIGNALS) * (1 - 0.3 * decay))).mean() == pytest.approx(0, abs=1e-14)
    assert decoupled_decay_threshold(-0.1, 0.3) == 0.0


def test_blocks_must_be_square():
    with pytest.raises(ValueError, match="shape"):
        product_exponent(np.zeros((3, 2)), 0.1)
